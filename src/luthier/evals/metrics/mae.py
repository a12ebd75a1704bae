"""Mean distance of the predicted label from the expected one, in steps of their order."""

from __future__ import annotations

import numpy as np

from luthier.evals.observed import Floats, Observed


def statistics(observed: Observed) -> Floats:
    """(steps, 1) of each item; shape [N, 2]."""
    steps = np.abs(observed.degrees[:, 0] - observed.degrees[:, 1])
    return np.stack([steps, np.ones_like(steps)], axis=1)


def value(sums: Floats) -> Floats:
    """Steps over items."""
    return np.asarray(sums[..., 0] / sums[..., 1])
