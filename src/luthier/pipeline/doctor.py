"""Training killed at random moments beside the same training left alone: do both end in the same bits?"""

from __future__ import annotations

import json
import math
import platform
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors.numpy import load_file

from luthier import __version__
from luthier.data_report import DataReport
from luthier.errors import RunError
from luthier.launch.child import StageFailed, run_stage, start_stage
from luthier.pipeline.drive import Session
from luthier.spec.launch import Launch
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.events import EventLog
from luthier.store.files import beside, recover, sha256_json, write_atomic
from luthier.store.runs import RunFolder, lock
from luthier.train_records import Kill, ResumeCertificate, TrainResult

Started = TypeVar("Started")
_POLL_SECONDS = 0.002
_PARTS = {"parameter": "weights", "optimizer": "optimizer", "random": "random_state", "best": "best_weights"}


def certify_resume(session: Session, *, kills: int, seed: int) -> ResumeCertificate:
    """Train twice from the prepared data of a run and compare; the certificate is resume.json of the run folder.

    Every second kill waits for a checkpoint that is being written; the others come at a random place in a random step.

    Args:
        session: whose data is prepared.
        kills: how often the second training is killed.
        seed: of the moments.

    Raises:
        RunError: the recipe asks for several processes, the run has fewer steps than there are kills, was done before a
            kill came, or never resumed.
        StageFailed, OutOfMemory, Stopped: as training ended.
    """
    _refuse_several(session.resolved.recipe.launch)
    if session.resolved.recipe.merge is not None:
        raise RunError(
            f"{session.run.path} merges runs, and no training of it could be killed", way_out="certify one of its runs"
        )
    if session.resolved.tasks:
        raise RunError(
            f"{session.run.path} has several tasks, and this certificate is made for one",
            way_out="certify a recipe of one of its entries alone",
        )
    with lock(session.run) as fd:
        _refuse_too_many(kills, steps=_most_steps(session))
        whole_folder, cut_folder = (beside(session.run.path / name, "tmp") for name in ("whole", "killed"))
        try:
            whole, cut = _copy(session.run, whole_folder), _copy(session.run, cut_folder)
            session.say("training without a kill")
            expected = _train(session, whole, fd)
            _refuse_too_many(kills, steps=expected.steps)
            done = _kill_again_and_again(session, cut, fd, steps=expected.steps, kills=kills, seed=seed)
            recover(cut.path)
            session.say("training to the end")
            found = _train(session, cut, fd)
            shown = _resumed(done, cut)
            certificate = _certificate(session, expected, shown, _compare(whole, expected, cut, found), seed=seed)
        finally:
            for folder in (whole_folder, cut_folder):
                shutil.rmtree(folder, ignore_errors=True)
        write_atomic(session.run.resume, certificate.to_json())
        return certificate


def _most_steps(session: Session) -> int:
    """Steps of the run where neither train.max_tokens nor a metric that no longer rises ends it earlier."""
    train = session.resolved.recipe.train
    assert train.batch_size is not None and train.num_train_epochs is not None  # noqa: PT018 (resolved)
    rows = DataReport.read(session.run.data_report).splits["train"].rows
    return train.num_train_epochs * math.ceil(rows / train.batch_size)


def _refuse_several(launch: Launch) -> None:
    if launch.type == "torchrun":
        raise RunError(
            f"one process is certified, and launch asks for {launch.nproc_per_node} on {launch.nnodes} machines",
            way_out="give the recipe with --set launch.nproc_per_node=1 --set launch.nnodes=1",
        )


def _refuse_too_many(kills: int, *, steps: int) -> None:
    if steps <= kills:
        raise RunError(
            f"the run has {steps} steps, {kills} kills were asked for",
            way_out="ask for fewer with --kills, or train longer",
        )


def _certificate(
    session: Session, whole: TrainResult, kills: Sequence[Kill], parts: dict[str, bool], *, seed: int
) -> ResumeCertificate:
    """What was shown, and of what: recipe, data, base and machine."""
    return ResumeCertificate(
        recipe_sha256=sha256_json(session.resolved.recipe.model_dump(mode="json")),
        data_sha256=whole.data_sha256,
        model_sha256=whole.model_sha256,
        luthier=__version__,
        processor=platform.processor() or platform.machine(),
        threads=whole.threads,
        steps=whole.steps,
        seed=seed,
        kills=tuple(kills),
        parts=parts,
        weights_sha256=whole.weights_sha256,
    )


def _copy(run: RunFolder, folder: Path) -> RunFolder:
    """A run folder with the same recipe, model and data, in which nothing has been trained; reported to nobody."""
    copy = RunFolder(folder)
    folder.mkdir()
    for source, target in ((run.recipe, copy.recipe), (run.shape, copy.shape)):
        shutil.copyfile(source, target)
    resolved = ResolvedRecipe.read(run.resolved)
    train = resolved.recipe.train.model_copy(update={"report_to": ()})
    recipe = resolved.recipe.model_copy(update={"train": train})
    write_atomic(copy.resolved, resolved.model_copy(update={"recipe": recipe}).to_json())
    copy.data.symlink_to(run.data.resolve(), target_is_directory=True)
    if run.pruned.is_dir():
        copy.pruned.symlink_to(run.pruned.resolve(), target_is_directory=True)
    return copy


def _start(start: Callable[..., Started], session: Session, run: RunFolder, fd: int) -> Started:
    """Training, by `run_stage` or `start_stage`, and the event that parts one start from the next."""
    EventLog(run.events).append("stage_started", stage="train")
    threads = session.resolved.recipe.train.threads or 1
    return start("train", run.path, lock_fd=fd, threads=threads, offline=session.offline)


def _train(session: Session, run: RunFolder, fd: int) -> TrainResult:
    _start(run_stage, session, run, fd)
    return TrainResult.read(run.train_result)


@contextmanager
def _training(session: Session, run: RunFolder, fd: int) -> Iterator[subprocess.Popen[bytes]]:
    child = _start(start_stage, session, run, fd)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def _kill_again_and_again(
    session: Session, run: RunFolder, fd: int, *, steps: int, kills: int, seed: int
) -> list[Kill]:
    """Start training `kills` times, and kill it each time before it is done."""
    moments = random.Random(seed)
    targets = sorted(moments.sample(range(steps - 1), kills))  # the step after which each kill comes
    done = []
    for number, after in enumerate(targets):
        wait, in_checkpoint = moments.random(), number % 2 == 1
        recover(run.path)  # what the kill before left of a checkpoint
        course = _Course(run.events)
        with _training(session, run, fd) as child:
            session.say(f"kill {number + 1} of {kills}: after step {after}")
            while child.poll() is None and course.step < after:
                time.sleep(_POLL_SECONDS)
            end = time.monotonic() + wait * course.seconds
            while child.poll() is None and course.step < steps - 1:  # the last chance to wait for a checkpoint
                if _is_writing(run) if in_checkpoint else time.monotonic() >= end:
                    break
                time.sleep(_POLL_SECONDS)
            child.send_signal(signal.SIGKILL)
            if (code := child.wait()) != -signal.SIGKILL:
                _refuse_end(code, number, kills)
        done.append(Kill(after_step=course.step, writing_checkpoint=_is_writing(run), resumed_from=None))
    return done


def _refuse_end(code: int, number: int, kills: int) -> None:
    if code:
        raise StageFailed("train", code)
    raise RunError(
        f"training was done before kill {number + 1} of {kills} came",
        way_out="ask for fewer with --kills, take another --seed, or train longer",
    )


class _Course:
    """The steps that a training writes down from now on, read as they come."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = path.stat().st_size if path.exists() else 0
        self._step, self._seconds = 0, 1.0

    def _look(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            lines = file.read().splitlines(keepends=True)
        for line in lines:
            if not line.endswith(b"\n"):
                break
            self._read += len(line)
            event = json.loads(line)
            if event["kind"] == "step":
                self._step, self._seconds = event["step"], event["seconds"]

    @property
    def step(self) -> int:
        """The last step; 0 before the first."""
        self._look()
        return self._step

    @property
    def seconds(self) -> float:
        """How long the last step took; 1 before the first."""
        return self._seconds


def _resumed(kills: Sequence[Kill], run: RunFolder) -> list[Kill]:
    """The kills, and what the start after each went on from (its own first step less one).

    Raises:
        RunError: none of them went on from a checkpoint.
    """
    firsts: list[int | None] = []
    for event in EventLog.read(run.events):
        if event["kind"] == "stage_started":
            firsts.append(None)
        elif event["kind"] == "step" and firsts[-1] is None:
            firsts[-1] = event["step"] - 1
    starts = firsts[1 : len(kills) + 1]
    if not any(starts):
        raise RunError(
            "no start went on from a checkpoint, so nothing was shown about resuming",
            way_out="more checkpoints: --set train.save_steps=1; or another --seed",
        )
    return [kill.model_copy(update={"resumed_from": start}) for kill, start in zip(kills, starts, strict=True)]


def _is_writing(run: RunFolder) -> bool:
    """Whether a checkpoint stands there under its temporary name."""
    return any((run.train / "checkpoints").glob(".step-*.tmp"))


def _compare(whole: RunFolder, expected: TrainResult, cut: RunFolder, found: TrainResult) -> dict[str, bool]:
    """Part by part, whether the last checkpoints, the courses and the adapters are equal to the bit."""
    name = f"checkpoints/step-{expected.steps:06d}/tensors.safetensors"
    if not (cut.train / name).is_file():
        return dict.fromkeys((*_PARTS.values(), "schedule", "rows", "adapter"), False)
    one, other = load_file(whole.train / name), load_file(cut.train / name)
    parts = dict.fromkeys(_PARTS.values(), one.keys() == other.keys())
    for key in one.keys() & other.keys():
        part = _PARTS[key.partition(".")[0]]
        parts[part] = parts[part] and _same_bits(one[key], other[key])
    courses = [[(event.kind, event.step, event.learning_rate) for event in run.history] for run in (expected, found)]
    seen = [
        [(event.step, event.num_tokens, event.loss, event.grad_norm) for event in run.history]
        for run in (expected, found)
    ]
    return {
        **parts,
        "schedule": courses[0] == courses[1],
        "rows": seen[0] == seen[1],
        "adapter": expected.weights_sha256 == found.weights_sha256,
    }


def _same_bits(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def resume_lines(certificate: ResumeCertificate, run: RunFolder) -> list[str]:
    """What was done and found, for people."""
    lines = [
        f"killed after step {kill.after_step}{', while a checkpoint was written' if kill.writing_checkpoint else ''}, "
        + ("killed again before a step" if kill.resumed_from is None else f"went on from step {kill.resumed_from}")
        for kill in certificate.kills
    ]
    apart = [part for part, equal in certificate.parts.items() if not equal]
    verdict = (
        f"NOT the same bits: {', '.join(apart)}"
        if apart
        else f"the same bits after {len(certificate.kills)} kills in {certificate.steps} steps: "
        f"{', '.join(certificate.parts)}"
    )
    return [*lines, verdict, f"certificate: {run.resume}"]
