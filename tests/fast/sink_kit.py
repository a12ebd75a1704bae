"""Sinks that misbehave, as `python sink_kit.py NAME STEP SECONDS`: what stands behind the pipe of a feed in tests.

SECONDS is how long it waits for its folder.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from luthier.pipeline import sink_worker
from luthier.train.sinks import Start
from luthier.train_records import StepEvent


class Listing:
    """Writes the steps it was given to a file, and does `odd` at one of them."""

    def __init__(self, start: Start, odd: Callable[[], None], at: int) -> None:
        self.file, self.odd, self.at = Path(start.folder) / "steps.txt", odd, at

    def write(self, event: StepEvent) -> None:
        if event.step == self.at:
            self.odd()
        with self.file.open("a") as file:
            file.write(f"{event.kind} {event.step}\n")

    def close(self, *, finished: bool) -> None:
        with self.file.open("a") as file:
            file.write(f"finished {finished}\n")


def full() -> None:
    raise OSError(28, "No space left on device, mail ana@example.org or see https://user:hunter2@host/x")


ODD: dict[str, Callable[[], None]] = {
    "works": lambda: None,
    "raises": full,
    "hangs": lambda: time.sleep(1000),
    "is slow": lambda: time.sleep(1.5),
    "exits": lambda: os._exit(3),
    "leaves": lambda: sys.exit(0),
    "crashes": os.abort,
}


if __name__ == "__main__":
    name, at, waits = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    sink_worker.main(lambda start: Listing(start, ODD[name], at), wait_seconds=waits)
