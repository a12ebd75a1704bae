"""`luthier doctor resume`: it kills for real, finds the same bits, and would notice others."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from command import luthier
from luthier.errors import RunError
from luthier.launch.child import StageFailed
from luthier.pipeline import doctor
from luthier.spec.launch import Launch
from luthier.store.events import EventLog
from luthier.store.runs import RunFolder
from luthier.train_records import Kill, ResumeCertificate, TrainResult
from tiny import write_model, write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="kills processes as Linux does")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    write_recipe(folder, write_model(folder / "model"), batch_size=2, save_steps=2, validations=3, patience=9)
    return folder


def test_a_killed_run_ends_in_the_same_bits_and_says_so(folder: Path) -> None:
    """With dropout, so that the random state counts too."""
    changes = ("--set", "train.num_train_epochs=1", "--set", "adapter.dropout=0.1")
    arguments = ("doctor", "resume", "tiny.yaml", "--kills", "2", *changes)
    done = luthier(*arguments, "--json", cwd=folder, LUTHIER_HOME=str(folder / "home")).succeeds()
    run = RunFolder.open("tiny", out=folder / "runs")
    certificate = ResumeCertificate.read(run.resume)
    assert json.loads(done.out)["parts"] == certificate.parts
    assert certificate.equal
    assert set(certificate.parts) == {
        *("weights", "optimizer", "random_state", "best_weights", "schedule", "rows", "adapter")
    }
    assert len(certificate.kills) == 2
    assert certificate.kills[1].writing_checkpoint
    assert done.err.count("dropout is on: every row is computed by itself") == 4  # every start says it
    assert any(kill.resumed_from for kill in certificate.kills)
    assert all(kill.resumed_from is None or kill.resumed_from <= kill.after_step + 1 for kill in certificate.kills)
    assert not list(run.path.glob(".*.tmp"))
    assert not run.train.exists()  # the run itself is as it was: prepared

    again = luthier(*arguments[:2], str(run.path), "--kills", "1000", cwd=folder, LUTHIER_HOME=str(folder / "home"))
    assert again.code == 2
    assert "the run has 32 steps, 1000 kills were asked for" in again.err
    assert "training without a kill" not in again.err  # before minutes are spent


def test_fewer_steps_than_kills_are_refused_when_a_run_ended_early_too() -> None:
    doctor._refuse_too_many(31, steps=32)
    with pytest.raises(RunError, match="the run has 32 steps, 32 kills were asked for"):
        doctor._refuse_too_many(32, steps=32)


@pytest.mark.parametrize("part", ["parameter", "optimizer", "random", "best"])
def test_a_single_bit_is_noticed(part: str, tmp_path: Path) -> None:
    tensors = {
        "parameter.a": np.ones(3, np.float32), "optimizer.exp_avg.a": np.ones(3, np.float32),
        "random.torch": np.ones(3, np.uint8), "best.a": np.ones(3, np.float32),
    }  # fmt: skip
    result = TrainResult(
        method="sft", steps=1, best_step=1, best_metric="", best_value=0.0, stopped_early=False, trained_tokens=1,
        supervised_tokens=1, trainable_parameters=3, seconds=0.0, peak_memory_gib=0.0, resumed_from=(), history=(),
        weights_sha256="w", data_sha256="d", model_sha256="m", threads=1,
    )  # fmt: skip
    runs = [RunFolder(tmp_path / name) for name in ("whole", "cut")]
    for run in runs:
        (run.train / "checkpoints/step-000001").mkdir(parents=True)
        save_file(tensors, run.train / "checkpoints/step-000001/tensors.safetensors")
    assert all(doctor._compare(runs[0], result, runs[1], result).values())
    path = runs[1].train / "checkpoints/step-000001/tensors.safetensors"
    changed = {name: tensor.copy() for name, tensor in load_file(path).items()}
    name = next(name for name in changed if name.startswith(part))
    changed[name].view(np.uint8)[0] ^= 1
    save_file(changed, path)
    found = doctor._compare(runs[0], result, runs[1], result)
    assert [name for name, equal in found.items() if not equal] == [doctor._PARTS[part]]
    other = result.model_copy(update={"weights_sha256": "other"})
    assert not doctor._compare(runs[0], result, runs[1], other)["adapter"]
    shutil.rmtree(runs[1].train)
    assert not any(doctor._compare(runs[0], result, runs[1], result).values())


class Child:
    """A training that does a step at each look, and at every third a checkpoint."""

    def __init__(self, run: RunFolder, steps: int, ends_with: int | None) -> None:
        self.run, self.steps, self.ends_with, self.step, self.returncode = run, steps, ends_with, 0, None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.step += 1
            if self.step > self.steps or self.ends_with:
                self.returncode = self.ends_with or 0
                return self.returncode
            EventLog(self.run.events).append("step", step=self.step, seconds=0.0)
            place = self.run.train / "checkpoints" / f".step-{self.step:06d}.999999999-00000000.tmp"
            for other in place.parent.glob(".step-*"):
                other.rmdir()
            if self.step % 3 == 0:
                place.mkdir(parents=True)
        return self.returncode

    def send_signal(self, number: int) -> None:
        self.returncode = -number if self.returncode is None else self.returncode

    def wait(self) -> int | None:
        return self.returncode


def killed(run: RunFolder, monkeypatch: pytest.MonkeyPatch, *, ends_with: int | None = None) -> list[Kill]:
    @contextmanager
    def training(session: object, run: RunFolder, fd: int) -> Iterator[Child]:
        EventLog(run.events).append("stage_started", stage="train")
        yield Child(run, 40, ends_with)

    monkeypatch.setattr(doctor, "_training", training)
    session: Any = SimpleNamespace(say=lambda line: None)
    return doctor._kill_again_and_again(session, run, 0, steps=40, kills=6, seed=1)


def test_a_kill_says_of_itself_alone_whether_a_checkpoint_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = killed(RunFolder(tmp_path), monkeypatch)
    assert len(kills) == 6
    assert [kill.writing_checkpoint for kill in kills] == [kill.after_step % 3 == 0 for kill in kills]
    assert all(kill.writing_checkpoint for kill in kills[1::2])


def test_a_training_that_fails_or_ends_is_no_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StageFailed, match="exit code 6"):
        killed(RunFolder(tmp_path), monkeypatch, ends_with=6)
    with pytest.raises(RunError, match="training was done before kill 3 of 4 came"):
        doctor._refuse_end(0, 2, 4)


def test_several_processes_are_not_certified_in_silence() -> None:
    doctor._refuse_several(Launch(type="local"))
    with pytest.raises(RunError, match="one process is certified, and launch asks for 2 on 1 machines"):
        doctor._refuse_several(Launch(type="torchrun", nproc_per_node=2))
