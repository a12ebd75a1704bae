"""Sinks see every event once, and whatever a sink does, training ends with the same bits and does not wait."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sink_kit
from test_train_loop import run

from luthier.errors import MissingExtra, RecipeError
from luthier.pipeline import sinks
from luthier.pipeline.sinks import Feed, Feeds, parameters, refuse_missing_sinks
from luthier.spec.load import load_recipe
from luthier.spec.plugins import SINKS
from luthier.spec.recipe import Recipe
from luthier.train.sinks import Start, load_sink, numbers
from luthier.train_records import LossSpike, StepEvent

RECIPE: dict[str, Any] = {
    "name": "support",
    "model": {"name": "owner/m"},
    "data": {"train": [{"path": "data.csv"}]},
    "adapter": {"type": "lora", "r": 4},
}


def recipe(*report_to: str) -> Recipe:
    return Recipe.model_validate({**RECIPE, "train": {"seed": 3, "report_to": list(report_to)}})


def event(step: int, kind: str = "step", **metrics: float) -> StepEvent:
    return StepEvent.model_validate(
        {
            "kind": kind,
            "step": step,
            "epoch": step / 10,
            "loss": 4.0 / step,
            "learning_rate": 0.1,
            "grad_norm": 1.5,
            "num_tokens": 400,
            "supervised_tokens": 9,
            "computed_tokens": 90,
            "seconds": 2.0,
            "memory_gib": 1.0,
            "metrics": metrics,
        }
    )


class Warnings(list[tuple[str, dict[str, object]]]):
    def __call__(self, line: str, fields: dict[str, object]) -> None:
        self.append((line, fields))


def feed(kind: str, folder: Path, warn: Warnings, *, at: int = 0, waits: float = 60.0) -> Feed:
    """The feed of a sink that does something odd at a step."""
    start = Start(recipe="r", run="x", folder=str(folder), offline=True, parameters={})
    command = [sys.executable, "-P", str(Path(sink_kit.__file__)), kind, str(at), str(waits)]
    return Feed("other", command, start, warn=warn)


def steps(folder: Path) -> list[str]:
    return (folder / "steps.txt").read_text().splitlines()


def test_every_event_arrives_in_order_and_the_end_is_told(tmp_path: Path) -> None:
    warn = Warnings()
    for finished in (False, True):
        one = feed("works", tmp_path / str(finished), warn)
        for step in range(1, 400):
            one.send(event(step))
        one.send(event(399, "validation", f1=float("nan")))
        one.send(LossSpike(step=399, loss=9.0, usual_low=0.1, usual_high=1.0, lines=(3, 4)))
        Feeds([one]).close(finished=finished)
        told = [f"step {step}" for step in range(1, 400)]
        assert steps(tmp_path / str(finished)) == [*told, "validation 399", "spike 399", f"finished {finished}"]
    assert warn == []


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("raises", "OSError: [Errno 28] No space left on device"),
        ("exits", "its process ended with exit code 3"),
        ("leaves", "SystemExit|ended with exit code 0"),
        ("crashes", "its process ended with exit code -6"),
    ],
)
def test_training_is_the_same_to_the_bit_when_a_sink_fails_at_a_random_step(
    tmp_path: Path, kind: str, error: str
) -> None:
    at, warn = random.randint(1, 10), Warnings()
    one, seen = feed(kind, tmp_path / "sink", warn, at=at), list[int]()

    def watch(event: StepEvent, *, total_steps: int) -> None:
        seen.append(event.step)
        one.send(event)

    result = run(tmp_path / "with", watch=watch)
    Feeds([one]).close(finished=True)
    assert result.weights_sha256 == run(tmp_path / "without").weights_sha256
    assert seen == list(range(1, 11))
    assert len(warn) == 1, "one warning, whatever follows"
    line, fields = warn[0]
    assert line.startswith("  warning: other failed ")
    assert "it is switched off, training goes on and events.jsonl has all" in line
    assert any(part in str(fields["error"]) for part in error.split("|"))
    assert fields["sink"] == "other"
    if kind == "raises":
        assert fields["step"] == at
        assert f"at step {at}:" in line
        assert steps(tmp_path / "sink") == [f"step {step}" for step in range(1, at)] if at > 1 else True


@pytest.mark.parametrize("kind", ["leaves", "exits", "raises"])
def test_a_sink_that_fails_at_the_last_event_is_not_taken_for_one_that_is_done(tmp_path: Path, kind: str) -> None:
    warn = Warnings()
    one = feed(kind, tmp_path, warn, at=1)
    one.send(event(1))
    Feeds([one]).close(finished=True)
    assert len(warn) == 1


def test_what_a_sink_says_of_its_error_holds_no_password_and_no_address(tmp_path: Path) -> None:
    warn = Warnings()
    one = feed("raises", tmp_path, warn, at=1)
    one.send(event(1))
    Feeds([one]).close(finished=True)
    said = warn[0][0] + json.dumps(warn[0][1]) + (tmp_path / "log.txt").read_text()
    assert "No space left" in said
    assert "Traceback" in said
    assert "hunter2" not in said
    assert "ana@example.org" not in said


def test_a_sink_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "_MOST_WAITING_BYTES", 20_000)
    warn = Warnings()
    one, longest = feed("hangs", tmp_path, warn, at=2), 0.0
    for step in range(1, 3000):
        began = time.perf_counter()
        one.send(event(step))
        longest = max(longest, time.perf_counter() - began)
    assert longest < 0.5
    began = time.perf_counter()
    Feeds([one]).close(finished=True, seconds=1.0)
    assert time.perf_counter() - began < 3.0
    assert len(warn) == 1
    assert "it did not finish within 1 s; it is switched off" in warn[0][0]
    assert int(str(warn[0][1]["dropped"])) > 1000, "what found no place is counted"


def test_events_that_a_slow_sink_had_no_place_for_are_counted_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "_MOST_WAITING_BYTES", 20_000)
    warn = Warnings()
    one = feed("is slow", tmp_path, warn, at=1)
    for step in range(1, 2000):
        one.send(event(step))
    Feeds([one]).close(finished=True)
    written = len(steps(tmp_path)) - 1
    (line, fields), *more = warn
    assert not more
    assert int(str(fields["dropped"])) + written == 1999
    assert f"it was too slow; {fields['dropped']} events from step {fields['step']} on are not in it" in line


def test_a_sink_whose_process_cannot_start_is_off(tmp_path: Path) -> None:
    warn = Warnings()
    start = Start(recipe="r", run="x", folder=str(tmp_path), offline=True, parameters={})
    one = Feed("other", [str(tmp_path / "nothing")], start, warn=warn)
    one.send(event(1))
    Feeds([one]).close(finished=True)
    assert [line for line, _ in warn] == [
        "  warning: other failed before the first step: FileNotFoundError: No such file or directory; "
        "it is switched off, training goes on and events.jsonl has all"
    ]


def test_a_sink_that_hangs_ends_by_itself_when_the_run_was_killed(tmp_path: Path) -> None:
    """Its parent is killed and cannot end it; a thread of its own sees that."""
    code = (
        "import sys, os, time; sys.path.insert(0, {here!r}); from luthier.pipeline import sink_worker;"
        "sink_worker._ALONE_SECONDS = 1; import sink_kit; from pathlib import Path;"
        "Path({pid!r}).write_text(str(os.getpid()));"
        "sink_worker.main(lambda start: sink_kit.Listing(start, sink_kit.ODD['hangs'], 1))"
    ).format(here=str(Path(__file__).parent), pid=str(tmp_path / "pid"))
    parent = os.fork()
    if parent == 0:
        start = Start(recipe="r", run="x", folder=str(tmp_path), offline=True, parameters={})
        one = Feed("other", [sys.executable, "-c", code], start, warn=Warnings())
        one.send(event(1))
        while not (tmp_path / "pid").exists():
            time.sleep(0.05)
        os._exit(0)
    os.waitpid(parent, 0)
    child = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 20
    while time.monotonic() < until and Path(f"/proc/{child}").exists():
        time.sleep(0.1)
    assert not Path(f"/proc/{child}").exists()


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not true():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.02)


def test_a_sink_waits_until_that_of_a_killed_trainer_has_left_its_folder(tmp_path: Path) -> None:
    lock, warn = tmp_path / ".lock", Warnings()
    before = feed("hangs", tmp_path, warn, at=1)
    before.send(event(1))
    wait_until(lambda: lock.is_file() and lock.read_text().endswith("\n"))
    holder = int(lock.read_text())
    one = feed("works", tmp_path, warn)
    one.send(event(2))

    late = feed("works", tmp_path, warn, waits=0.1)
    late.send(event(3))
    Feeds([late]).close(finished=True)
    ((line, _),) = warn
    assert line.startswith("  warning: other failed before the first step: RunError: ")
    assert f"is in use by process {holder}; it is switched off" in line
    assert not (tmp_path / "steps.txt").exists(), "who waits has not begun"

    os.kill(holder, signal.SIGKILL)
    Feeds([one]).close(finished=True)
    assert steps(tmp_path) == ["step 2", "finished True"]
    assert len(warn) == 1
    Feeds([before]).close(finished=False)


def test_all_sinks_that_hang_together_are_waited_for_no_longer_than_one(tmp_path: Path) -> None:
    """The one that works is behind two that hang, and has all the same whatever its pipe had no place for."""
    warn = Warnings()
    feeds = [feed("hangs", tmp_path / str(place), warn, at=1) for place in range(2)]
    feeds.append(feed("works", tmp_path / "works", warn))
    for one in feeds:
        for step in range(1, 2000):
            one.send(event(step))
    wait_until(lambda: all((tmp_path / name / ".lock").is_file() for name in ("0", "1", "works")))
    began = time.monotonic()
    Feeds(feeds).close(finished=True, seconds=4.0)
    assert time.monotonic() - began < 7.0, "four seconds for all"
    assert [fields["error"] for _, fields in warn] == ["it did not finish within 4 s"] * 2
    assert len(steps(tmp_path / "works")) == 2000


# --- the recipe -------------------------------------------------------------------------------------------------------


def test_parameters_are_the_resolved_keys_of_training() -> None:
    given = parameters(recipe("mlflow"))
    assert given["train.seed"] == "3"
    assert given["adapter.r"] == "4"
    assert given["adapter.type"] == "lora"
    assert given["model.name"] == "owner/m"
    assert not any("report_to" in key or key.startswith("data") for key in given)


def test_a_missing_package_is_said_when_the_recipe_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda name: None if name == "wandb" else real(name))
    refuse_missing_sinks(recipe())
    with pytest.raises(MissingExtra, match=r"train.report_to 'wandb' needs the package 'wandb'") as caught:
        refuse_missing_sinks(recipe("wandb"))
    assert caught.value.way_out == "pip install 'luthier[wandb]'"


def test_the_folder_that_wandb_leaves_behind_is_not_taken_for_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package has another name here, one that is installed nowhere, so that the test can tell them apart."""
    facts = dataclasses.replace(SINKS.get("wandb"), packages=("stand_in_for_wandb",))
    monkeypatch.setitem(SINKS.entries(), "wandb", facts)
    package = tmp_path / "stand_in_for_wandb"
    package.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingExtra, match="'stand_in_for_wandb'"):
        refuse_missing_sinks(recipe("wandb"))
    (package / "__init__.py").touch()
    importlib.invalidate_caches()
    refuse_missing_sinks(recipe("wandb"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[tensorbord]", r"train.report_to.0.*|unknown sink 'tensorbord'"),
        ("[mlflow, mlflow]", r"train.report_to: a name stands twice in \['mlflow', 'mlflow'\]"),
    ],
)
def test_a_name_that_is_unknown_or_stands_twice_is_refused(tmp_path: Path, value: str, message: str) -> None:
    text = f"name: r\nmodel: owner/m\ndata: {{train: data.csv}}\ntrain: {{report_to: {value}}}\n"
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(tmp_path / "r.yaml")
    assert "keep one" in str(caught.value) or "mlflow, tensorboard, wandb" in str(caught.value)


def test_one_name_and_none_are_taken_as_other_trainers_take_them(tmp_path: Path) -> None:
    for value, expected in (("tensorboard", ("tensorboard",)), ("none", ()), ("[]", ())):
        text = f"name: r\nmodel: owner/m\ndata: {{train: data.csv}}\ntrain: {{report_to: {value}}}\n"
        (tmp_path / "r.yaml").write_text(text)
        assert load_recipe(tmp_path / "r.yaml").recipe.train.report_to == expected


def test_an_unknown_sink_is_not_loaded() -> None:
    with pytest.raises(RecipeError, match="unknown sink 'x'"):
        load_sink("x")


# --- the real libraries -----------------------------------------------------------------------------------------------


def two_sessions(name: str, folder: Path) -> Warnings:
    """Ten steps; the run is killed after the sixth and goes on from a checkpoint after the fourth."""
    warn = Warnings()
    for number, (first, last) in enumerate([(1, 6), (5, 10)]):
        with Feeds.open(recipe(name), run=Path("runs/support/abc"), folder=folder, offline=True, warn=warn) as feeds:
            for step in range(first, last + 1):
                feeds.send(event(step))
            if number:
                feeds.send(event(10, "validation", macro_f1=0.5))
    return warn


EXPECTED = {step: 4.0 / step for step in range(1, 11)}


def test_tensorboard_reads_every_step_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert two_sessions("tensorboard", tmp_path) == []
    shown = EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    losses = shown.Scalars("train/loss")
    assert {one.step: one.value for one in losses} == pytest.approx(EXPECTED, rel=1e-6)
    assert len(losses) == 10
    assert set(shown.Tags()["scalars"]) == {*numbers(event(1)), "validation/macro_f1"}


@pytest.mark.slow
def test_mlflow_has_every_step_once_in_one_run(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="the extra 'mlflow' is not installed")
    pytest.importorskip("alembic", reason="the extra 'mlflow' is not installed")
    assert two_sessions("mlflow", tmp_path) == []
    # Its own reader, in a process of its own: the library sets up logging and warns of what it imports.
    store = f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}"
    run_id = json.loads((tmp_path / "mlflow" / "run.json").read_text())["run_id"]
    read = (
        "import json, sys; from mlflow import MlflowClient; client = MlflowClient(tracking_uri=sys.argv[1]);"
        "(one,) = client.search_runs([client.get_experiment_by_name('support').experiment_id]);"
        "losses = [[m.step, m.value] for m in client.get_metric_history(sys.argv[2], 'train/loss')];"
        "print(json.dumps([one.info.status, one.info.run_name, one.data.params, one.data.metrics, losses]))"
    )
    told = subprocess.run(
        [sys.executable, "-P", "-c", read, store, run_id],
        env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        check=True,
    )
    status, name, given, last, losses = json.loads(told.stdout)
    assert (status, name) == ("FINISHED", "abc")
    assert len(losses) == 10
    assert dict(losses) == pytest.approx(EXPECTED)
    assert last == pytest.approx(numbers(event(10)) | {"validation/macro_f1": 0.5})
    assert given == parameters(recipe("mlflow"))


def test_wandb_keeps_an_offline_run_in_the_run_folder(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="the extra 'wandb' is not installed")
    assert two_sessions("wandb", tmp_path) == []
    files = sorted((tmp_path / "wandb").rglob("*.wandb"))
    kept = json.loads((tmp_path / "wandb" / "run.json").read_text())
    assert kept["logged"] == {"step": 10, "validation": 10}
    assert [file.stem for file in files] == [f"run-{kept['id']}"] * 2
    assert all(b"train/loss" in file.read_bytes() for file in files)
