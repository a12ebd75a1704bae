"""Share of the yes and no to every label that are wrong; each unknown label that is given is one more, up to all."""

from __future__ import annotations

import numpy as np

from luthier.evals.observed import Floats, Observed


def statistics(observed: Observed) -> Floats:
    """(wrong, labels) of each item; shape [N, 2]."""
    expected, given = observed.marks[..., 0], observed.marks[..., 1]
    labels = float(expected.shape[1] - 1)
    wrong = np.minimum(np.abs(expected - given).sum(axis=1), labels)
    return np.stack([wrong, np.full_like(wrong, labels)], axis=1)


def value(sums: Floats) -> Floats:
    """Wrong over all."""
    return np.asarray(sums[..., 0] / sums[..., 1])
