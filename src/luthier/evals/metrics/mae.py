"""Mean distance of the predicted number from the expected one; of degrees in steps of their order."""

from __future__ import annotations

import numpy as np

from luthier.evals.observed import Floats, Observed


def statistics(observed: Observed) -> Floats:
    """(distance, 1) of each item; shape [N, 2]."""
    pairs = observed.numbers if observed.numbers.size else observed.degrees
    distance = np.abs(pairs[:, 0] - pairs[:, 1])
    return np.stack([distance, np.ones_like(distance)], axis=1)


def worst(observed: Observed) -> Floats | None:
    """A label as far off as there is one; a number may be off by anything."""
    return np.array([len(observed.order) - 1.0, 1.0]) if observed.order else None


def value(sums: Floats) -> Floats:
    """Distance over items."""
    return np.asarray(sums[..., 0] / sums[..., 1])
