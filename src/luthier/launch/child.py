"""Run a stage in a child process, so that an out-of-memory kill ends the child and not the run.

The child inherits the run's lock: if the parent is killed, the folder stays locked until the child is gone too, and the
child ends itself as soon as it notices (`die_with_parent`).
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Self

from luthier.errors import LuthierError, OutOfMemory, Stopped
from luthier.spec.launch import Launch

_PARENT = "LUTHIER_PARENT"
PAUSE_AFTER = "LUTHIER_PAUSE_AFTER"
"""Tells training after which of its validations to end with a checkpoint, as if it were done."""
_OF_TORCHRUN = re.compile(r"((LOCAL|GROUP|ROLE)_)?(RANK|WORLD_SIZE)|ROLE_NAME|TORCHELASTIC_\w+")
"""What torchrun tells a rank. Set around a command of ours it is meant for another program, and one process alone would
wait for ranks that nobody starts; the agent of our ranks sets it anew."""
COMPUTING = {
    "OMP_WAIT_POLICY": "PASSIVE",  # small products of two threads otherwise burn their time in spinning
    "OMP_DYNAMIC": "FALSE",
    "MKL_DYNAMIC": "FALSE",
    "MKL_CBWR": "AUTO",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it NVIDIA's library does not add in a fixed order
}
"""What the libraries below torch read when it is loaded. Dynamic threads off and CBWR are the conditions under which
Intel's library gives the same bits from run to run: threads never adjusted to load, work divided and summed in a fixed
way (Intel oneMKL Developer Guide, "Obtaining Numerically Reproducible Results": outside this mode it does not promise
that)."""


SHORT_LIVED = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "268435456"}
"""For a stage that makes many large arrays that live briefly: glibc otherwise raises the size above which it gives
memory back with each that it sees, up to this, and keeps what is free in between (mallopt(3))."""


@dataclass(frozen=True)
class StageUse:
    """What a finished stage took."""

    seconds: float
    peak_memory_gib: float
    stop_asked: bool
    """Whether a signal to stop came that the child no longer had to heed."""


class StageFailed(LuthierError):
    """A stage ended with an exit code of its own; it has already said why on standard error."""

    def __init__(self, stage: str, exit_code: int) -> None:
        super().__init__(f"stage {stage!r} ended with exit code {exit_code}")
        self.exit_code = exit_code  # type: ignore[misc]


def stage_environment(*, threads: int, offline: bool) -> dict[str, str]:
    """The environment a process of a stage computes in. Thread settings only take effect before torch is loaded."""
    given = os.environ.items()
    return {name: value for name, value in given if name != PAUSE_AFTER and not _OF_TORCHRUN.fullmatch(name)} | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        **COMPUTING,
        "HF_HUB_OFFLINE": "1",  # whatever was to be fetched has been located before a stage starts
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        _PARENT: str(os.getpid()),
        **({"LUTHIER_OFFLINE": "1"} if offline else {}),
    }


def start_stage(
    stage: str,
    run: Path,
    *,
    lock_fd: int | None,
    threads: int,
    offline: bool,
    launch: Launch | None = None,
    more: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.Popen[bytes]:
    """Start `luthier _stage STAGE RUN`, or the agent of its ranks; who starts it has to wait for it.

    Args:
        stage: name of the stage.
        run: its run folder.
        lock_fd: of the run's lock; None on a machine that only lends its processors to a run.
        threads: of all its processes on this machine together.
        offline: whether no socket may leave this machine.
        launch: how many processes; None for one.
        more: of its environment.
    """
    # -P keeps the current folder, which `-m` would search first, from shadowing modules.
    command = [sys.executable, "-P", "-m", "luthier.cli"]
    what = ["_stage", stage, str(run)]
    if launch is not None and launch.type == "torchrun":
        what = ["_ranks", stage, str(run), launch.model_dump_json()]
        threads = threads_each(threads, launch.nproc_per_node)
    return subprocess.Popen(
        [*command, *what],
        pass_fds=[] if lock_fd is None else [lock_fd],
        env=stage_environment(threads=threads, offline=offline) | dict(more),
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=2,  # our standard output is for results alone
    )


def threads_each(threads: int, processes: int) -> int:
    """Of so many threads, those of one of so many processes; at least one."""
    return max(1, threads // processes)


def run_stage(
    stage: str,
    run: Path,
    *,
    lock_fd: int | None,
    threads: int,
    offline: bool,
    launch: Launch | None = None,
    less_memory: str = "use a larger machine",
    pause_after: int | None = None,
    short_lived: bool = False,
) -> StageUse:
    """Start a stage (see `start_stage`) and wait for it. SIGTERM and SIGINT are passed on.

    Args:
        stage: its name.
        run: the run folder.
        lock_fd: holds the run's lock; the child inherits it.
        threads: to compute on.
        offline: whether the child may reach nothing.
        launch: whether others share it, see `start_stage`.
        less_memory: what would make this stage need less, for people.
        pause_after: the validation after which training is to end with a checkpoint; None for the last.
        short_lived: see `SHORT_LIVED`.

    Raises:
        OutOfMemory: the child was killed from outside, which on a machine short of memory is the kernel's doing.
        Stopped: a signal ended the child; it can be resumed.
        StageFailed: any other exit code, 5 (stopped with a checkpoint) among them; the child has said why.
        LuthierError: any other signal ended the child, which then cannot have said why.
    """
    began = time.monotonic()
    more = dict(SHORT_LIVED) if short_lived else {}
    more |= {} if pause_after is None else {PAUSE_AFTER: str(pause_after)}
    child = start_stage(stage, run, lock_fd=lock_fd, threads=threads, offline=offline, launch=launch, more=more)
    with _forward_signals(child) as forwarded:
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = code = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    if code == -signal.SIGKILL:
        raise OutOfMemory(
            f"stage {stage!r} was killed after it had used {peak:.2f} GiB; "
            "most often the kernel does this when memory runs out",
            way_out=f"{less_memory}, or free memory; the same command goes on from what is finished",
        )
    if code == -signal.SIGTERM:
        raise Stopped(f"stage {stage!r} was stopped", way_out="run the same command again to go on")
    if code < 0:  # it could not say why
        name = signal.strsignal(-code) or "unnamed"
        raise LuthierError(
            f"stage {stage!r} was ended by signal {-code} ({name}) after it had used {peak:.2f} GiB",
            way_out="run the same command again; if it ends so again, report it with events.jsonl",
        )
    if code != 0:
        raise StageFailed(stage, code)
    return StageUse(time.monotonic() - began, peak, stop_asked=forwarded.asked)


class _forward_signals:
    """While the child runs, SIGTERM and SIGINT of this process go to it as SIGTERM; this process waits for its end."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self.child = child
        self.before: dict[int, object] = {}
        self.asked = False

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self  # signals can only be handled by the main thread; tests may call from another

        def forward(number: int, frame: FrameType | None) -> None:
            self.asked = True
            self.child.send_signal(signal.SIGTERM)

        for number in (signal.SIGTERM, signal.SIGINT):
            self.before[number] = signal.signal(number, forward)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


def stop_on_signals() -> None:
    """From now on SIGTERM and SIGINT raise Stopped in the main thread, so that the process ends with its exit code."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(f"stopped by {signal.Signals(number).name}", way_out="run the same command again to go on")

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def die_on_signals() -> None:
    """SIGTERM and SIGINT end this process at once, as the system would; a stage that can do better says so itself."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def die_with_parent(*, every_seconds: float = 0.25) -> None:
    """End this process at once when its parent is gone (works on every Unix; a thread looks).

    The parent tells its id, for it may be gone before this process has come to ask; processes that this one starts are
    not told.
    """
    parent = int(os.environ.pop(_PARENT, os.getppid()))

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(every_seconds)
        os._exit(1)

    threading.Thread(target=look, daemon=True, name="die-with-parent").start()


def be_parent() -> None:
    """Let processes that this one starts die with it, through whatever hands them its environment."""
    os.environ[_PARENT] = str(os.getpid())
