"""Mean of what the task's rewards give for the greedy answers, 0 to 1."""

from __future__ import annotations

import numpy as np

from luthier.evals.observed import Floats, Observed


def statistics(observed: Observed) -> Floats:
    """(worth, 1) of each answer; shape [N, 2]."""
    return np.stack([observed.rewards, np.ones_like(observed.rewards)], axis=1)


def value(sums: Floats) -> Floats:
    """Worth over all."""
    return np.asarray(sums[..., 0] / sums[..., 1])
