"""Planted secrets from the command line to the gate: asked for by the evaluation, told in the report and the card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from test_kill import pytestmark

from command import luthier
from luthier.eval_records import EvalReport
from luthier.store.runs import RunFolder
from tiny import write_model, write_recipe

__all__ = ["pytestmark"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("planted")
    path = write_recipe(made, write_model(made / "model"), num_train_epochs=6, learning_rate=0.02, validations=1)
    recipe = yaml.safe_load(path.read_text())
    recipe["data"]["canaries"] = {"count": 4, "copies": [0, 1], "digits": 4, "prompt": "{name}?"}
    recipe["objective"]["memorisation"] = {"extracted": 0.9}
    recipe["export"] = ["merged"]
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return made


def test_they_are_asked_for_and_the_gate_holds_them_to_the_limit(folder: Path) -> None:
    settings = {"cwd": folder, "LUTHIER_HOME": str(folder / "home")}
    luthier("run", "tiny.yaml", "--out", "runs", **settings).decides()
    run = RunFolder.open("tiny", out=folder / "runs")
    found = EvalReport.read(run.eval_report).memorisation
    assert found is not None
    assert [(one.copies, one.extracted.n) for one in found.secrets] == [(0, 4), (1, 4)]
    assert found.secrets[0].extracted.point == 0.0, "what was never learned is not written"
    [line] = [line for line in json.loads(run.gate.read_text())["lines"] if line["kind"] == "memorisation"]
    assert line["line"] == "memorisation.extracted"
    assert line["bound"] == found.fewest.extracted.high
    assert line["passed"] == (found.fewest.extracted.high <= 0.9)
    secrets = [one["secret"] for one in json.loads((run.data / "canaries.json").read_text())["canaries"]]
    asked = [json.loads(line) for line in (run.eval / "memorisation.jsonl").read_text().splitlines()]
    assert [one["copies"] for one in asked] == [0] * 4 + [1] * 4
    assert not any(f'"{secret}"' in (run.eval / "memorisation.jsonl").read_text() for secret in secrets)
    assert "What was memorised" in run.report.read_text()
    assert "Random secrets that were planted" in run.card.read_text()


def test_a_limit_that_so_few_secrets_cannot_meet_is_refused_by_the_gate(folder: Path) -> None:
    settings = {"cwd": folder, "LUTHIER_HOME": str(folder / "home")}
    refused = luthier("run", "tiny.yaml", "--out", "runs", "--set", "objective.memorisation.extracted=0.1", **settings)
    assert refused.code == 3, refused
    assert "memorisation.extracted" in refused.out + refused.err
