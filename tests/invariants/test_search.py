"""A search as a user would run it: killed on the way, gone on with, its best run evaluated once, as any run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_kill import pytestmark

from command import environment, luthier
from luthier.search_records import SearchRecord
from luthier.store.events import EventLog
from luthier.store.runs import RunFolder, weights_file
from luthier.train_records import TrainResult
from tiny import write_model, write_recipe

__all__ = ["pytestmark"]

RATES = [1e-9, 0.01, 1e30]
"""One learns nothing, one learns, and one is no longer finite."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Killed while the second trial trains, then begun again by the same command."""
    folder = tmp_path_factory.mktemp("search")
    write_recipe(folder, write_model(folder / "model"))
    tree: dict[str, Any] = yaml.safe_load((folder / "tiny.yaml").read_text())
    tree["search"] = {
        "hours": 1.0, "reduction": 2, "rungs": 2, "settings": {"train.learning_rate": {"choices": RATES}}, "trials": 4
    }  # fmt: skip
    tree["export"] = ["adapter"]
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    more = {"LUTHIER_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "luthier.cli", "run", "tiny.yaml", "--search", "--out", "out"]
    with subprocess.Popen(
        command, cwd=folder, env=environment(**more), stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        assert child.stderr is not None
        trials = 0
        for line in child.stderr:
            trials += line.startswith("--- trial")
            if trials == 2 and line.startswith("train: training"):
                break
        os.killpg(child.pid, signal.SIGKILL)
    done = luthier("run", "tiny.yaml", "--search", "--out", "out", cwd=folder, **more)
    done.decides()
    assert "goes on, 2 of 4 trials were begun" in done.err
    assert "there is nothing else to try than these 3 trials" in done.err
    return RunFolder.open("tiny", out=folder / "out")


def test_the_rate_that_learns_is_taken_and_every_file_says_what_else_was_tried(run: RunFolder) -> None:
    record = SearchRecord.read(run.search)
    assert record.taken is not None
    taken = record.trials[record.taken]
    assert taken.settings == {"train.learning_rate": 0.01}
    assert taken.run == f"tiny/{run.id}"
    assert {trial.technique for trial in record.trials} == {"lora sft"} == {record.technique}
    dropped = {trial.settings["train.learning_rate"]: trial for trial in record.trials}
    assert dropped[1e-9].dropped == "not among the best 1 of 2 on rung 1"
    assert "gradient norm nan" in dropped[1e30].failed
    assert dropped[1e30].other_seconds > 0
    assert (taken.dropped, taken.failed, taken.other_seconds) == ("", "", 0.0)
    assert [len(dropped[1e-9].rungs), len(dropped[1e30].rungs), len(taken.rungs)] == [1, 0, 2]
    assert "best of 3 trials" in run.card.read_text()
    page = run.report.read_text()
    assert "What else was tried" in page
    assert "train.learning_rate 0.01" in page


def test_test_rows_are_asked_once_after_all_rungs_and_of_the_taken_run_alone(run: RunFolder) -> None:
    record = SearchRecord.read(run.search)
    for trial in record.trials:
        other = run.path.parent / trial.run.split("/")[1]
        stages = [one["stage"] for one in EventLog.read(RunFolder(other).events) if one["kind"] == "stage_started"]
        asked = [stage for stage in stages if stage in ("evaluate", "export")]
        assert asked == (["evaluate", "export"] if trial.number == record.taken else [])
    events = EventLog.read(run.events)
    validated = [place for place, one in enumerate(events) if one["kind"] == "validation"]
    evaluated = [place for place, one in enumerate(events) if one.get("stage") == "evaluate"]
    assert len(validated) == 2
    assert max(validated) < min(evaluated)


def test_the_taken_weights_are_those_of_the_same_settings_trained_in_one_go(run: RunFolder) -> None:
    folder = run.path.parents[2]
    luthier(
        "train", "tiny.yaml", "--out", "alone", "--set", "train.learning_rate=0.01", cwd=folder,
        LUTHIER_HOME=str(folder / "home"),
    ).succeeds()  # fmt: skip
    alone = RunFolder.open("tiny", out=folder / "alone")
    assert TrainResult.read(alone.train_result).weights_sha256 == TrainResult.read(run.train_result).weights_sha256
    assert weights_file(alone.tuned).read_bytes() == weights_file(run.tuned).read_bytes()
    assert alone.id == run.id  # a trial is the same run that these settings alone would be


def test_the_same_command_tries_nothing_again(run: RunFolder) -> None:
    folder = run.path.parents[2]
    before = SearchRecord.read(run.search)
    again = luthier(
        "run", "tiny.yaml", "--search", "--out", "out", "--json", cwd=folder, LUTHIER_HOME=str(folder / "home")
    ).decides()
    assert "done before, nothing is tried again" in again.err
    assert not re.search(r"^train: training", again.err, re.MULTILINE)
    assert json.loads(again.out)["run"] == str(Path("out") / "tiny" / run.id)
    assert SearchRecord.read(run.search) == before


def test_a_budget_that_holds_no_training_begins_none(run: RunFolder) -> None:
    folder = run.path.parents[2]
    luthier(
        "run", "tiny.yaml", "--search", "--out", "short", "--set", "search.hours=1e-6", cwd=folder,
        LUTHIER_HOME=str(folder / "home"),
    ).fails(2, "search.hours 1e-06 does not hold one training of 'lora sft'", "train.max_tokens")  # fmt: skip
    assert not (folder / "short").exists()


def test_a_recipe_without_a_search_says_so(run: RunFolder) -> None:
    folder = run.path.parents[2]
    tree = yaml.safe_load((folder / "tiny.yaml").read_text())
    del tree["search"]
    (folder / "plain.yaml").write_text(yaml.safe_dump(tree))
    luthier("run", "plain.yaml", "--search", "--out", "out", cwd=folder, LUTHIER_HOME=str(folder / "home")).fails(
        2, "plain.yaml", "`search`", "there is none"
    )
