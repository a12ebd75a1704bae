"""Expected calibration error over B = 15 bins of equal width (Guo et al. 2017, arXiv 1706.04599, eq. 3).

sum over bins b of |right_b - sum of the probabilities of the chosen labels in b| / N. Estimated on few items it comes
out too high, since chance alone moves every bin.
"""

from __future__ import annotations

import numpy as np

from luthier.evals.observed import Floats, Observed

BINS = 15


def statistics(observed: Observed) -> Floats:
    """For each bin (right less probability) of the item in it, then 1; shape [N, B + 1]."""
    pairs = zip(observed.probabilities, observed.predicted, strict=True)
    sure = np.array([probabilities[label] for probabilities, label in pairs], dtype=np.float64)
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    found = np.zeros((len(sure), BINS + 1))
    found[np.arange(len(sure)), bins] = observed.correct - sure
    found[:, BINS] = 1.0
    return found


def value(sums: Floats) -> Floats:
    """Gaps of the bins over items."""
    return np.asarray(np.abs(sums[..., :BINS]).sum(axis=-1) / sums[..., BINS])
