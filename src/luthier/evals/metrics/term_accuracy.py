"""Share of the glossary's terms in the questions whose accepted target stands in the answer."""

from __future__ import annotations

import numpy as np

from luthier.evals.observed import Floats, Observed


def statistics(observed: Observed) -> Floats:
    """(kept, met) occurrences of terms of each item; shape [N, 2]."""
    return observed.terms


def value(sums: Floats) -> Floats:
    """Kept over met; NaN where no term is met."""
    kept, met = sums[..., 0], sums[..., 1]
    return np.asarray(np.divide(kept, met, out=np.full_like(kept, np.nan), where=met > 0))
