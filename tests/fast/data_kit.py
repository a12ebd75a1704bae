"""A small tokenizer folder, resolved recipes and files for the tests of the room `data`."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

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
    """A recipe with nothing left open that data rooms look at; `method` among `data` is the section of that name."""
    method = {"method": data.pop("method")} if "method" in data else {}
    split = {"test": 0.25, "validation": 0.1, "group_by": "", "stratify": task == "classification", "seed": seed}
    entry = {"path": path, "name": "intent", "task": task, "input": input, "label": label, "system": system}
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "model": {"name": "m"},
            **method,
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


ENCODER_WORDS = (
    "a about an at buy com example glad ana key late long mail me message my number order other parcel please refund",
    "sad story the where . @ 0 1 2 3 4 5 6 7 8 9",
)


def encoder_folder(folder: Path, *, seed: int = 0, window: int = 48, cls: bool = False, **config: Any) -> Path:
    """A random BERT of two layers, laid out as sentence-transformers does; texts with the same words come out alike."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate([*special, *" ".join(ENCODER_WORDS).split()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    features, wide, positions = 16, 24, window + 4
    draw = np.random.default_rng(seed)

    def matrix(*shape: int) -> Any:
        return (draw.normal(size=shape) * 0.3).astype(np.float32)

    weights = {
        "embeddings.word_embeddings.weight": matrix(len(vocabulary), features),
        "embeddings.position_embeddings.weight": matrix(positions, features) * np.float32(0.1),
        "embeddings.token_type_embeddings.weight": matrix(2, features),
    }
    layers = [f"encoder.layer.{layer}" for layer in range(2)]
    linear = {
        **{f"attention.self.{part}": (features, features) for part in ("query", "key", "value")},
        "attention.output.dense": (features, features),
        "intermediate.dense": (wide, features),
        "output.dense": (features, wide),
    }
    for name, shape in ((f"{layer}.{part}", shape) for layer in layers for part, shape in linear.items()):
        weights |= {f"{name}.weight": matrix(*shape), f"{name}.bias": matrix(shape[0])}
    norms = [f"{layer}.{part}.LayerNorm" for layer in layers for part in ("attention.output", "output")]
    for name in ["embeddings.LayerNorm", *norms]:
        weights |= {f"{name}.weight": 1 + matrix(features), f"{name}.bias": matrix(features)}
    facts = {
        "model_type": "bert", "hidden_size": features, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": wide, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2,
        "max_position_embeddings": positions, "vocab_size": len(vocabulary), "pad_token_id": 0, **config,
    }  # fmt: skip
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds.items()]
    pooling = {"pooling_mode_cls_token": cls, "pooling_mode_mean_tokens": not cls}
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in (
        ("config.json", facts),
        ("modules.json", modules),
        ("1_Pooling/config.json", pooling),
        ("sentence_bert_config.json", {"max_seq_length": window}),
    ):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder
