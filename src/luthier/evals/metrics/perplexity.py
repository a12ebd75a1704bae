"""exp of the mean negative log-likelihood a token: of the expected answers, or of any text."""

from __future__ import annotations

import numpy as np

from luthier.evals.observed import Floats, Observed


def statistics(observed: Observed) -> Floats:
    """(nats, tokens) of each item; shape [N, 2]."""
    return np.stack([observed.answer_nll, observed.answer_tokens], axis=1)


def value(sums: Floats) -> Floats:
    """exp(nats / tokens); infinite where that is more than a float holds."""
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(sums[..., 0] / sums[..., 1]))
