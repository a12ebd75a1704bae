"""Several processes and machines, as a user starts them: the same course whoever dies, in the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from command import COMMAND, environment, luthier
from luthier.store.events import EventLog
from luthier.store.runs import RunFolder
from luthier.train_records import TrainResult
from ranks_kit import free_port
from tiny import write_model, write_recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="finds the processes of a run under /proc"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    write_recipe(folder, write_model(folder / "model"), batch_size=4, save_steps=4, validations=2, patience=9)
    return folder


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "train", "tiny.yaml", *arguments],
        cwd=folder,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment(LUTHIER_HOME=str(folder / "home")),
    )


def train(folder: Path, out: str, *arguments: str) -> TrainResult:
    luthier("train", "tiny.yaml", "--out", out, *arguments, cwd=folder, LUTHIER_HOME=str(folder / "home")).succeeds()
    return result(folder, out)


def result(folder: Path, out: str) -> TrainResult:
    return TrainResult.read(RunFolder.open("tiny", out=folder / out).train_result)


@pytest.fixture(scope="module")
def whole(folder: Path) -> TrainResult:
    """Two ranks that nobody disturbed."""
    return train(folder, "whole", "--nproc", "2")


def run_in(folder: Path, out: str) -> list[Path]:
    return [path for path in (folder / out).glob("tiny/*") if not path.is_symlink()]


def events(folder: Path, out: str, kind: str) -> list[dict[str, object]]:
    told = [one for run in run_in(folder, out) for one in EventLog.read(run / "events.jsonl")]
    return [one for one in told if one["kind"] == kind]


def ranks_of(folder: Path, out: str) -> dict[int, int]:
    """Rank -> process, of those that train into `out`."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
            surroundings = dict(one.partition(b"=")[::2] for one in (place / "environ").read_bytes().split(b"\0"))
            inside = (place / "cwd").readlink() == folder
        except OSError:  # it has ended
            continue
        if inside and b"_stage" in words and f"{out}/".encode() in words[-2] and b"RANK" in surroundings:
            found[int(surroundings[b"RANK"])] = int(place.name)
    return found


def wait_for(true: Callable[[], bool], process: subprocess.Popen[str], what: str) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert process.poll() is None, f"ended before {what}: {process.communicate()[1]}"
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.02)


def at_step(folder: Path, out: str, number: int) -> bool:
    return any(one["step"] >= number for one in events(folder, out, "step"))  # type: ignore[operator]


def losses(one: TrainResult) -> list[float]:
    return [event.loss for event in one.history]


def test_two_ranks_say_what_one_says_and_the_run_tells_of_them(folder: Path, whole: TrainResult) -> None:
    alone = train(folder, "alone")
    assert losses(whole) == pytest.approx(losses(alone), rel=1e-5)
    assert (alone.ranks, whole.ranks) == (1, 2)
    assert whole.history[-1].memory_gib > 1.5 * alone.history[-1].memory_gib
    assert [(one["ranks"], one["here"]) for one in events(folder, "whole", "ranks")] == [(2, 2)]
    assert len(events(folder, "whole", "step")) == whole.steps, "each step is told once"
    names = [RunFolder.open("tiny", out=folder / out).id for out in ("alone", "whole")]
    assert names[0] == names[1], "how a run is started is no part of what it is"


def test_a_killed_rank_is_started_again_and_the_run_ends_in_the_same_bits(folder: Path, whole: TrainResult) -> None:
    run = start(folder, "--out", "killed", "--nproc", "2")
    wait_for(lambda: at_step(folder, "killed", 10), run, "step 10")
    os.kill(ranks_of(folder, "killed")[1], signal.SIGKILL)
    said = run.communicate(timeout=120)[1]
    assert run.returncode == 0, said
    assert "warning: rank 1 was killed (signal 9); start 1 of 3 again" in said
    assert "error: " not in said
    assert "Traceback" not in said
    found = result(folder, "killed")
    assert found.weights_sha256 == whole.weights_sha256
    assert losses(found) == losses(whole)
    assert found.resumed_from[0] >= 8
    assert not list((folder / "killed").rglob(".step-*"))


def test_a_stop_of_one_rank_stops_all_with_a_checkpoint_and_another_number_goes_on(
    folder: Path, whole: TrainResult
) -> None:
    run = start(folder, "--out", "stopped", "--nproc", "2")
    wait_for(lambda: at_step(folder, "stopped", 6), run, "step 6")
    os.kill(ranks_of(folder, "stopped")[1], signal.SIGTERM)
    said = run.communicate(timeout=60)[1]
    assert run.returncode == 5, said
    assert said.count("error: ") == said.count("error: stopped after step") == 1
    (place,) = run_in(folder, "stopped")
    step = max(json.loads(one.read_text())["step"] for one in place.glob("train/checkpoints/*/state.json"))
    found = train(folder, "stopped")  # one process
    assert (found.resumed_from, found.ranks) == ((step,), 1)
    assert losses(found) == pytest.approx(losses(whole), rel=1e-5)


def test_two_machines_meet_and_end_in_the_same_bits(folder: Path, whole: TrainResult) -> None:
    """Two agents on this machine, which know of each other only where they meet."""
    port = free_port()
    where = ("--out", "machines", "--nnodes", "2", "--rdzv-endpoint", f"127.0.0.1:{port}")
    machines = [start(folder, *where, "--node-rank", rank) for rank in "01"]
    said = [machine.communicate(timeout=150)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert f"waiting for 127.0.0.1:{port}" in said[1]
    assert "prepare: preparing" in said[0]
    assert "prepare: " not in said[1]
    found = result(folder, "machines")
    assert (found.ranks, found.weights_sha256) == (2, whole.weights_sha256)
    assert [(one["ranks"], one["here"]) for one in events(folder, "machines", "ranks")] == [(2, 1)]


def test_divided_weights_end_in_the_losses_of_whole_ones(folder: Path, whole: TrainResult) -> None:
    found = train(folder, "divided", "--nproc", "2", "--set", "launch.strategy=fsdp")
    assert losses(found) == pytest.approx(losses(whole), rel=1e-5)
    assert [event.metrics for event in found.history] == [
        pytest.approx(event.metrics, rel=1e-4) for event in whole.history
    ]
    (run,) = run_in(folder, "divided")
    newest = max((run / "train" / "checkpoints").iterdir(), key=lambda path: path.name)
    assert len(list(newest.glob("*.safetensors"))) == 2
    assert {path.suffix for path in newest.iterdir()} == {".safetensors", ".json"}
