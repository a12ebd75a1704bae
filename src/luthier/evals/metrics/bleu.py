"""BLEU of a corpus, 0 to 100: how many of the runs of one to four words stand in the expected translations too.

Over all items, for n = 1 to 4, p_n = matches / n-grams of the answers, where one matches at most as often as it is
expected; BLEU = 100 * min(1, exp(1 - r / c)) * (p_1 p_2 p_3 p_4)^(1/4), with c words of answers and r expected ones
(Papineni et al. 2002, "BLEU: a method for automatic evaluation of machine translation", section 2.3). The k-th order
without a match counts 1 / (2^k n-grams) (mteval-v13a; Chen and Cherry 2014, "A systematic comparison of smoothing
techniques for sentence-level BLEU", method 3); where no word matches BLEU is 0. Words are cut as mteval-v13a does it,
case counts. Sacrebleu says the same: `SIGNATURE` (Post 2018, arXiv 1804.08771, section 3).
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from luthier.evals.observed import Floats, Observed

ORDERS = 4
SIGNATURE = "BLEU|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp"

_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
_CUTS = (
    (re.compile(r"([{-~\[-` -&(-+:-@/])"), r" \1 "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)
"""Signs are words of their own, but points and commas between digits and hyphens after none."""


def statistics(observed: Observed) -> Floats:
    """Matches for each n, n-grams of the answer for each n, its words, the expected words; shape [N, 10]."""
    pairs = zip(observed.predicted, observed.expected, strict=True)
    return np.array([_counts(words(said), words(wanted)) for said, wanted in pairs], dtype=np.float64).reshape(-1, 10)


def value(sums: Floats) -> Floats:
    """See above."""
    sums = np.asarray(sums)
    matched, ngrams = sums[..., :ORDERS], sums[..., ORDERS : 2 * ORDERS]
    said, wanted = sums[..., 2 * ORDERS], sums[..., 2 * ORDERS + 1]
    unmatched = matched == 0
    smoothed = np.where(unmatched, 0.5 ** np.cumsum(unmatched, axis=-1), matched)
    there = (matched[..., 0] > 0) & (ngrams > 0).all(axis=-1)
    precisions = np.divide(smoothed, ngrams, out=np.ones_like(smoothed), where=ngrams > 0)
    ratio = np.divide(wanted, said, out=np.ones_like(said), where=said > 0)
    brevity = np.exp(np.minimum(0.0, 1.0 - ratio))
    return np.asarray(np.where(there, 100 * brevity * np.exp(np.log(precisions).mean(axis=-1)), 0.0))


def words(text: str) -> list[str]:
    """Of a line, as mteval-v13a cuts it (NIST 2009; its international variant is another)."""
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, sign in _ENTITIES:
        text = text.replace(entity, sign)
    text = f" {text} "
    for pattern, cut in _CUTS:
        text = pattern.sub(cut, text)
    return text.split()


def _counts(said: list[str], wanted: list[str]) -> list[int]:
    matched, ngrams = [], []
    for n in range(1, ORDERS + 1):
        ours, theirs = (Counter(tuple(side[at : at + n]) for at in range(len(side) - n + 1)) for side in (said, wanted))
        matched.append((ours & theirs).total())
        ngrams.append(ours.total())
    return [*matched, *ngrams, len(said), len(wanted)]
