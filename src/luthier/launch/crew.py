"""Processes beside this one that share the work on parts of the rows; they end with it."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Self, TypeVar

from luthier.errors import OutOfMemory
from luthier.launch.child import die_on_signals, die_with_parent
from luthier.launch.collector import collect_seldom
from luthier.launch.offline import guard, is_offline

Given = TypeVar("Given")
Made = TypeVar("Made")

FEWEST_PARTS = 4
"""Parts from which on other processes are started at all; fewer are done sooner here."""
_MOST_WORKERS = 8


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ProcessCrew:
    """A `luthier.data.crew.Crew` of other processes, which are started when there is enough to do for them.

    No more than two parts a worker are under way, so what is held in memory does not grow with the number of parts.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = min(processors(), _MOST_WORKERS) if workers is None else workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def each(self, work: Callable[[Given], Made], parts: Iterable[Given]) -> Iterator[Made]:
        """What `work` makes of each part, in order.

        Raises:
            OutOfMemory: a worker was killed.
        """
        rest = iter(parts)
        first = list(itertools.islice(rest, FEWEST_PARTS if self.workers > 1 else 0))
        if len(first) < FEWEST_PARTS:
            yield from map(work, itertools.chain(first, rest))
            return
        under_way: deque[Future[Made]] = deque()
        try:
            for part in itertools.chain(first, rest):
                if len(under_way) == 2 * self.workers:
                    yield under_way.popleft().result()
                under_way.append(self._started().submit(work, part))
            while under_way:
                yield under_way.popleft().result()
        except BrokenProcessPool as error:
            raise OutOfMemory(
                f"one of the {self.workers} processes that share the work was killed",
                way_out="free memory, or let fewer processors be used (taskset), and run the same command again",
            ) from error
        finally:
            for future in under_way:
                future.cancel()

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin
            )
        return self._pool


def _begin() -> None:
    """In each worker, before its first part."""
    collect_seldom()
    die_on_signals()
    die_with_parent()
    if is_offline():
        guard()
