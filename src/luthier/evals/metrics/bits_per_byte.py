"""Bits that a model needs for a byte of text: what perplexity says, whatever the tokenizer cuts the text into.

BPB = nats / (ln 2 * bytes), as in Gao et al., The Pile (2020, arXiv 2101.00027), section 3.1. The token that ends a
document is counted among the nats and has no bytes.
"""

from __future__ import annotations

import math

import numpy as np

from luthier.evals.observed import Floats, Observed


def statistics(observed: Observed) -> Floats:
    """(nats, bytes) of each item; shape [N, 2]."""
    return np.stack([observed.answer_nll, observed.answer_bytes], axis=1)


def value(sums: Floats) -> Floats:
    """Nats / (ln 2 * bytes)."""
    return np.asarray(sums[..., 0] / (math.log(2) * sums[..., 1]))
