"""A greedy soup: runs join the mean one after the other, the best first, where they make it no worse.

Wortsman et al. 2022, arXiv 2203.05482, recipe 1. What is better is decided on validation rows, never on those of test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from luthier.errors import RunError

Value = tuple[float, float]
"""(quality, what decides between equal ones), higher is better for both: as training chooses among its own weights."""


@dataclass(frozen=True)
class Tried:
    """A run, when its turn came."""

    place: int
    """Of the run among all."""
    value: float
    """The metric of the mean with it; of the first, of itself."""
    weight: float
    """In the soup; 0 where it made the mean worse."""


def greedy_soup(count: int, judge: Callable[[Sequence[int]], Value], *, sign: float = 1.0) -> tuple[Tried, ...]:
    """Choose among `count` runs.

    Args:
        count: of runs; of equal ones the first named is tried first.
        judge: value of the mean of the runs at these places.
        sign: what turns a quality into the metric that is told.

    Returns:
        All runs in the order in which they were tried.

    Raises:
        RunError: no run has a value.
    """
    alone = [judge([place]) for place in range(count)]
    if all(math.isnan(quality) for quality, _ in alone):
        raise RunError(
            "a greedy soup chooses by validation, and the metric is not a number for any of the runs",
            way_out="give validation rows that it can be measured on, or take merge.method linear",
        )
    order = sorted(range(count), key=lambda place: _rank(alone[place]), reverse=True)
    chosen, best = [order[0]], alone[order[0]]
    values = {order[0]: best}
    for place in order[1:]:
        values[place] = value = judge([*chosen, place])
        if _rank(value) >= _rank(best):
            chosen, best = [*chosen, place], value
    return tuple(
        Tried(place, sign * values[place][0], 1.0 / len(chosen) if place in chosen else 0.0) for place in order
    )


def _rank(value: Value) -> Value:
    """For comparing: what is not a number is worse than every number."""
    quality, decides = (-math.inf if math.isnan(one) else one for one in value)
    return quality, decides
