"""Mean over the items of the F1 of an answer's words against those of the expected one (Rajpurkar et al. 2016, arXiv
1606.05250, section 6.1): small letters, without punctuation and English articles, each word as often as it is said.
"""

from __future__ import annotations

import re
import string
from collections import Counter

import numpy as np

from luthier.evals.observed import Floats, Observed

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_MARKS = str.maketrans("", "", string.punctuation)


def statistics(observed: Observed) -> Floats:
    """(F1, 1) of each item; shape [N, 2]."""
    pairs = zip(observed.predicted, observed.expected, strict=True)
    scores = np.array([_f1(_words(said), _words(wanted)) for said, wanted in pairs], dtype=np.float64)
    return np.stack([scores, np.ones_like(scores)], axis=1)


def value(sums: Floats) -> Floats:
    """Mean."""
    return np.asarray(sums[..., 0] / sums[..., 1])


def _words(text: str) -> Counter[str]:
    return Counter(_ARTICLES.sub(" ", text.lower().translate(_MARKS)).split())


def _f1(said: Counter[str], wanted: Counter[str]) -> float:
    """1 where neither has a word, as where an answer is only an article or a mark."""
    if not said or not wanted:
        return float(said == wanted)
    return 2.0 * (said & wanted).total() / (said.total() + wanted.total())
