"""Root of the mean squared distance of the predicted number from the expected one."""

from __future__ import annotations

import numpy as np

from luthier.evals.observed import Floats, Observed


def statistics(observed: Observed) -> Floats:
    """(squared distance, 1) of each item; shape [N, 2]."""
    squares = (observed.numbers[:, 0] - observed.numbers[:, 1]) ** 2
    return np.stack([squares, np.ones_like(squares)], axis=1)


def value(sums: Floats) -> Floats:
    """Root of the mean."""
    return np.asarray(np.sqrt(sums[..., 0] / sums[..., 1]))
