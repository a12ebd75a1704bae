"""What people see while a stage works: bars with rate and time left on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from luthier.plan.words import duration, loss_spike, memory
from luthier.train_records import LossSpike, StepEvent

_SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """One bar (or line) a piece of work, on standard error."""

    def __init__(self, stream: TextIO | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._stream = stream or sys.stderr
        self._bars: Bars | None = None
        self._tasks: dict[str, object] = {}
        self._began: dict[str, float] = {}
        self._first: dict[str, int] = {}
        self._said = 0.0
        self._spike = -1
        if self._stream.isatty():
            self._bars = Bars(
                TextColumn("{task.description:<34}"),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(file=self._stream),
            )

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """`done` of `total` items of `what`."""
        began = self._began.setdefault(what, time.monotonic())
        seconds = time.monotonic() - began
        self.show(what, done, total, rate=f"{done / seconds:.1f}/s" if seconds > 0.5 else "", note="")

    def step(self, event: StepEvent | LossSpike, *, total_steps: int, task: str = "") -> None:
        """A training step, a validation, or a spike (of several in a row the first); of a task that trains alone."""
        of = f" of {task}" if task else ""
        if event.kind == "spike":
            if event.step != self._spike + 1:
                self.say(f"  {loss_spike(event)}")
            self._spike = event.step
            return
        if event.kind == "validation":
            scores = ", ".join(f"{name} {value:.3f}" for name, value in event.metrics.items())
            self.say(f"  validation{of} after step {event.step}: {scores}")
            return
        rate = f"{event.num_tokens / event.seconds:.0f} tokens/s"
        reward = event.metrics.get("reward")  # where it is what is learned, the loss says nothing of progress
        note = f"loss {event.loss:.3f}" if reward is None else f"reward {reward:.3f}"
        note += f", useful {100 * event.useful_share:.0f} %" if event.computed_tokens else ""
        if self._bars is None:  # a terminal has no room for more beside a bar
            note += f", gradient {event.grad_norm:.2g}, rate {event.learning_rate:.1e}, {memory(event.memory_gib)}"
        self.show(f"training{of}", event.step, total_steps, rate=rate, note=note)

    def show(self, what: str, done: int, total: int, *, rate: str, note: str) -> None:
        """Move a bar, or say a line when the last one is old or the work is complete."""
        if self._bars is not None:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=total, rate=rate, note=note)
            self._bars.update(self._tasks[what], completed=done, total=total, rate=rate, note=note)  # type: ignore[arg-type]
            return
        began = self._began.setdefault(what, time.monotonic())
        first = self._first.setdefault(what, done)  # a resumed run begins in the middle
        now = time.monotonic()
        if done < total and now - self._said < _SECONDS_BETWEEN_LINES:
            return
        self._said = now
        left = "done" if done == total else ""
        if first < done < total and now - began > 1.0:  # before that there is nothing to judge by
            left = f"{duration((now - began) / (done - first) * (total - done))} left"
        self.say(f"  {what}: {done} of {total}" + "".join(f", {part}" for part in (rate, note, left) if part))

    def say(self, line: str) -> None:
        """A line above the bars."""
        if self._bars is not None:
            self._bars.console.print(line, markup=False, highlight=False)
        else:
            self._stream.write(line + "\n")
            self._stream.flush()
