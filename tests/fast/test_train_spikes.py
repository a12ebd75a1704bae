"""A step with bad rows is found and its rows are named; plain noise is not taken for it; training is the same."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_train_loop import EXAMPLES, SETTINGS, run

from luthier.errors import Stopped
from luthier.train.batches import steps_of
from luthier.train.inputs import Inputs
from luthier.train.spikes import FEWEST, LEVEL, find_spike, usual_losses
from luthier.train_records import LossSpike, StepEvent
from rows_kit import inputs_of

LONG = SETTINGS.model_copy(update={"num_train_epochs": 14, "warmup_ratio": 0.0, "lr_scheduler_type": "constant"})
BAD_STEP = 41


def events(losses: list[float]) -> list[StepEvent]:
    return [
        StepEvent(
            kind="step",
            step=number,
            epoch=0.0,
            loss=loss,
            learning_rate=0.1,
            grad_norm=1.0,
            num_tokens=1,
            supervised_tokens=1,
            seconds=1.0,
            memory_gib=1.0,
        )
        for number, loss in enumerate(losses, start=1)
    ]


def spikes(losses: list[float]) -> list[int]:
    made = events(losses)
    return [event.step for place, event in enumerate(made) if find_spike(event, made[:place], [])]


def planted() -> tuple[Inputs, tuple[int, ...]]:
    """Many rows, of which those of one late step have answers that nothing tells, and the lines of these rows."""
    rows = [replace(EXAMPLES[number % 18], line=number + 2) for number in range(4 * 63)]
    steps = steps_of(inputs_of(rows), LONG)
    bad = steps[BAD_STEP - 1].rows
    for number in bad:
        row = rows[number]
        ids = [*row.input_ids[:-2], 300 + number % 50, 2]
        rows[number] = replace(row, input_ids=ids)
    return inputs_of(rows), tuple(sorted(rows[number].line for number in bad))


ONCE = LONG.model_copy(update={"num_train_epochs": 1})


def test_a_step_of_bad_rows_is_found_and_its_lines_are_named(tmp_path: Path) -> None:
    inputs, lines = planted()
    seen: list[StepEvent | LossSpike] = []
    result = run(tmp_path, settings=ONCE, inputs=inputs, watch=lambda event, *, total_steps: seen.append(event))
    (spike,) = result.spikes
    assert [event for event in seen if event.kind == "spike"] == [spike]
    assert (spike.step, spike.lines) == (BAD_STEP, lines)
    step = next(event for event in result.history if event.step == BAD_STEP)
    assert spike.loss == step.loss > spike.usual_high
    before = [event.loss for event in result.history][BAD_STEP - LEVEL - 1 : BAD_STEP - 1]
    assert all(spike.usual_low <= loss <= spike.usual_high for loss in before)
    assert result.steps == 63, "it is an event, not a stop"


def test_a_spike_is_found_once_whether_the_run_was_stopped_before_or_after_it(tmp_path: Path) -> None:
    inputs, _ = planted()
    whole = run(tmp_path / "whole", settings=ONCE, inputs=inputs)
    for stop in (BAD_STEP - 1, BAD_STEP):
        with pytest.raises(Stopped):
            run(tmp_path / str(stop), settings=ONCE, inputs=inputs, stop_after=stop)
        again = run(tmp_path / str(stop), settings=ONCE, inputs=inputs)
        assert again.spikes == whole.spikes
        assert again.weights_sha256 == whole.weights_sha256


def test_training_that_goes_well_has_none(tmp_path: Path) -> None:
    assert run(tmp_path, settings=LONG).spikes == ()


NOISE: dict[str, Callable[[random.Random, int], float]] = {
    "a tenth around a level": lambda rng, step: rng.gauss(2.0, 0.2),
    "factors": lambda rng, step: math.exp(rng.gauss(-1.0, 0.5)),
    "near its end, skewed": lambda rng, step: rng.expovariate(1 / 0.02),
    "falling": lambda rng, step: (3.0 * math.exp(-step / 200) + 0.5) * rng.gauss(1.0, 0.1),
    "a few tokens a step": lambda rng, step: sum(rng.expovariate(1.0) for _ in range(4)) / 4,
}


@pytest.mark.parametrize("kind", NOISE)
def test_plain_noise_raises_an_alarm_less_than_once_in_two_thousand_steps(kind: str) -> None:
    rng = random.Random(0)
    alarms = sum(len(spikes([NOISE[kind](rng, step) for step in range(1000)])) for _ in range(6))
    assert alarms <= 3, f"{alarms} in {6 * (1000 - FEWEST)} steps"


@pytest.mark.parametrize("kind", [name for name in NOISE if name != "near its end, skewed"])
def test_a_loss_of_an_untrained_model_in_the_middle_of_noise_is_found(kind: str) -> None:
    rng = random.Random(1)
    losses = [NOISE[kind](rng, step) for step in range(200)]
    losses[150] = 40.0
    assert spikes(losses) == [151]


def test_the_first_steps_raise_no_alarm_whatever_they_are() -> None:
    assert spikes([1.0] * (FEWEST - 1) + [50.0]) == []
    assert spikes([1.0] * FEWEST + [50.0]) == [FEWEST + 1]
    assert usual_losses([1.0] * (FEWEST - 1)) is None


def test_a_new_level_is_soon_usual_and_spikes_before_do_not_hide_the_next() -> None:
    assert spikes([1.0] * 60 + [4.0] * 60) == list(range(61, 62 + LEVEL // 2))
    assert spikes([1.0] * 40 + [9.0] + [1.0] * 10 + [9.0] + [1.0] * 10) == [41, 52]


def test_a_loss_that_falls_fast_does_not_hide_a_spike() -> None:
    falling = [6.0 * 0.97**step for step in range(45)]
    assert spikes(falling) == []
    assert spikes([*falling, 1.8 * falling[-1]]) == [46]


def test_changes_of_almost_nothing_do_not_count() -> None:
    assert spikes([1e-6] * 40 + [2e-3]) == []
    assert spikes([0.0] * 40 + [0.5]) == [41]


def test_validations_are_no_steps() -> None:
    made = events([1.0] * 30)
    between = [one.model_copy(update={"kind": "validation", "loss": 90.0}) for one in made]
    mixed = [event for pair in zip(made, between, strict=True) for event in pair]
    spike = find_spike(events([3.0])[0], mixed, [7, 3, 7])
    assert spike is not None
    assert spike.lines == (3, 7)
    assert spike.usual_high < 2.0


@given(st.lists(st.floats(0.0, 50.0), min_size=FEWEST, max_size=80))
def test_the_usual_range_holds_the_level_of_the_last_steps(losses: list[float]) -> None:
    usual = usual_losses(losses)
    assert usual is not None
    recent = sorted(losses[-LEVEL:])
    assert 0.0 <= usual[0] <= recent[LEVEL // 2] + 1e-9
    assert usual[1] >= recent[LEVEL // 2 - 1] - 1e-9
