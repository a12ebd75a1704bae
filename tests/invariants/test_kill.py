"""`kill -9` of `luthier run` at any moment, then the same command: the same weights, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from command import COMMAND, environment, luthier
from luthier.eval_records import EvalReport
from luthier.store.events import EventLog
from luthier.store.files import sha256_files
from luthier.store.runs import RunFolder
from luthier.train_records import TrainResult
from tiny import write_model, write_recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="finds the child of a process under /proc"),
]

Moment = Callable[[Path], bool]
"""Given the run folder, whether now is the time."""


@dataclass(frozen=True)
class Bench:
    """A folder with a recipe of many small steps, and the run that nobody disturbed."""

    folder: Path
    whole: RunFolder
    command: tuple[str, ...] = ("run", "tiny.yaml")

    def start(self, out: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*COMMAND, *self.command, "--out", out],
            cwd=self.folder,
            text=True,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=environment(LUTHIER_HOME=str(self.folder / "home")),
        )

    def run(self, out: str) -> Path:
        return self.folder / out / self.whole.name / self.whole.id

    def finish(self, out: str) -> str:
        done = luthier("run", "tiny.yaml", "--out", out, cwd=self.folder, LUTHIER_HOME=str(self.folder / "home"))
        return done.decides().err


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    write_recipe(folder, write_model(folder / "model"), batch_size=2, save_steps=2, validations=3, patience=9)
    recipe = folder / "tiny.yaml"
    recipe.write_text(recipe.read_text().replace("resamples: 200", "resamples: 200\n  baselines: [base]"))
    done = luthier("run", "tiny.yaml", "--out", "whole", cwd=folder, LUTHIER_HOME=str(folder / "home"))
    done.decides()
    whole = RunFolder.open("tiny", out=folder / "whole")
    assert TrainResult.read(whole.train_result).steps >= 60
    return Bench(folder, whole)


def during(stage: str) -> Moment:
    """As soon as the stage has been started."""
    return lambda run: any(
        event["kind"] == "stage_started" and event["stage"] == stage for event in EventLog.read(run / "events.jsonl")
    )


def at_step(number: int) -> Moment:
    return lambda run: any(
        event["kind"] == "step" and event["step"] >= number for event in EventLog.read(run / "events.jsonl")
    )


def saved(number: int) -> Moment:
    """At a step, with a checkpoint to go on from: it is written beside training, late on a busy machine."""
    return lambda run: (
        at_step(number)(run)
        and any(not path.name.startswith(".") for path in (run / "train" / "checkpoints").glob("*"))
    )


def writing(where: str, *, after: Moment) -> Moment:
    """While something stands there under its temporary name."""
    return lambda run: after(run) and any(path.name.endswith(".tmp") for path in (run / where).glob(".*"))


def children(pid: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(true: Callable[[], bool], *, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what} did not come within {seconds} s"
        time.sleep(0.002)


def interrupt(bench: Bench, out: str, moment: Moment, victims: str) -> tuple[int, str]:
    """Start the run, kill -9 `victims` (parent, child, both) at `moment`; returns the parent's exit code and words."""
    parent = bench.start(out)
    try:
        wait_for(
            lambda: parent.poll() is not None or (moment(bench.run(out)) and bool(children(parent.pid))),
            seconds=120,
            what="the moment",
        )
        assert parent.poll() is None, f"the run ended before the moment: {parent.communicate()[1]}"
        (child,) = children(parent.pid)
        if victims in ("parent", "both"):
            os.kill(parent.pid, signal.SIGKILL)
        if victims in ("child", "both"):
            os.kill(child, signal.SIGKILL)
        wait_for(lambda: not alive(child), seconds=10, what="the end of the child, whose parent is gone,")
        said = parent.communicate(timeout=30)[1]
    finally:
        parent.kill()
    return parent.returncode, said


def same(bench: Bench, out: str) -> None:
    """The finished run in `out` says what the undisturbed one says, and nothing of the killed ones lies about."""
    run = RunFolder(bench.run(out))
    assert sha256_files(run.train / "adapter") == sha256_files(bench.whole.train / "adapter")
    assert sha256_files(run.artifacts / "merged") == sha256_files(bench.whole.artifacts / "merged")
    ours, theirs = TrainResult.read(run.train_result), TrainResult.read(bench.whole.train_result)
    assert [(event.kind, event.step, event.loss, event.metrics) for event in ours.history] == [
        (event.kind, event.step, event.loss, event.metrics) for event in theirs.history
    ]
    assert (ours.best_step, ours.best_value, ours.trained_tokens) == (
        theirs.best_step,
        theirs.best_value,
        theirs.trained_tokens,
    )
    ours_judged, theirs_judged = EvalReport.read(run.eval_report), EvalReport.read(bench.whole.eval_report)
    for judged in ("differences", "general", "classes", "confusion"):
        assert str(getattr(ours_judged, judged)) == str(getattr(theirs_judged, judged))  # NaN is not itself
    assert (run.eval / "predictions.jsonl").read_bytes() == (bench.whole.eval / "predictions.jsonl").read_bytes()
    assert not [path for path in run.path.rglob(".*") if path.suffix in (".tmp", ".old")]
    assert run.gate.is_file()
    assert run.report.is_file()


def stop(bench: Bench, out: str, moment: Moment) -> int:
    """SIGTERM to the run at `moment`: it ends with 5 and a checkpoint, whose step is returned."""
    parent = bench.start(out)
    try:
        wait_for(lambda: moment(bench.run(out)), seconds=120, what="the moment")
        parent.send_signal(signal.SIGTERM)
        said = parent.communicate(timeout=60)[1]
    finally:
        parent.kill()
    assert parent.returncode == 5
    assert said.count("error: stopped after step") == said.count("error: ") == 1
    assert "run the same command again to go on" in said
    assert "Traceback" not in said
    newest = max((bench.run(out) / "train" / "checkpoints").iterdir(), key=lambda path: path.name)
    return int(json.loads((newest / "state.json").read_text())["step"])


def test_killed_and_stopped_again_and_again_at_every_stage(bench: Bench) -> None:
    """One run, ended at seven moments, goes on each time and ends with the bits of the run that was left in peace."""
    out = "killed"
    code, _ = interrupt(bench, out, during("prepare"), "parent")
    assert code == -signal.SIGKILL
    code, said = interrupt(bench, out, saved(5), "child")
    assert code == 6
    assert "stage 'train' was killed" in said
    assert "the same command goes on" in said
    assert "Traceback" not in said
    interrupt(bench, out, writing("train/checkpoints", after=at_step(18)), "both")
    step = stop(bench, out, at_step(30))
    assert step >= 30
    interrupt(bench, out, at_step(step + 8), "parent")
    interrupt(bench, out, during("evaluate"), "child")
    interrupt(bench, out, during("export"), "both")
    words = bench.finish(out)
    for stage in ("prepare", "train", "evaluate"):
        assert f"{stage}: unchanged, not run again" in words
    same(bench, out)
    resumed = TrainResult.read(RunFolder(bench.run(out)).train_result).resumed_from
    assert len(resumed) == 4
    assert resumed[0] >= 4
    assert resumed[1] >= 16
    assert resumed[2] == step
    assert resumed[3] >= step + 6
