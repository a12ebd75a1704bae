"""Share of items whose predicted label is the right one."""

from __future__ import annotations

import numpy as np

from luthier.evals.observed import Floats, Observed


def statistics(observed: Observed) -> Floats:
    """(right, 1) of each item; shape [N, 2]."""
    right = observed.correct.astype(np.float64)
    return np.stack([right, np.ones_like(right)], axis=1)


def value(sums: Floats) -> Floats:
    """Right over all."""
    return np.asarray(sums[..., 0] / sums[..., 1])
