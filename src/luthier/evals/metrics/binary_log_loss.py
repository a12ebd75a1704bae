"""Mean negative log of the probability of the right yes or no to each label that was learned, in nats."""

from __future__ import annotations

import numpy as np

from luthier.evals.observed import Floats, Observed


def statistics(observed: Observed) -> Floats:
    """(nats, 1) of each item, its mean over the labels; shape [N, 2]."""
    expected = observed.marks[:, : observed.chances.shape[1], 0] > 0
    with np.errstate(divide="ignore"):
        nats = -np.log(np.where(expected, observed.chances, 1.0 - observed.chances)).mean(axis=1)
    return np.stack([nats, np.ones_like(nats)], axis=1)


def value(sums: Floats) -> Floats:
    """Nats over items."""
    return np.asarray(sums[..., 0] / sums[..., 1])
