"""Events of training go to MLflow, TensorBoard and the like, each in a process of its own that may crash or hang.

Training writes to a pipe and never waits: what the pipe does not take is kept up to a bound, what is beyond it is
counted and left out. A sink that fails is switched off with one warning; `events.jsonl` has every event all the same.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from luthier.errors import MissingExtra
from luthier.pipeline.sink_worker import DONE
from luthier.spec.plugins import SINKS
from luthier.spec.recipe import Recipe
from luthier.train.sinks import Start
from luthier.train_records import LossSpike, StepEvent

_MOST_WAITING_BYTES = 2**20
"""Some 3,000 events."""

_FINISH_SECONDS, _STOP_SECONDS = 60.0, 10.0
"""How long a sink is waited for when training has ended, and when it was stopped."""


def refuse_missing_sinks(recipe: Recipe) -> None:
    """What a sink needs is there before anything is written.

    Raises:
        MissingExtra: a package is not installed.
    """
    for name in recipe.train.report_to:
        facts = SINKS.get(name)
        for package in facts.packages:
            found = importlib.util.find_spec(package)
            if found is None or found.origin is None:  # a folder of that name, such as W&B's own `wandb/`, is none
                raise MissingExtra(package, extra=facts.extra, purpose=f"train.report_to {name!r}")


def parameters(recipe: Recipe) -> dict[str, str]:
    """What is tracked of a resolved recipe: how it learns, by the recipe's keys."""
    tree = recipe.model_dump(mode="json")
    found = {"model.name": recipe.model.name}
    for section in ("method", "adapter", "train"):
        for key, value in tree[section].items():
            if value is not None and key != "report_to":
                found[f"{section}.{key}"] = value if isinstance(value, str) else json.dumps(value)
    return found


class Feed:
    """The pipe to one sink."""

    def __init__(
        self, name: str, command: Sequence[str], start: Start, *, warn: Callable[[str, dict[str, object]], None]
    ) -> None:
        """Start the process; `warn` is told once, with a line and the fields of an event, should the sink fail."""
        self._name, self._warn = name, warn
        self._waiting = bytearray(start.model_dump_json().encode() + b"\n")
        self._step, self._dropped, self._dropped_at = 0, 0, 0
        self._ending = self._done = False
        folder = Path(start.folder)
        self._child: subprocess.Popen[bytes] | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "log.txt").open("ab") as log:
                self._child = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    bufsize=0,
                    env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
                    start_new_session=True,  # a signal to training's group leaves it the time to finish
                )
        except OSError as error:  # no process, no memory, no place for the log
            self._off(0, f"{type(error).__name__}: {error.strerror}")
            return
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        os.set_blocking(self._child.stdin.fileno(), False)
        os.set_blocking(self._child.stdout.fileno(), False)
        self._pump()

    def send(self, event: StepEvent | LossSpike) -> None:
        """Pass an event on, without waiting."""
        if self._child is None:
            return
        self._step = event.step
        line = event.model_dump_json().encode() + b"\n"
        if len(self._waiting) + len(line) > _MOST_WAITING_BYTES:
            self._dropped_at = self._dropped_at or event.step
            self._dropped += 1
        else:
            self._waiting += line
        self._pump()

    def end(self, *, finished: bool) -> None:
        """Tell the sink that nothing follows."""
        self._waiting += b'{"kind": "end"}\n' if finished else b""
        self._ending = True
        self._pump()

    def has_ended(self) -> bool:
        """Whether the sink is done or switched off; passes on what it takes now."""
        self._pump()
        child = self._child
        if child is None or child.returncode is None:
            return child is None
        self._child = None
        self._let_go(child)
        if self._dropped:
            self._tell(self._dropped_at, "it was too slow", goes_on=True)
        return True

    def give_up(self, seconds: float) -> None:
        """Switch off a sink that was waited for so long."""
        self._off(self._step, f"it did not finish within {seconds:.0f} s")

    def _pump(self) -> None:
        """Write what the pipe takes now, and look how the sink is."""
        child, closing = self._child, self._ending
        if child is None:
            return
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            while self._waiting:
                del self._waiting[: os.write(child.stdin.fileno(), self._waiting[:65536])]
            if closing and not child.stdin.closed:
                child.stdin.close()
        except BlockingIOError:
            pass  # the pipe is full; the next event tries again
        except BrokenPipeError:
            closing = False  # it ends or has ended, too early
            self._waiting.clear()
        code = child.poll()  # before its last word is read, which came earlier
        said = child.stdout.read() or b""
        self._done = self._done or said == DONE
        if said and said != DONE:
            last = json.loads(said.removeprefix(DONE).splitlines()[0])
            self._off(last["step"], last["error"])
        elif code is not None and not (closing and code == 0 and self._done):
            self._off(self._step, f"its process ended with exit code {code}")

    def _off(self, step: int, error: str) -> None:
        """No more of this sink."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            self._let_go(child)
        self._tell(step, error, goes_on=False)

    @staticmethod
    def _let_go(child: subprocess.Popen[bytes]) -> None:
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()

    def _tell(self, step: int, error: str, *, goes_on: bool) -> None:
        what = f"{self._dropped} events from step {step} on are not in it" if goes_on else "it is switched off"
        when = f"at step {step}" if step else "before the first step"
        self._warn(
            f"  warning: {self._name} failed {when}: {error}; {what}, training goes on and events.jsonl has all",
            {"sink": self._name, "step": step, "error": error, "dropped": self._dropped},
        )


class Feeds:
    """The sinks of a run; none where none is asked for, at no cost."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = feeds

    @classmethod
    def open(
        cls, recipe: Recipe, *, run: Path, folder: Path, offline: bool, warn: Callable[[str, dict[str, object]], None]
    ) -> Self:
        """Start the sinks that the recipe names, each with a folder of its name in `folder`."""
        feeds = []
        for name in recipe.train.report_to:
            start = Start(
                recipe=recipe.name,
                run=run.name,
                folder=str((folder / name).absolute()),
                offline=offline,
                parameters=parameters(recipe),
            )
            # -P: a folder `wandb/` or `mlflow/` in the current one would shadow the package.
            command = [sys.executable, "-P", "-m", "luthier.pipeline.sink_worker", name]
            feeds.append(Feed(name, command, start, warn=warn))
        return cls(feeds)

    def send(self, event: StepEvent | LossSpike) -> None:
        for feed in self._feeds:
            feed.send(event)

    def close(self, *, finished: bool, seconds: float | None = None) -> None:
        """Let all sinks finish at the same time, and no longer than one of them may take.

        Args:
            finished: training came to its end; it was stopped otherwise.
            seconds: in place of the usual time.
        """
        limit = seconds if seconds is not None else _FINISH_SECONDS if finished else _STOP_SECONDS
        until = time.monotonic() + limit
        for feed in self._feeds:
            feed.end(finished=finished)
        left = self._feeds
        while left := [feed for feed in left if not feed.has_ended()]:
            if time.monotonic() > until:
                for feed in left:
                    feed.give_up(limit)
                return
            time.sleep(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(finished=kind is None)
