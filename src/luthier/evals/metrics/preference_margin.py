"""Mean lead of the preferred answer, in nats of what the system goes by."""

from __future__ import annotations

import numpy as np

from luthier.evals.observed import Floats, Observed


def statistics(observed: Observed) -> Floats:
    """(lead, 1) of each pair; shape [N, 2]."""
    return np.stack([observed.leads, np.ones_like(observed.leads)], axis=1)


def value(sums: Floats) -> Floats:
    """Sum of the leads over all."""
    return np.asarray(sums[..., 0] / sums[..., 1])
