"""Run folders: where each file of a run stands, how a run is found by name, and who may work on it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from luthier.errors import RunError
from luthier.store.files import beside, disk_errors, process_exists, recover, sha256_file, sha256_json, write_all

LATEST = "latest"
TASKS = "tasks"
LOCK = ".lock"
_POLL_SECONDS = 0.1

ADAPTER, WEIGHTS = "adapter", "model"
"""Folder below train/ with what was learned: a PEFT adapter, or all weights as a transformers folder."""

HEADS = "heads.safetensors"
"""Beside them, the classification heads of several tasks: 'TASK.weight'."""


class _At:
    """A file or folder at a fixed place of the run folder."""

    def __init__(self, place: str) -> None:
        self._place = place

    def __get__(self, run: RunFolder, owner: type[RunFolder]) -> Path:
        return run.path / self._place


@dataclass(frozen=True)
class RunFolder:
    """`OUT/NAME/ID`, which holds everything about one run."""

    path: Path

    recipe = _At("recipe.yaml")
    resolved = _At("recipe.resolved.json")
    profile = _At("profile.json")
    shape = _At("shape.json")
    plan = _At("plan.json")
    data = _At("data")
    data_report = _At("data/report.json")
    contract = _At("data/contract.json")
    goldens = _At("data/goldens.json")
    pruned = _At("pruned")
    pruned_model = _At("pruned/model")
    pruned_result = _At("pruned/result.json")
    train = _At("train")
    train_result = _At("train/result.json")
    eval = _At("eval")
    eval_report = _At("eval/report.json")
    artifacts = _At("artifacts")
    artifacts_index = _At("artifacts/index.json")
    gate = _At("gate.json")
    gate_signature = _At("gate.json.sig")
    request = _At("request.json")
    request_signature = _At("request.json.sig")
    approval = _At("approval.json")
    approval_signature = _At("approval.json.sig")
    approvers = _At("approvers.txt")
    search = _At("search.json")
    seeds = _At("seeds.json")
    seeds_page = _At("seeds.html")
    card = _At("card.md")
    lineage = _At("lineage.json")
    report = _At("report.html")
    events = _At("events.jsonl")
    stages = _At("stages")
    resume = _At("resume.json")
    lock_file = _At(LOCK)

    @property
    def name(self) -> str:
        return self.whole.path.parent.name

    @property
    def id(self) -> str:
        return self.path.relative_to(self.whole.path.parent).as_posix()

    @property
    def whole(self) -> Self:
        """The run that this folder is a task of; itself where it is a run."""
        run = type(self)(self.path.parent.parent)
        return run if self.path.parent.name == TASKS and run.resolved.is_file() else self

    def task(self, name: str) -> Self:
        """What a run of several tasks holds of one of them: laid out as a run is; what all share is linked."""
        return type(self)(self.path / TASKS / name)

    def tasks(self, names: Iterable[str | None]) -> list[Self]:
        """The folders of tasks of these names, where they are several; one task alone has the run to itself."""
        known = [name for name in names if name is not None]
        return [self.task(name) for name in known] if len(known) > 1 else [self]

    def link_shared(self, *, trains_alone: bool = False) -> None:
        """Let the folder of a task show what its run holds for all tasks; a training of its own it holds itself."""
        whole = self.whole
        for shared in (whole.shape, *(() if trains_alone else (whole.train,)), whole.artifacts):
            link = self.path / shared.name
            if not link.is_symlink():
                link.symlink_to(Path("../..") / shared.name)

    @property
    def trains_alone(self) -> bool:
        """Whether this is a task of a run that has an adapter of its own, so that its training is laid out here."""
        return self.whole != self and not self.train.is_symlink()

    @property
    def tuned(self) -> Path:
        """Folder with what was learned; that of an adapter where nothing was learned yet."""
        return tuned_in(self.train)

    @classmethod
    def create(cls, out: Path, name: str, id: str) -> Self:
        """Make `out/name/id`, or take it up again, and let `out/name/latest` point to it.

        Raises:
            DiskFull: no space.
            RunError: the place may not be written.
        """
        run = cls(out / name / id)
        latest = out / name / LATEST
        temporary = beside(latest, "tmp")
        with disk_errors(run.path):
            run.path.mkdir(parents=True, exist_ok=True)
            temporary.symlink_to(id, target_is_directory=True)
            try:
                temporary.replace(latest)
            finally:
                temporary.unlink(missing_ok=True)
        return run

    @classmethod
    def open(cls, where: str, *, out: Path = Path("runs")) -> Self:
        """Find a run by its folder ('runs/NAME/ID'), by the folder above, by 'NAME' or by 'NAME/ID'.

        Raises:
            RunError: there is none; the message lists those that exist.
        """
        for path in (Path(where), out / where):
            if (path / LATEST).is_dir():
                path = path / LATEST
            run = cls(path.resolve())
            if run.recipe.is_file() or run.resolved.is_file():
                return run
        known = sorted(f"{latest.parent.name}/{id}" for latest in out.glob(f"*/{LATEST}") for id in _ids(latest.parent))
        raise RunError(
            f"{where!r} is not a run: neither {where} nor {out / where} holds a recipe",
            way_out=f"runs in {out}: {', '.join(known) or 'none, `luthier run` makes one'}",
        )


def tuned_in(train: Path) -> Path:
    """Folder with what was learned, below `train`; that of an adapter where nothing was learned yet."""
    return train / (WEIGHTS if (train / WEIGHTS).is_dir() else ADAPTER)


def weights_file(tuned: Path) -> Path:
    """The tensors in a folder with what was learned."""
    return tuned / ("model.safetensors" if tuned.name == WEIGHTS else "adapter_model.safetensors")


def config_file(tuned: Path) -> Path:
    """What says how the tensors there are read, e.g. an adapter's scale."""
    return tuned / ("config.json" if tuned.name == WEIGHTS else "adapter_config.json")


def weights_sha256(tuned: Path) -> str:
    """Hash of all tensors in a folder with what was learned."""
    own, heads = sha256_file(weights_file(tuned)), tuned / HEADS
    return sha256_json([own, sha256_file(heads)]) if heads.is_file() else own


def _ids(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_dir() and not path.is_symlink() and path.name[0] != "."]


@contextmanager
def lock(run: RunFolder, *, wait_seconds: float = 10) -> Iterator[int]:
    """Hold the run folder for this process, and clear away what a killed one left in it.

    Yields:
        The descriptor of the lock. A child that gets it through `pass_fds` holds the lock too, and goes on holding it
        when its parent is killed: the lock is free when the last of them has ended.

    Raises:
        RunError: another process still holds it after `wait_seconds`; the message names that process.
    """
    with lock_folder(run.path, wait_seconds=wait_seconds) as fd:
        os.set_inheritable(fd, True)
        yield fd


@contextmanager
def lock_folder(folder: Path, *, wait_seconds: float) -> Iterator[int]:
    """The same for any folder that one process at a time writes to; no child inherits the descriptor."""
    file = folder / LOCK
    with disk_errors(file):
        fd = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _wait_for(fd, folder, time.monotonic() + wait_seconds)
        with disk_errors(file):
            os.ftruncate(fd, 0)
            write_all(fd, f"{os.getpid()}\n".encode())
        recover(folder)
        yield fd
    finally:
        os.close(fd)  # never LOCK_UN, which would take the lock from a child that is still at work


def _wait_for(fd: int, folder: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise _in_use(fd, folder) from None
        time.sleep(_POLL_SECONDS)


def _in_use(fd: int, folder: Path) -> RunError:
    owner = int(os.pread(fd, 32, 0) or b"0")  # 0: it has the lock and has not yet written its id
    pids = [owner] if owner and process_exists(owner) else _holders(fd)
    named = ", ".join(map(str, pids))
    if pids:
        who, way_out = f"process {named}", f"wait until it has ended, or stop it: kill {named.replace(',', '')}"
    else:
        who, way_out = "another process", "wait until it has ended, or stop it"
    return RunError(f"{folder} is in use by {who}", way_out=f"{way_out}; then run the same command again")


def _holders(fd: int) -> list[int]:
    """Processes that hold the lock of `fd` through an inherited descriptor, where the system tells (Linux)."""
    identity = os.fstat(fd)
    pids = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.path.samestat(link.stat(), identity):
                info = link.parent.with_name("fdinfo") / link.name
                if "FLOCK" in info.read_text():
                    pids.add(int(link.parts[2]))
        except OSError:  # the process has ended meanwhile, or is another user's
            continue
    return sorted(pids)
