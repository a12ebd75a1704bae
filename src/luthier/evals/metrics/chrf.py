"""chrF2 of a corpus: F of character n-grams, n = 1 to 6, recall counting twice as much as precision, 0 to 100.

Over all items, for each n for which both sides have n-grams: P_n = matches / n-grams of the answers, R_n = matches /
n-grams of the expected ones; P and R are their means, and chrF2 = 100 * 5 P R / (4 P + R) (Popović 2015, "chrF:
character n-gram F-score for automatic MT evaluation", section 2, with beta 2 as in its sequel of 2016). White space is
left out, case is not. Sacrebleu says the same: `SIGNATURE` (Post 2018, arXiv 1804.08771, section 3).
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from luthier.evals.observed import Floats, Observed

ORDERS = 6
SIGNATURE = "chrF2|nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no"


def statistics(observed: Observed) -> Floats:
    """(n-grams of the answer, of the expected one, matches) for each n; shape [N, 18].

    Of an item whose expected answer is shorter than n, the answer's n-grams do not count.
    """
    pairs = zip(observed.predicted, observed.expected, strict=True)
    return np.array([_counts(said, wanted) for said, wanted in pairs], dtype=np.float64).reshape(-1, 3 * ORDERS)


def value(sums: Floats) -> Floats:
    """See above; 0 where nothing matches."""
    said, wanted, matched = np.moveaxis(np.asarray(sums).reshape(*np.shape(sums)[:-1], ORDERS, 3), -1, 0)
    both = (said > 0) & (wanted > 0)
    count = np.maximum(both.sum(axis=-1), 1)
    precision, recall = (
        np.divide(matched, part, out=np.zeros_like(matched), where=both).sum(axis=-1) / count for part in (said, wanted)
    )
    below = 4 * precision + recall
    return np.asarray(100 * np.divide(5 * precision * recall, below, out=np.zeros_like(below), where=below > 0))


def _counts(said: str, wanted: str) -> list[int]:
    texts = ["".join(text.split()) for text in (said, wanted)]
    found = []
    for n in range(1, ORDERS + 1):
        ours, theirs = (Counter(text[at : at + n] for at in range(len(text) - n + 1)) for text in texts)
        found += [ours.total() if theirs else 0, theirs.total(), (ours & theirs).total()]
    return found
