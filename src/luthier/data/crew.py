"""Work on parts of the rows, wherever it is done; the results do not depend on how many work at it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")
Row = TypeVar("Row")


class Crew(Protocol):
    """Does the same work on many parts."""

    def each(self, work: Callable[[Given], Made], parts: Iterable[Given]) -> Iterator[Made]:
        """What `work` makes of each part, in the order of the parts, which are asked for little by little.

        Args:
            work: a function of a module, or an object of such a class: it may be sent to another process, as may what
                it is given, what it makes and what it raises.
            parts: all of them, or a generator that makes them while earlier ones are worked on.
        """


class Alone:
    """One part after the other, in this process."""

    def each(self, work: Callable[[Given], Made], parts: Iterable[Given]) -> Iterator[Made]:
        """See `Crew`."""
        return map(work, parts)


def in_parts(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    """`rows` in runs of `size`; the last may be shorter."""
    return (rows[start : start + size] for start in range(0, len(rows), size))
