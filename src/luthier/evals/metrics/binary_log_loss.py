"""Mean negative log of the probability of the right yes or no to each label that was learned, in nats."""

from __future__ import annotations

import numpy as np

from luthier.evals.observed import Floats, Observed

LEAST = 1e-15
"""What a probability counts for at least: one of 40 nats is 0 to a float that is near 1."""


def statistics(observed: Observed) -> Floats:
    """(nats, 1) of each item, its mean over the labels; shape [N, 2]."""
    expected = observed.marks[:, : observed.chances.shape[1], 0] > 0
    right = np.where(expected, observed.chances, 1.0 - observed.chances)
    nats = -np.log(np.maximum(right, LEAST)).mean(axis=1)
    return np.stack([nats, np.ones_like(nats)], axis=1)


def value(sums: Floats) -> Floats:
    """Nats over items."""
    return np.asarray(sums[..., 0] / sums[..., 1])
