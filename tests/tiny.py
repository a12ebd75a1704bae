"""A tiny random Llama with a real byte-level tokenizer and a ChatML template, as a folder that transformers opens."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write_tokenizer(folder: Path) -> None:
    """Byte-level BPE over a few words; every text can be encoded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the order of the guitar is late and the refund is not here"] * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[2],
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")


def llama(*, seed: int = 0, **changes: Any) -> Any:
    """A random float32 Llama: 2 layers, hidden 32, grouped-query attention."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": 384,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "initializer_range": 0.15,
        "attn_implementation": "sdpa",
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**(settings | changes))).eval()
    model.requires_grad_(False)
    return model


def write_model(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Save model and tokenizer; returns the folder."""
    write_tokenizer(folder)
    llama(seed=seed, **changes).save_pretrained(folder, safe_serialization=True)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nRandom weights for tests.\n", encoding="utf-8")
    return folder


_WORDS = {
    "late": ["late", "waiting", "delayed", "not arrived", "still nothing", "slow"],
    "broken": ["broken", "cracked", "snapped", "damaged", "scratched", "in pieces"],
    "refund": ["refund", "money back", "reimburse", "paid twice", "credit", "charged"],
}
_THINGS = ["guitar", "violin", "cello", "amp", "keyboard", "flute", "drum", "case", "bow", "string set"]
_FRAMES = [
    "my {t} is {w}",
    "{t}: {w}!",
    "hello, about the {t}, {w}, please help",
    "{w} {t} again",
    "why is the {t} {w}?",
]


def write_messages(path: Path, *, rows: int = 120, seed: int = 0) -> Path:
    """A small CSV with columns customer, text, kind; only for tests of the machinery."""
    rng = random.Random(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["customer", "text", "kind"])
        for number in range(rows):
            kind = list(_WORDS)[number % 3]
            frame, thing, word = rng.choice(_FRAMES), rng.choice(_THINGS), rng.choice(_WORDS[kind])
            writer.writerow([f"c{number // 2}", frame.format(t=thing, w=word) + f" ({number})", kind])
    return path


def write_recipe(folder: Path, model: Path, **train: Any) -> Path:
    """A recipe over `write_messages` and `write_model`, small enough for seconds."""
    import yaml

    write_messages(folder / "messages.csv")
    settings = {
        "num_train_epochs": 2,
        "max_length": 128,
        "batch_size": 8,
        "micro_batch_tokens": 256,
        "threads": 1,
        "validations": 2,
        "save_steps": 3,
        "learning_rate": 0.005,
    }
    recipe = {
        "name": "tiny",
        "objective": {"targets": {"kind.accuracy": ">= 0.2"}, "non_regression": {"general.perplexity": "<= 9x"}},
        "model": {"name": str(model)},
        "method": {"type": "sft"},
        "data": {
            "train": [
                {
                    "name": "kind",
                    "path": "messages.csv",
                    "input": "{text}",
                    "label": "kind",
                    "task": "classification",
                    "license": "Apache-2.0",
                    "synthetic": True,
                }
            ],
            "split": {"test": 0.3, "validation": 0.15, "group_by": "customer"},
            "privacy": {"action": "redact", "profile": "fast"},
            "labels": {"review": False},  # loading scikit-learn takes longer than all else of preparing so few rows
        },
        "adapter": {"type": "lora", "r": 4},
        "train": settings | train,
        "evaluate": {"resamples": 200},
        "export": ["adapter", "merged"],
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path
