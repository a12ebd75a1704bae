"""Share of right labels among those given: 1 - selective risk (El-Yaniv and Wiener 2010, JMLR 11, section 2)."""

from __future__ import annotations

import numpy as np

from luthier.evals.observed import Floats, Observed


def statistics(observed: Observed) -> Floats:
    """(right and labelled, labelled) of each item; shape [N, 2]."""
    labelled = np.array(observed.answered, dtype=np.float64)
    return np.stack([labelled * observed.correct, labelled], axis=1)


def value(sums: Floats) -> Floats:
    """Right over labelled; 0 where nothing is labelled."""
    right, labelled = sums[..., 0], sums[..., 1]
    return np.asarray(np.divide(right, labelled, out=np.zeros_like(right), where=labelled > 0))
