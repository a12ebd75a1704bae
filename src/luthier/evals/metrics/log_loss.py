"""Mean negative log of the probability that the expected label is given, in nats; infinite where one is 0."""

from __future__ import annotations

import numpy as np

from luthier.evals.observed import Floats, Observed


def statistics(observed: Observed) -> Floats:
    """(nats, 1) of each item; shape [N, 2]."""
    pairs = zip(observed.probabilities, observed.expected, strict=True)
    given = np.array([probabilities[label] for probabilities, label in pairs], dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.stack([-np.log(given), np.ones_like(given)], axis=1)


def value(sums: Floats) -> Floats:
    """Nats over items."""
    return np.asarray(sums[..., 0] / sums[..., 1])
