"""Several tasks in one training: what each counts, which rows are drawn, which conflicts are taken out, who stops."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_train_loop
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_train_loop import EXAMPLES, SETTINGS, fresh, relative_error

from luthier.spec.multi_task import MultiTask
from luthier.train import loop
from luthier.train.batches import Step, steps_of, turns_of
from luthier.train.checkpoint import LoopState
from luthier.train.dist import Ranks
from luthier.train.inputs import Inputs, TaskRows
from luthier.train.methods.sft import Sft
from luthier.train.mixing import drawn_of_tasks, task_shares
from luthier.train.optim import learning_rate, make_optimizer
from luthier.train.validation import Judged, Validation
from luthier.train.weighting import Weighting, without_conflict
from ranks_kit import together

ROWS = EXAMPLES[:12], EXAMPLES[12:]


def two(**mix: Any) -> Inputs:
    """Twelve rows of one task, six of another that counts 2.5 times as much."""
    tasks = (TaskRows("many", Sft(), ROWS[0]), TaskRows("few", Sft(), ROWS[1], weight=2.5))
    return Inputs(tasks, model_sha256="m", data_sha256="d", recipe_sha256="r", mix=MultiTask.model_validate(mix))


def opposed(**mix: Any) -> Inputs:
    """Two tasks that want other answers to the same prompts."""
    other = [replace(one, input_ids=[*one.input_ids[:-2], 300, 2]) for one in ROWS[0]]
    tasks = (TaskRows("many", Sft(), ROWS[0]), TaskRows("few", Sft(), other))
    return Inputs(tasks, "m", "d", "r", mix=MultiTask.model_validate(mix))


def stirred() -> Any:
    model = fresh()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model


def gradients_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def reference(rows: tuple[int, ...], inputs: Inputs) -> dict[str, torch.Tensor]:
    """Of sum_k w_k (r_k / R) L_k with L_k the mean over the task's tokens, each row computed by itself."""
    model, parts = stirred(), []
    for place, task in enumerate(inputs.tasks):
        own = [inputs.example(row) for row in rows if inputs.task_of(row) == place]
        mean = sum(Sft().loss_sum(model, [one]) for one in own) / sum(map(Sft().count, own))
        parts.append(task.weight * len(own) / len(rows) * mean)
    sum(parts).backward()
    return gradients_of(model)


def left_by_loop(rows: tuple[int, ...], inputs: Inputs, budget: int) -> dict[str, torch.Tensor]:
    """The gradient that a step leaves before it is clipped."""
    model = stirred()
    weighting = Weighting(inputs)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad} | weighting.parameters()
    settings = SETTINGS.model_copy(update={"micro_batch_tokens": budget})
    made = loop._Loop(
        model, inputs, settings, parameters, make_optimizer(parameters, settings), weighting,
        total=4, watch=test_train_loop.silent,
    )  # fmt: skip
    turns = turns_of(rows, inputs, max_tokens=budget, ranks=made.ranks.size)
    made._backward(turns, 0)
    return gradients_of(model)


STEP = (0, 13, 3, 7, 17, 15, 9)


@pytest.mark.parametrize("budget", [1, 30, 1000])
def test_a_step_is_the_weighted_sum_of_the_means_of_its_tasks_whatever_the_micro_batch(budget: int) -> None:
    expected = reference(STEP, two())
    found = left_by_loop(STEP, two(), budget)
    assert relative_error(found, expected) < 1e-5


def of_rank(ranks: Ranks) -> dict[str, list[float]]:
    torch.use_deterministic_algorithms(True)
    return {name: gradient.flatten().tolist() for name, gradient in left_by_loop(STEP, two(loss="pcgrad"), 40).items()}


def test_two_ranks_leave_the_gradient_of_one_conflicts_included() -> None:
    expected = left_by_loop(STEP, two(loss="pcgrad"), 40)
    for found in together(2, of_rank):
        for name, gradient in expected.items():
            torch.testing.assert_close(torch.tensor(found[name]), gradient.flatten(), rtol=1e-4, atol=1e-6)


def test_the_loss_that_is_told_is_that_of_the_formula_and_of_each_task(tmp_path: Path) -> None:
    inputs = two()
    result = test_train_loop.run(tmp_path, inputs=inputs)
    first = result.history[0]
    rows = steps_of(inputs, SETTINGS)[0].rows
    model = fresh()
    means = {}
    for place, task in enumerate(inputs.tasks):
        own = [inputs.example(row) for row in rows if inputs.task_of(row) == place]
        if own:
            total = float(Sft().loss_sum(model, own).detach()) / sum(map(Sft().count, own))
            means[task.name] = (total, task.weight * len(own) / len(rows))
    assert first.loss == pytest.approx(sum(mean * share for mean, share in means.values()), rel=1e-5)
    assert first.metrics == pytest.approx({f"{name}.loss": mean for name, (mean, _) in means.items()}, rel=1e-5)


def test_learned_weights_have_the_gradient_that_autograd_finds() -> None:
    inputs = two(loss="uncertainty")
    weighting = Weighting(inputs)
    (learned,) = weighting.parameters().values()
    with torch.no_grad():
        learned.copy_(torch.tensor([0.4, -0.7]))
    turns, losses = turns_of(STEP, inputs, max_tokens=99), {0: 3.0, 1: 5.0}
    weighting.set_gradient(turns, losses)
    free = learned.detach().clone().requires_grad_()
    shares = [1.0 * 4 / 7, 2.5 * 3 / 7]
    loss = sum(share * (torch.exp(-free[k]) * losses[k] + free[k] / 2) for k, share in enumerate(shares))
    loss.backward()
    assert learned.grad is not None
    torch.testing.assert_close(learned.grad, free.grad)
    told = sum(weighting.shares(turns)[k] * losses[k] for k in (0, 1)) + weighting.penalty(turns)
    assert told == pytest.approx(float(loss.detach()), rel=1e-6)


def test_learned_weights_come_to_rest_where_the_formula_has_its_least() -> None:
    """exp(-s) L + s / 2 is least at s = log 2 L: the more uncertain a task stays, the less it counts."""
    weighting, losses = Weighting(two(loss="uncertainty")), {0: 0.9, 1: 4.0}
    (learned,) = weighting.parameters().values()
    descent = torch.optim.SGD([learned], lr=0.5)
    for _ in range(400):
        weighting.set_gradient(turns_of(STEP, two(), max_tokens=99), losses)
        descent.step()
    torch.testing.assert_close(learned.detach(), torch.log(2 * torch.tensor([0.9, 4.0])), rtol=1e-3, atol=1e-3)


def test_what_is_learned_of_the_weights_counts_within_the_steps_of_a_short_training() -> None:
    """At a rate of their own: that of the model would leave them where they began."""
    for rate in (1e-5, 5e-4):
        weighting, losses = Weighting(two(loss="uncertainty")), {0: 0.2, 1: 4.0}
        settings = SETTINGS.model_copy(update={"learning_rate": rate, "lr_scheduler_type": "linear"})
        optimizer = make_optimizer(weighting.parameters(), settings)
        for step in range(60):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, total=60, settings=settings) * group["rate_factor"]
            weighting.set_gradient(turns_of(STEP, two(), max_tokens=99), losses)
            optimizer.step()
        factors = weighting.factors()
        assert factors[0] / factors[1] > 4  # the least of the formula is at 20


def test_conflicts_are_projected_out_and_what_does_not_conflict_is_added() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    torch.testing.assert_close(without_conflict([a, b], seed=[0]), torch.tensor([1.0, 2.0]))
    # a . c = -1: a loses its part along c, and c its part along a
    c = torch.tensor([-1.0, 1.0])
    expected = (a - (-1 / 2) * c) + (c - (-1 / 1) * a)
    torch.testing.assert_close(without_conflict([a, c], seed=[0]), expected)
    assert float(without_conflict([a, c], seed=[0]) @ a) >= 0
    zero = torch.zeros(2)
    torch.testing.assert_close(without_conflict([a, zero], seed=[0]), a)


@given(st.lists(st.integers(1, 40), min_size=2, max_size=4), st.integers(1, 4), st.integers(0, 3))
def test_every_row_of_a_task_comes_once_before_any_comes_twice(sizes: list[int], epochs: int, seed: int) -> None:
    shares = [[1 / len(sizes)] * len(sizes)] * epochs
    drawn = [row for epoch in drawn_of_tasks(sizes, shares, seed=seed) for row in epoch.tolist()]
    assert len(drawn) == epochs * sum(sizes)
    starts = np.cumsum([0, *sizes])
    for task, size in enumerate(sizes):
        own = Counter(row for row in drawn if starts[task] <= row < starts[task + 1])
        assert sum(own.values()) >= epochs  # never left out
        assert len(own) == min(size, sum(own.values()))
        assert max(own.values()) - min([*own.values()]) <= 1
    again = [row for epoch in drawn_of_tasks(sizes, shares, seed=seed) for row in epoch.tolist()]
    assert again == drawn


def test_shares_follow_the_named_way() -> None:
    def of(sampling: Any, epoch: int = 0, epochs: int = 5) -> list[float]:
        return task_shares(two(sampling=sampling), epoch, epochs)

    assert of("proportional") == pytest.approx([2 / 3, 1 / 3])
    assert of("equal") == pytest.approx([0.5, 0.5])
    assert of("sqrt") == of(2) == pytest.approx([math.sqrt(2) / (1 + math.sqrt(2)), 1 / (1 + math.sqrt(2))])
    assert of({"many": 1, "few": 3}) == pytest.approx([0.25, 0.75])
    assert of("annealed") == pytest.approx(of("proportional"))
    assert of("annealed", 4) == pytest.approx([2**0.2 / (1 + 2**0.2), 1 / (1 + 2**0.2)])


def test_proportional_sees_every_row_once_an_epoch() -> None:
    rows = Counter(row for step in steps_of(two(), SETTINGS) for row in step.rows)
    assert rows == Counter(dict.fromkeys(range(18), SETTINGS.num_train_epochs))


def test_shares_are_drawn() -> None:
    inputs = two(sampling={"many": 1, "few": 8})
    rows = Counter(inputs.task_of(row) for step in steps_of(inputs, SETTINGS) for row in step.rows)
    assert rows == {0: 4, 1: 32}


@pytest.mark.parametrize("loss", ["static", "uncertainty", "pcgrad"])
def test_a_run_that_was_stopped_ends_in_the_same_bits(tmp_path: Path, loss: str) -> None:
    inputs = opposed(loss=loss, sampling="equal")
    whole = test_train_loop.run(tmp_path / "whole", inputs=inputs)
    with pytest.raises(loop.Stopped):
        test_train_loop.run(tmp_path / "cut", inputs=inputs, stop_after=3)
    resumed = test_train_loop.run(tmp_path / "cut", inputs=inputs)
    assert resumed.resumed_from == (3,)
    assert resumed.weights_sha256 == whole.weights_sha256
    plain = test_train_loop.run(tmp_path / "plain", inputs=opposed(sampling="equal"))
    assert (plain.weights_sha256 == whole.weights_sha256) == (loss == "static")


def judged(values: dict[str, list[float]]) -> Validation:
    rest = {name: iter(own) for name, own in values.items()}
    by = tuple(Judged(name, f"{name}.f1", higher_is_better=True, tiebreak=f"{name}.loss") for name in values)
    return Validation(
        lambda model: {f"{name}.{key}": next(own) if key == "f1" else 1.0 for name, own in rest.items()
                       for key in ("f1", "loss")}, by,
    )  # fmt: skip


def test_a_task_that_gets_no_better_is_no_longer_learned_and_the_other_goes_on(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"validations": 5, "patience": 1, "num_train_epochs": 4})
    validation = judged({"many": [0.1, 0.2, 0.3, 0.4, 0.5], "few": [0.5, 0.4, 0.3, 0.2, 0.1]})
    result = test_train_loop.run(tmp_path, inputs=two(), settings=settings, validation=validation)
    assert result.stopped_tasks == ("few",)
    assert not result.stopped_early
    checks = [event.step for event in result.history if event.kind == "validation"]
    late = [event for event in result.history if event.kind == "step" and event.step > checks[1]]
    early = [event for event in result.history if event.kind == "step" and event.step <= checks[1]]
    assert late
    assert all("few.loss" not in event.metrics for event in late)
    assert any("few.loss" in event.metrics for event in early)


def test_training_ends_when_no_task_gets_better(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"validations": 5, "patience": 1})
    validation = judged({"many": [0.5, 0.4, 0.3, 0.2, 0.1], "few": [0.4, 0.5, 0.3, 0.2, 0.1]})
    result = test_train_loop.run(tmp_path, inputs=two(), settings=settings, validation=validation)
    assert result.stopped_early
    assert result.stopped_tasks == ("many", "few")
    assert result.best_metric == "mean of many.f1, few.f1"


def test_a_task_that_nobody_judges_goes_on_when_all_others_have_stopped(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"validations": 5, "patience": 1, "num_train_epochs": 3})
    validation = replace(judged({"few": [0.5, 0.4, 0.3, 0.2, 0.1]}), unjudged=1)
    result = test_train_loop.run(tmp_path, inputs=two(), settings=settings, validation=validation)
    assert result.stopped_tasks == ("few",)
    assert not result.stopped_early
    assert {"many.loss"} == set(result.history[-2].metrics)


@given(error=st.floats(0, 1e6), unit=st.floats(1e-3, 1e3), scale=st.floats(1e-3, 1e3))
def test_the_unit_that_numbers_are_written_in_does_not_decide_which_weights_are_kept(
    error: float, unit: float, scale: float
) -> None:
    """Minutes or hours: an error counts in standard deviations of the training rows' numbers."""

    def quality(scale: float) -> float:
        judged = Judged("minutes", "mae", higher_is_better=False, tiebreak="mae", unit=scale * unit)
        return judged.quality({"mae": scale * error})

    assert quality(scale) == pytest.approx(quality(1.0))
    assert quality(1.0) == pytest.approx(1 / (1 + error / unit))


def test_what_is_kept_is_best_over_all_tasks_by_their_weights() -> None:
    by = (
        Judged("a", "a.f1", higher_is_better=True, tiebreak="a.loss", weight=3.0),
        Judged("b", "b.perplexity", higher_is_better=False, tiebreak="b.perplexity"),
    )
    validation = Validation(lambda model: {}, by)
    value, _ = validation.value({"a.f1": 0.8, "a.loss": 1.0, "b.perplexity": 3.0})
    assert value == pytest.approx((3 * 0.8 + 1 / 4) / 4)
    state = LoopState(key="k", step=1)
    state = validation.judge(state, {"a.f1": 0.8, "a.loss": 1.0, "b.perplexity": 3.0}, patience=2)
    state = validation.judge(
        state.model_copy(update={"step": 2}), {"a.f1": 0.7, "a.loss": 1.0, "b.perplexity": 2.9}, patience=2
    )
    assert (state.best_step, state.worse_in_a_row) == (1, {"a": 1, "b": 0})


def test_steps_of_stopped_tasks_alone_are_passed_over() -> None:
    inputs = two()
    model, weighting = fresh(), Weighting(inputs)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    made = loop._Loop(
        model, inputs, SETTINGS, parameters, make_optimizer(parameters, SETTINGS), weighting,
        total=4, watch=test_train_loop.silent,
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in parameters.items()}
    state = made.step(LoopState(key="k", stopped_tasks=("few",)), Step((13, 14), 0.1))
    assert (state.step, state.history) == (1, ())
    assert all(torch.equal(before[name], p) for name, p in parameters.items())
