"""F1 of all labels of all items together (Sokolova & Lapalme 2009, table 3)."""

from __future__ import annotations

import numpy as np

from luthier.evals.observed import Floats, Observed


def statistics(observed: Observed) -> Floats:
    """(right, given, expected) labels of each item; shape [N, 3]."""
    expected, given = observed.marks[..., 0], observed.marks[..., 1]
    return np.stack([(expected * given).sum(axis=1), given.sum(axis=1), expected.sum(axis=1)], axis=1)


def value(sums: Floats) -> Floats:
    """2 right / (given + expected); 1 where there is no label in either, as nothing is wrong."""
    both = sums[..., 1] + sums[..., 2]
    return np.asarray(np.divide(2 * sums[..., 0], both, out=np.ones_like(both), where=both > 0))
