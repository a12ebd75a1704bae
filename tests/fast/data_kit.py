"""A small tokenizer folder, resolved recipes and files for the tests of the room `data`."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from luthier.data.contract import Renderer, make_contract
from luthier.records import CLOSED_TASKS, ModelShape
from luthier.spec.recipe import Recipe
from luthier.spec.resolve import CLEAN_CLOSED, CLEAN_OPEN, ResolvedRecipe

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_TEXT = ["the order has not come and I want my money back", "please call me about the refund of the parcel"]


@lru_cache(maxsize=1)
def _tokenizer_json() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(text, special=True) for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    return str(tokenizer.to_str())


def tokenizer_folder(folder: Path, *, template: str | None = CHATML, **config: Any) -> Path:
    """Write a tokenizer folder like that of an imported base model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(_tokenizer_json(), encoding="utf-8")
    tokens = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokens, **config}), encoding="utf-8")
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def resolved(
    folder: Path,
    *,
    path: str = "data.csv",
    task: str = "classification",
    input: str = "{message}",
    label: str = "intent",
    system: str = "Answer with the intent of the message.",
    max_length: int = 512,
    seed: int = 0,
    **data: Any,
) -> ResolvedRecipe:
    """A recipe with nothing left open that data rooms look at."""
    split = {"test": 0.25, "validation": 0.1, "group_by": "", "stratify": task == "classification", "seed": seed}
    entry = {"path": path, "name": "intent", "task": task, "input": input, "label": label, "system": system}
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "model": {"name": "m"},
            "data": {
                "train": [{**entry, "license": "unknown"}],
                "privacy": {"action": "report", "secrets": "stop"},
                "clean": CLEAN_CLOSED if task in CLOSED_TASKS else CLEAN_OPEN,
                **data,
                "split": {**split, **data.get("split", {})},
            },
            "train": {"max_length": max_length},
        }
    )
    return ResolvedRecipe(
        recipe=recipe,
        reasons={},
        notes=(),
        folder=str(folder),
        data_sha256={},
        model_sha256="0" * 64,
        luthier_version="0",
    )


def renderer(folder: Path, *, template: str | None = CHATML, labels: tuple[str, ...] = (), **kwargs: Any) -> Renderer:
    """A renderer over the small tokenizer."""
    tokenizer = tokenizer_folder(folder / "tokenizer", template=template)
    contract = make_contract(resolved(folder, **kwargs), tokenizer_folder=tokenizer, labels=labels)
    (folder / "contract.json").write_text(contract.to_json(), encoding="utf-8")
    return Renderer.open(folder / "contract.json", tokenizer / "tokenizer.json")


def shape() -> ModelShape:
    """Facts of a base model, as far as `resolve` looks at them."""
    return ModelShape(
        name="m", kind="folder", path="", sha256="0" * 64, architecture="llama", hidden_size=8, num_layers=1,
        num_heads=1, num_kv_heads=1, head_dim=8, intermediate_size=8, vocab_size=400, max_positions=512,
        tied_embeddings=True, num_parameters=1, num_bytes=1, quantisation="", license="unknown", license_source="",
    )  # fmt: skip
