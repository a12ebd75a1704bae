"""ROUGE-L: mean over the items of the F1 of the longest common subsequence of words (Lin 2004, "ROUGE: a package for
automatic evaluation of summaries", section 3.1, with beta 1): shared / words of the answer, shared / words expected.

Words are runs of letters and digits in small letters, not stemmed. Of ASCII text that is what the package rouge-score
says of `rougeL`; it cuts words at every other letter, so that of most languages nothing would be left.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from luthier.evals.observed import Floats, Observed

_WORD = re.compile(r"[^\W_]+")


def statistics(observed: Observed) -> Floats:
    """(F1, 1) of each item; shape [N, 2]."""
    pairs = zip(observed.predicted, observed.expected, strict=True)
    scores = np.array([_f1(_words(said), _words(wanted)) for said, wanted in pairs], dtype=np.float64)
    return np.stack([scores, np.ones_like(scores)], axis=1)


def value(sums: Floats) -> Floats:
    """Mean."""
    return np.asarray(sums[..., 0] / sums[..., 1])


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _f1(said: Sequence[str], wanted: Sequence[str]) -> float:
    """0 where either has no word."""
    return 2.0 * longest_common(said, wanted) / (len(said) + len(wanted)) if said and wanted else 0.0


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Words of the longest common subsequence, in O(len(one) * len(other)) steps on bits (Hyyrö 2004, "Bit-parallel
    LCS-length computation revisited", figure 2): a bit of `row` is 0 where the length grows.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(one)) - 1
    row = full
    for word in other:
        met = row & places.get(word, 0)
        row = (row + met | row - met) & full
    return len(one) - row.bit_count()
