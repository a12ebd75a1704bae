"""The largest micro-batch is tried first; what does not fit is said with what would."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import test_train_loop
import torch
from test_train_loop import EXAMPLES, SETTINGS, fresh

from luthier.errors import OutOfMemory
from luthier.models.packing import lay_out_rows
from luthier.train import probe as room
from luthier.train.batches import micro_batches, steps_of
from luthier.train.methods.sft import Sft
from luthier.train.probe import probe
from rows_kit import inputs_of


def test_it_is_the_largest_and_leaves_nothing_behind() -> None:
    model = fresh()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    found = probe(model, inputs_of(EXAMPLES), SETTINGS, ram_gib=None)
    sizes = []
    for step in steps_of(inputs_of(EXAMPLES), SETTINGS):
        tokens = [Sft().computed(EXAMPLES[row]) for row in step.rows]
        for part in micro_batches(step.rows, tokens, max_tokens=SETTINGS.micro_batch_tokens or 0):
            sizes.append(
                lay_out_rows([ids for row in part.rows for ids in Sft().computed(EXAMPLES[row])])[0].input_ids.numel()
            )
    assert found.tokens == max(sizes)
    assert found.peak_memory_gib > 0.05
    for name, parameter in model.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])


def test_what_does_not_fit_stops_with_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "resident_gib", lambda: 1.0)
    monkeypatch.setattr(room, "peak_memory_gib", lambda: 5.0)
    tokens = probe(fresh(), inputs_of(EXAMPLES), SETTINGS, ram_gib=5.0).tokens
    with pytest.raises(
        OutOfMemory, match=rf"\({tokens} tokens\) took 5.00 GiB, objective.budget.ram_gib is 4"
    ) as caught:
        probe(fresh(), inputs_of(EXAMPLES), SETTINGS, ram_gib=4.0)
    assert caught.value.exit_code == 6
    longest = max(len(one.input_ids) for one in EXAMPLES)
    named = re.search(r"to (\d+), which does not change", caught.value.way_out or "")
    assert (int(named[1]) if named else None) == (int(tokens * 3 / 4) if int(tokens * 3 / 4) >= longest else None)
    with pytest.raises(OutOfMemory) as hopeless:
        probe(fresh(), inputs_of(EXAMPLES), SETTINGS, ram_gib=1.5)
    assert "one row alone does not fit" in (hopeless.value.way_out or "")


def test_the_course_of_training_does_not_depend_on_it(tmp_path: test_train_loop.Path) -> None:
    model = fresh(dropout=0.2)
    probe(model, inputs_of(EXAMPLES), SETTINGS, ram_gib=None)
    tried = test_train_loop.run(tmp_path / "tried", model=model)
    assert tried.weights_sha256 == test_train_loop.run(tmp_path / "not", model=fresh(dropout=0.2)).weights_sha256


@pytest.mark.parametrize("sampler", ["balanced", "sqrt"])
def test_rows_that_a_sampler_draws_twice_are_tried_too(sampler: str) -> None:
    rows = [replace(one, answer="rare" if number % 6 == 0 else "usual") for number, one in enumerate(EXAMPLES)]
    settings = SETTINGS.model_copy(update={"sampler": sampler})
    assert any(len(set(step.rows)) < len(step.rows) for step in steps_of(inputs_of(rows), settings))
    assert probe(fresh(), inputs_of(rows), settings, ram_gib=None).tokens > 0


def test_a_single_row_above_the_budget_is_the_largest_wherever_it_stands() -> None:
    rows = [*EXAMPLES * 4, test_train_loop.example(5, length=90)]
    settings = SETTINGS.model_copy(update={"num_train_epochs": 1})
    assert probe(fresh(), inputs_of(rows), settings, ram_gib=None).tokens == len(Sft().computed(rows[-1])[0])
