"""1 - squared distances from the predicted numbers over those from the mean of the expected ones."""

from __future__ import annotations

import numpy as np

from luthier.evals.observed import Floats, Observed


def statistics(observed: Observed) -> Floats:
    """(squared distance, number, its square, 1) of each item, numbers less their mean; shape [N, 4]."""
    expected, said = observed.numbers[:, 0], observed.numbers[:, 1]
    centred = expected - expected.mean()  # squares of large numbers that hardly differ would lose what differs
    return np.stack([(expected - said) ** 2, centred, centred**2, np.ones_like(said)], axis=1)


def value(sums: Floats) -> Floats:
    """NaN where all expected numbers are the same."""
    spread = sums[..., 2] - sums[..., 1] ** 2 / sums[..., 3]
    varies = spread > 1e-12 * sums[..., 2]
    return np.asarray(1.0 - np.divide(sums[..., 0], spread, out=np.full_like(spread, np.nan), where=varies))
