"""Python's collector of cyclic garbage, for a process that holds a million rows in no cycle."""

from __future__ import annotations

import gc

_ALLOCATIONS = 100_000
"""Objects that are made before the young are looked at; Python's usual 700 are a row or two of a part."""


def collect_seldom() -> None:
    """Look at what is made from here on less often, and at all that is there by now never again.

    Each collection walks through what is alive, and rows, which are alive to the end, are most of it. Cycles are still
    found, a little later.
    """
    gc.freeze()
    gc.set_threshold(_ALLOCATIONS, 50, 100)
