"""`luthier plan --probe` tries the real training on this machine; what it found is kept for later plans and the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command import call, luthier
from luthier.plan.measured import Tried
from luthier.plan_records import Plan
from luthier.store.runs import RunFolder
from luthier.train_records import TrainResult
from tiny import write_recipe

pytestmark = pytest.mark.slow


def test_a_probe_measures_and_later_plans_and_the_run_rest_on_it(tmp_path: Path, tiny_model: Path) -> None:
    write_recipe(tmp_path, tiny_model)
    home = {"LUTHIER_HOME": str(tmp_path / "home")}

    def plan(*options: str) -> Plan:
        start = luthier if "--probe" in options else call
        done = start("plan", "tiny.yaml", "--json", *options, cwd=tmp_path, **home)
        return Plan.model_validate(done.succeeds().document)

    assert plan().prediction.rates == "product"
    assert not (tmp_path / "runs").exists()
    probed = plan("--probe")
    assert probed.prediction.rates == "probe"
    run = RunFolder.open("tiny", out=tmp_path / "runs")
    tried = Tried.read(run.path / "probe.json")
    assert (tried.asked, tried.steps > 0, tried.step_seconds > 0) == ((8,), True, True)
    assert Plan.read(run.plan).prediction == probed.prediction
    assert not run.train_result.exists(), "nothing that was tried is kept"

    again = plan()
    assert again.prediction.rates == "probe"
    assert again.prediction.train_memory_gib == pytest.approx(tried.peak_memory_gib, rel=0.01)
    assert plan("--set", "train.threads=2").prediction.rates == "product", "other threads, another machine"
    other = plan("--set", "train.max_tokens=900").prediction
    assert other.rates == "probe", "the rate holds, tokens and memory are estimated"
    assert other.train_memory_gib != again.prediction.train_memory_gib

    trained = luthier("train", "tiny.yaml", cwd=tmp_path, **home).succeeds()
    assert "prepare: unchanged, not run again" in trained.err
    result = TrainResult.read(run.train_result)
    assert tried.all_computed == sum(one.computed_tokens for one in result.history if one.kind == "step")
    assert json.loads(run.plan.read_text())["prediction"]["rates"] == "probe"
