"""Share of items that get a label (El-Yaniv and Wiener 2010, JMLR 11, section 2)."""

from __future__ import annotations

import numpy as np

from luthier.evals.observed import Floats, Observed


def statistics(observed: Observed) -> Floats:
    """(labelled, 1) of each item; shape [N, 2]."""
    labelled = np.array(observed.answered, dtype=np.float64)
    return np.stack([labelled, np.ones_like(labelled)], axis=1)


def value(sums: Floats) -> Floats:
    """Labelled over all."""
    return np.asarray(sums[..., 0] / sums[..., 1])
