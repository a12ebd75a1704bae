"""KTO is exact: as a float64 formula says, whatever the micro-batch and the ranks; its point is of the step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import test_train_loop
import torch
from test_train_loop import SETTINGS, relative_error
from test_train_preference import BETA, PAIRS, both, gradients, moved, open_at, tuned
from torch import Tensor

from luthier.errors import Stopped
from luthier.spec.methods import kto
from luthier.train.methods.kto import Kto
from luthier.train.probe import pace
from luthier.train.reference import Reference, Stepping, measured, on_trial, seen_pairs
from ranks_kit import together
from rows_kit import inputs_of

GOOD, BAD = 1.3, 0.6
SECTION = kto.Kto(beta=BETA, desirable_weight=GOOD, undesirable_weight=BAD)
ROWS = PAIRS[:6]


def known(folder: Path) -> Reference:
    made = Kto(SECTION)
    return open_at(folder, [*PAIRS, *(made.strange(PAIRS, place) for place in range(len(PAIRS)))], method=made)


def at_step(folder: Path, rows: list[int], *, max_tokens: int = 10_000) -> Kto:
    """The method for a step of these rows."""
    inputs = inputs_of(PAIRS, Kto(SECTION, known(folder)))
    found = measured(tuned(), inputs, rows, max_tokens=max_tokens).tasks[0].method
    assert isinstance(found, Kto)
    return found


def formula() -> tuple[dict[str, Tensor], float, float]:
    """As the paper writes it, plain transformers, one answer at a time, in float64; gradients, loss and z."""
    model = moved(test_train_loop.fresh()).double()
    made = Kto(SECTION)

    def gains(one: Any) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), model.disable_adapter():
            base = both(model, one)
        own = both(model, one)
        return own[0] - base[0], own[1] - base[1]

    with torch.no_grad():
        strange = [gain for place in range(len(ROWS)) for gain in gains(made.strange(PAIRS, place))]
    point = max(0.0, float(torch.stack(strange).mean()))
    total = torch.zeros((), dtype=torch.float64)
    for one in ROWS:
        good, bad = gains(one)
        total = total + GOOD * (1 - torch.sigmoid(BETA * (good - point))) / (2 * len(ROWS))
        total = total + BAD * (1 - torch.sigmoid(BETA * (point - bad))) / (2 * len(ROWS))
    total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}, float(total.detach()), point


def test_point_loss_and_gradients_are_those_of_a_float64_formula_whatever_the_micro_batch(tmp_path: Path) -> None:
    expected, loss, point = formula()
    for budget in (1, 60, 10_000):
        made = at_step(tmp_path, list(range(len(ROWS))), max_tokens=budget)
        assert made.point == pytest.approx(point, abs=1e-5)
        assert relative_error(gradients(made, ROWS, budget), expected) < 2e-5
    assert float(made.loss_sum(tuned(), ROWS).detach()) / len(ROWS) == pytest.approx(loss, rel=1e-5)


def test_the_point_is_never_below_zero_and_nothing_flows_back_through_it(tmp_path: Path) -> None:
    made = at_step(tmp_path, [0, 1, 2])
    assert made.point >= 0.0
    assert isinstance(made.point, float)
    for moved_by, point in ((50.0, 0.0), (-50.0, 50.0)):
        first = known(tmp_path)
        numbers = {key: (one + moved_by, other + moved_by) for key, (one, other) in first.logprobs.items()}
        inputs = inputs_of(PAIRS, Kto(SECTION, Reference(numbers, first.about, reused=True)))
        found = measured(tuned(), inputs, [0, 1], max_tokens=100).tasks[0].method
        assert isinstance(found, Kto)
        assert found.point == pytest.approx(point, abs=5.0 if point else 0.0)


def test_the_point_is_that_of_the_rows_of_the_step_in_any_order(tmp_path: Path) -> None:
    one, other, alone = (at_step(tmp_path, rows).point for rows in ([3, 1, 5], [5, 3, 1], [3]))
    assert one == other != alone
    inputs = inputs_of(PAIRS, Kto(SECTION, known(tmp_path)))
    assert measured(tuned(), inputs, [], max_tokens=100).tasks == inputs.tasks
    plain = inputs_of(PAIRS)
    assert measured(tuned(), plain, [0], max_tokens=100) is plain


def test_strange_answers_are_those_of_the_next_row_and_the_base_reads_them_once_too() -> None:
    made = Kto(SECTION)
    assert isinstance(made, Stepping)
    for place in range(len(PAIRS)):
        strange, other = made.strange(PAIRS, place), PAIRS[(place + 1) % len(PAIRS)]
        assert strange.prompt_ids == PAIRS[place].prompt_ids
        assert strange.input_ids[strange.prompt_tokens :] == other.input_ids[other.prompt_tokens :]
        assert strange.rejected_ids == other.rejected_ids
        assert sum(strange.supervised) == len(strange.input_ids) - strange.prompt_tokens
    few = SETTINGS.model_copy(update={"num_train_epochs": 1})
    assert len(seen_pairs(inputs_of(PAIRS, made), 0, few)) == 2 * len(PAIRS)


def test_answers_to_the_same_prompt_are_not_strange() -> None:
    """Ranked answers stand together, as several pairs of a prompt."""
    made = Kto(SECTION)
    rows = [PAIRS[0], replace(PAIRS[0], line=99), PAIRS[1], PAIRS[2]]
    for place in (0, 1):
        assert made.strange(rows, place).rejected_ids == PAIRS[1].rejected_ids
    assert made.strange(rows, 3).rejected_ids == PAIRS[0].rejected_ids
    assert made.strange([PAIRS[0]], 0).input_ids == PAIRS[0].input_ids  # of one prompt there is nothing else


def test_a_trial_of_the_pace_measures_each_step_as_training_does(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    whole = Kto.at_step

    def at_step(self: Kto, model: Any, strange: Any, *, max_tokens: int) -> Kto:
        asked.append(len(strange))
        return whole(self, model, strange, max_tokens=max_tokens)

    monkeypatch.setattr(Kto, "at_step", at_step)
    made = pace(tuned(), on_trial(inputs_of(PAIRS, Kto(SECTION))), SETTINGS, seconds=0.0)
    assert len(asked) == made.steps + 1  # one before the clock starts


def run(out: Path, folder: Path, **more: Any) -> Any:
    return test_train_loop.run(out, inputs=inputs_of(PAIRS, Kto(SECTION, known(folder))), **more)


def test_it_learns_and_a_stopped_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", tmp_path / "known")
    with pytest.raises(Stopped):
        run(tmp_path / "cut", tmp_path / "known", stop_after=3)
    assert run(tmp_path / "cut", tmp_path / "known").weights_sha256 == whole.weights_sha256
    assert whole.history[-1].loss < whole.history[0].loss


ONCE = SETTINGS.model_copy(update={"num_train_epochs": 1})


def on_ranks(ranks: Any, folder: str) -> list[float]:
    result = run(Path(folder) / "ranks", Path(folder) / f"known{ranks.rank}", settings=ONCE)
    return [value for event in result.history for value in (event.loss, event.grad_norm)]


def test_ranks_learn_from_the_same_point(tmp_path: Path) -> None:
    alone = run(tmp_path / "alone", tmp_path / "known", settings=ONCE).history
    expected = [value for event in alone for value in (event.loss, event.grad_norm)]
    for found in together(2, on_ranks, str(tmp_path)):
        assert found == pytest.approx(expected, rel=1e-4)
