"""What an answer gained is measured from the unchanged base, also where the base's own weights are changed to learn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_train_loop
import torch
from test_evals_preference import OURS, PAIRED
from test_models_tuners import STARTS_AS_BASE, attach, base, moved, of, saved
from test_train_preference import PAIRS, both, open_at

from luthier.engines.ask import Asker
from luthier.engines.transformers import TransformersEngine, base_and_tuned
from luthier.errors import Stopped
from luthier.evals.preference import PairScores, margins, read_pairs
from luthier.models.tuned import can_switch_off, is_adapted
from luthier.spec.methods import dpo
from luthier.train.methods.dpo import Dpo
from rows_kit import inputs_of

CASES = ["lora", "dora", "pissa", "pissa, rslora", "olora", "biases", "embeddings too", "ia3", "full"]
every = pytest.mark.parametrize("name", CASES)


def fresh(name: str) -> Any:
    return attach(base(name), of(name), base_name="tiny", seed=0)


def read(engine: TransformersEngine) -> PairScores:
    return read_pairs(Asker(PAIRED, OURS, engine), PAIRS)


def gained(model: Any, name: str, folder: Path) -> tuple[PairScores, np.ndarray]:
    """As a run's evaluation finds it, from what is on the disk: of the base, and by how much each pair leads."""
    base(name).save_pretrained(folder / "base")
    untuned, tuned = base_and_tuned(folder / "base", saved(model, folder / "train"))
    before = read(untuned)
    return before, margins(read(tuned), "implicit", before)


@torch.no_grad()
def plain(model: Any) -> np.ndarray:
    """Plain transformers, one sequence at a time; [N, 2]."""
    return np.array([[float(part) for part in both(model.eval(), one)] for one in PAIRS])


@every
def test_no_answer_has_gained_where_nothing_was_learned(name: str, tmp_path: Path) -> None:
    model = fresh(name).eval()
    before, leads = gained(model, name, tmp_path / "saved")
    assert before.logprobs_N2 == pytest.approx(plain(base(name)), abs=1e-4)
    assert leads == pytest.approx(np.zeros(len(PAIRS)), abs=0.0 if name in STARTS_AS_BASE else 1e-4)
    # While it trains: from where the model stood, which is the base too.
    live = TransformersEngine(model)
    assert margins(read(live), "implicit", read(live)) == pytest.approx(np.zeros(len(PAIRS)), abs=0)
    kept = open_at(tmp_path / "reference", PAIRS, model=model)
    assert kept.of(PAIRS).numpy() == pytest.approx(before.logprobs_N2, abs=1e-4)
    assert float(Dpo(dpo.Dpo(), kept).loss_sum(model, PAIRS).detach()) / len(PAIRS) == pytest.approx(
        math.log(2), abs=1e-5
    )


@every
def test_what_was_learned_is_measured_from_the_base(name: str, tmp_path: Path) -> None:
    model = moved(fresh(name))
    before, leads = gained(model, name, tmp_path)
    start, now = plain(base(name)), plain(model)
    assert before.logprobs_N2 == pytest.approx(start, abs=1e-4)
    expected = (now - start)[:, 0] - (now - start)[:, 1]
    assert leads == pytest.approx(expected, abs=2e-4)
    assert np.abs(expected).max() > 0.1


@every
def test_a_base_that_is_not_there_is_not_asked(name: str) -> None:
    """The weights under an adapter that began as a part of them are not the base's."""
    model = fresh(name)
    there = is_adapted(model) and name in STARTS_AS_BASE and name != "biases"
    assert can_switch_off(model) == there
    if there:
        TransformersEngine(model).without_adapter()
        return
    with pytest.raises(AssertionError, match="the base is not under these weights"):
        TransformersEngine(model).without_adapter()


@pytest.mark.parametrize("name", ["pissa", "full"])
def test_a_run_that_was_stopped_measures_from_where_it_began(name: str, tmp_path: Path) -> None:
    torch.use_deterministic_algorithms(True)

    def run(out: Path, **more: Any) -> Any:
        model = fresh(name)
        method = Dpo(dpo.Dpo(), open_at(out / "reference", PAIRS, model=model))
        return test_train_loop.run(out, model=model, inputs=inputs_of(PAIRS, method), **more)

    whole = run(tmp_path / "whole")
    with pytest.raises(Stopped):
        run(tmp_path / "cut", stop_after=3)
    assert run(tmp_path / "cut").weights_sha256 == whole.weights_sha256
    torch.use_deterministic_algorithms(False)
    assert whole.history[0].loss == pytest.approx(math.log(2), abs=1e-5)
    assert whole.history[-1].loss < math.log(2)
