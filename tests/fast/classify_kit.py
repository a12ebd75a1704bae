"""A tiny model with a head, rows and a contract for it, and plain PEFT and transformers beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import echo_engine
import torch

from luthier.data.shards import Example
from luthier.models.adapters import attach, save_adapter
from luthier.models.classifier import head_of, put_head
from luthier.records import RequestContract
from luthier.spec.adapters.lora import Lora
from luthier.spec.methods.classify import Classify as Settings
from luthier.train.methods.classify import Classify
from tiny import llama

LABELS = ("a", "b", "c", "d")
ROWS = (6, 1, 2, 9)
LORA = Lora(r=4, alpha=8.0, dropout=0.0, target_modules="all-linear")


def contract(**changes: Any) -> RequestContract:
    return echo_engine.contract(labels=LABELS, answered_by="head", label_rows=ROWS, **changes)


def method(**settings: Any) -> Classify:
    return Classify(Settings(**settings), contract())


def example(number: int) -> Example:
    """Half of the rows have a long start in common; one is twice there under two labels."""
    rng = torch.Generator().manual_seed(number % 10)
    start = list(range(3, 30)) if number % 2 else [3]
    body = torch.randint(3, 380, (2 + number % 7,), generator=rng).tolist()
    prompt, answer = [*start, *body], [50 + number % 3, 2]
    return Example(
        number + 2, "", "text", LABELS[number % 4], len(prompt), prompt + answer, [False] * len(prompt) + [True, True]
    )


EXAMPLES = [example(number) for number in range(18)]


def fresh(labels: int = len(LABELS), **changes: Any) -> Any:
    """As training begins."""
    model = attach(llama(), LORA.model_copy(update=changes), base_name="tiny", seed=0)
    put_head(model, labels)
    return model


def moved(**changes: Any) -> Any:
    """As training leaves it: neither the adapter's second factor nor the head is zero."""
    model = fresh(**changes)
    with torch.no_grad():
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
        head = head_of(model)
        assert head is not None
        head.weight.normal_(std=0.2)
    return model


def plain(model: Any, place: Path, **config: Any) -> Any:
    """The same as PEFT's own sequence classification, opened by its and transformers' own functions from disk."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    (place / "adapter").mkdir(parents=True)
    llama().save_pretrained(place / "base")
    save_adapter(model, place / "adapter")
    base = AutoModelForSequenceClassification.from_pretrained(place / "base", **{"num_labels": len(LABELS), **config})
    return PeftModel.from_pretrained(base, place / "adapter", is_trainable=True)
