"""Heads for several labels and for a number learn what transformers' own losses say, and what the formulas say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import echo_engine
import pytest
import torch
from classify_kit import EXAMPLES, LORA, moved, plain
from test_train_classify import peft_name
from torch import Tensor

from luthier.data.answers import joined
from luthier.data.shards import Example
from luthier.errors import RunError
from luthier.models.adapters import attach
from luthier.models.classifier import head_of, put_head
from luthier.records import RequestContract, Scale
from luthier.spec.methods.multi_label import MultiLabel
from luthier.spec.methods.regression import Regression
from luthier.train.batches import micro_batches
from luthier.train.methods import load_method
from tiny import llama

TAGS = ("a", "b", "c", "d")
SETS = [("a", "c"), (), ("b",), ("a", "b", "d"), ("d",)]
SEVERAL = [dataclasses.replace(one, answer=joined(SETS[place % len(SETS)], ",")) for place, one in enumerate(EXAMPLES)]
NUMBERS = [dataclasses.replace(one, answer=f"{place * 7 % 11 - 3.5}") for place, one in enumerate(EXAMPLES)]
SCALE = Scale(mean=1.5, spread=2.5)


def contract(task: str, **changes: Any) -> RequestContract:
    return echo_engine.contract(task=task, labels=(), answered_by="head", **changes)


def several() -> RequestContract:
    return contract("multi_label", tags=TAGS, separator=",", label_rows=(1, 2, 3, 4), threshold=0.5)


def number() -> RequestContract:
    return contract("regression", scale=SCALE)


def one_score() -> Any:
    model = attach(llama(), LORA, base_name="tiny", seed=0)
    put_head(model, 1)
    with torch.no_grad():
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
        head = head_of(model)
        assert head is not None
        head.weight.normal_(std=0.2)
    return model


def gradients(model: Any, learns: Any, examples: list[Example], budget: int) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    tokens, total = [learns.computed(one) for one in examples], 0.0
    for part in micro_batches(range(len(examples)), tokens, max_tokens=budget):
        loss = learns.loss_sum(model, [examples[row] for row in part.rows]) / len(examples)
        loss.backward()
        total += float(loss.detach())
    return total, {peft_name(name): p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("budget", [1, 60, 4096])
@pytest.mark.parametrize("kind", ["several", "number"])
def test_loss_and_gradient_are_those_of_plain_peft_with_transformers_own_loss(
    tmp_path: Path, kind: str, budget: int
) -> None:
    if kind == "several":
        ours, examples, learns = moved(), SEVERAL, load_method(MultiLabel(), several())
        theirs = plain(ours, tmp_path, num_labels=4, problem_type="multi_label_classification")
        sets = [SETS[place % len(SETS)] for place in range(len(examples))]
        wanted = torch.tensor([[float(tag in given) for tag in TAGS] for given in sets])
    else:
        ours, examples, learns = one_score(), NUMBERS, load_method(Regression(), number())
        theirs = plain(ours, tmp_path, num_labels=1, problem_type="regression")
        wanted = torch.tensor([[(float(one.answer) - 1.5) / 2.5] for one in examples])
    loss, found = gradients(ours, learns, examples, budget)
    theirs.zero_grad(set_to_none=True)
    total = 0.0
    for row, example in enumerate(examples):
        said = theirs(input_ids=torch.tensor([example.prompt_ids]), labels=wanted[row : row + 1]).loss / len(examples)
        said.backward()
        total += float(said.detach())
    assert loss == pytest.approx(total, rel=1e-5)
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=2e-4, atol=2e-6), name


@pytest.mark.parametrize(("smoothing", "gamma", "weight"), [(0.2, 0.0, 1.0), (0.0, 2.0, 1.0), (0.1, 1.5, 3.0)])
def test_settings_of_several_labels_are_their_formulas(smoothing: float, gamma: float, weight: float) -> None:
    learns: Any = load_method(
        MultiLabel(label_smoothing=smoothing, focal_gamma=gamma, positive_weight=weight), several()
    )
    torch.manual_seed(0)
    scores = torch.randn(len(SEVERAL), 4, dtype=torch.float64)
    found = learns.row_losses(scores, SEVERAL)
    for row in range(len(SEVERAL)):
        parts = []
        for place, tag in enumerate(TAGS):
            p, has = scores[row, place].sigmoid(), float(tag in SETS[row % len(SETS)])
            soft = (1 - smoothing) * has + smoothing / 2
            right = p if has else 1 - p
            parts.append((1 - right) ** gamma * -(weight * soft * p.log() + (1 - soft) * (1 - p).log()))
        assert float(found[row]) == pytest.approx(float(sum(parts)) / 4, rel=1e-9)


def test_a_number_that_is_far_off_counts_by_its_distance() -> None:
    scores = torch.tensor([[0.0]] * len(NUMBERS), dtype=torch.float64)
    squared: Any = load_method(Regression(), number())
    huber: Any = load_method(Regression(huber_delta=0.5), number())
    for example, one, other in zip(
        NUMBERS, squared.row_losses(scores, NUMBERS), huber.row_losses(scores, NUMBERS), strict=True
    ):
        off = abs(float(example.answer) - 1.5) / 2.5
        assert float(one) == pytest.approx(off**2)
        assert float(other) == pytest.approx(off**2 / 2 if off <= 0.5 else 0.5 * (off - 0.25))


def test_a_contract_of_another_method_is_refused() -> None:
    for settings, other in ((MultiLabel(), number()), (Regression(), several())):
        with pytest.raises(RunError, match="not made for a head of this kind"):
            load_method(settings, other)
