"""Share of pairs in which a system prefers the answer that people preferred."""

from __future__ import annotations

from luthier.evals.metrics import accuracy
from luthier.evals.observed import Floats, Observed


def statistics(observed: Observed) -> Floats:
    """(right, 1) of each pair; shape [N, 2]."""
    return accuracy.statistics(observed)


def value(sums: Floats) -> Floats:
    """Right over all."""
    return accuracy.value(sums)
