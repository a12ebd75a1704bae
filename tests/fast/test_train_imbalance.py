"""Weights and samplers in the loop: exact whatever the micro-batch, as torch weighs, after a kill; and they help."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train_loop import EXAMPLES, SETTINGS, fresh, relative_error, run
from torch.nn.functional import cross_entropy

from luthier.data.shards import Example
from luthier.errors import Stopped
from luthier.spec.recipe import Train
from luthier.train.batches import micro_batches
from luthier.train.methods.sft import Sft
from rows_kit import inputs_of

ROWS = [replace(one, answer="rare" if number % 6 == 0 else "usual") for number, one in enumerate(EXAMPLES)]
UNEVEN = inputs_of(ROWS)
WEIGHTED = SETTINGS.model_copy(update={"class_weight": {"rare": 4.0}})
SAMPLED = SETTINGS.model_copy(update={"sampler": "balanced"})


@pytest.fixture(autouse=True)
def _deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def stirred() -> Any:
    model = fresh()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model


def gradients(examples: list[Example], weights: list[float] | None, budget: int) -> dict[str, torch.Tensor]:
    model = stirred()
    count, tokens = sum(map(Sft().count, examples)), [Sft().computed(one) for one in examples]
    for part in micro_batches(range(len(examples)), tokens, max_tokens=budget):
        own = None if weights is None else [weights[row] for row in part.rows]
        (Sft().loss_sum(model, [examples[row] for row in part.rows], own) / count).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def by_hand(examples: list[Example], weights: list[float]) -> dict[str, torch.Tensor]:
    """Weighted cross-entropy of torch, a row at a time, in float64: sum of w * nll over the number of tokens."""
    model = stirred().double()
    total, count = torch.zeros((), dtype=torch.float64), sum(map(Sft().count, examples))
    for one, weight in zip(examples, weights, strict=True):
        logits = model(input_ids=torch.tensor([one.input_ids])).logits[0, :-1]
        on = torch.tensor(one.supervised[1:])
        losses = cross_entropy(logits[on], torch.tensor(one.input_ids[1:])[on], reduction="none")
        total = total + (weight * losses).sum() / count
    total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("budget", [1, 20, 40, 10_000], ids=["a row each", "few", "some", "all at once"])
def test_the_weighted_gradient_is_that_of_torch_whatever_the_micro_batch(budget: int) -> None:
    weights = [0.25, 3.0, 1.0, 0.5, 2.0, 1.0, 7.0, 0.1]
    assert relative_error(gradients(ROWS[:8], weights, budget), by_hand(ROWS[:8], weights)) < 1e-5


@settings(deadline=None, max_examples=8)
@given(weights=st.lists(st.floats(0.1, 9), min_size=6, max_size=6), budgets=st.tuples(*[st.integers(1, 90)] * 2))
def test_no_cut_into_micro_batches_changes_the_weighted_gradient(
    weights: list[float], budgets: tuple[int, int]
) -> None:
    one, other = (gradients(ROWS[:6], weights, budget) for budget in budgets)
    assert relative_error(one, {name: gradient.double() for name, gradient in other.items()}) < 1e-5


def test_weights_of_one_are_no_weights() -> None:
    plain, ones = gradients(ROWS[:6], None, 50), gradients(ROWS[:6], [1.0] * 6, 50)
    assert relative_error(ones, {name: gradient.double() for name, gradient in plain.items()}) < 1e-6


def test_the_loss_of_a_step_is_that_of_torch_with_weights_by_label(tmp_path: Path) -> None:
    whole = WEIGHTED.model_copy(update={"batch_size": len(ROWS), "num_train_epochs": 1})
    result = run(tmp_path, settings=whole, inputs=UNEVEN)
    rare = sum(one.answer == "rare" for one in ROWS)
    scale = len(ROWS) / (4 * rare + len(ROWS) - rare)
    weights = [scale * (4.0 if one.answer == "rare" else 1.0) for one in ROWS]
    model = fresh().double()
    count, total = sum(map(Sft().count, ROWS)), 0.0
    with torch.no_grad():
        for one, weight in zip(ROWS, weights, strict=True):
            labels = torch.tensor([[t if on else -100 for t, on in zip(one.input_ids, one.supervised, strict=True)]])
            loss = model(input_ids=torch.tensor([one.input_ids]), labels=labels).loss
            total += weight * float(loss) * Sft().count(one) / count
    assert result.history[0].loss == pytest.approx(total, rel=1e-5)
    assert result.history[0].supervised_tokens == count


@pytest.mark.parametrize("asked", [WEIGHTED, SAMPLED], ids=["weights", "sampler"])
@pytest.mark.parametrize("stop", [1, 4, 8])
def test_a_run_that_was_stopped_ends_bit_equal(tmp_path: Path, asked: Train, stop: int) -> None:
    whole = run(tmp_path / "whole", settings=asked, inputs=UNEVEN)
    with pytest.raises(Stopped):
        run(tmp_path / "cut", settings=asked, inputs=UNEVEN, stop_after=stop)
    resumed = run(tmp_path / "cut", settings=asked, inputs=UNEVEN)
    assert resumed.weights_sha256 == whole.weights_sha256
    assert [one.loss for one in resumed.history] == [one.loss for one in whole.history]
    assert whole.weights_sha256 != run(tmp_path / "plain", inputs=UNEVEN).weights_sha256


def test_weights_and_samplers_help_the_rare_label(tmp_path: Path) -> None:
    """The same prompt with two answers, 15 to 3: the likelier answer follows what counts more, not what is more."""
    prompt = [1, 9, 9, 30, 31]
    marks = [False] * len(prompt) + [True, True]
    usual, rare = [
        Example(number, "", "t", name, len(prompt), [*prompt, token, 2], marks)
        for number, (name, token) in enumerate((("usual", 50), ("rare", 51)))
    ]
    inputs = inputs_of([usual] * 15 + [rare] * 3)
    longer = SETTINGS.model_copy(update={"num_train_epochs": 14, "batch_size": 18, "lr_scheduler_type": "constant"})

    def odds(**changes: Any) -> float:
        """log p(rare) - log p(usual) after training."""
        model = fresh()
        run(tmp_path / str(len(list(tmp_path.iterdir()))), settings=longer.model_copy(update=changes), inputs=inputs,
            model=model)  # fmt: skip
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt])).logits[0, -1]
        return float(logits[51] - logits[50])

    plain = odds()
    assert plain < -0.7, "five to one for the usual answer, as in the rows"
    balanced = [odds(class_weight="balanced"), odds(sampler="balanced")]
    assert all(abs(one) < 0.5 for one in balanced), "even"
    assert odds(class_weight={"rare": 50.0}) > 0.7
