"""Share of items whose free greedy text equals the expected answer, white space trimmed."""

from __future__ import annotations

import dataclasses

from luthier.evals.metrics import accuracy
from luthier.evals.observed import Floats, Observed


def statistics(observed: Observed) -> Floats:
    """(equal, 1) of each item; shape [N, 2]."""
    return accuracy.statistics(dataclasses.replace(observed, predicted=observed.free_text))


def value(sums: Floats) -> Floats:
    """Equal over all."""
    return accuracy.value(sums)
