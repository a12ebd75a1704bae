"""Answers that are several labels, or a number, as metrics count them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from luthier.data.answers import divided, joined
from luthier.evals.observed import Floats, Observed
from luthier.records import RequestContract
from luthier.rewards.number import said_number


def with_marks(observed: Observed, contract: RequestContract) -> Observed:
    """The same with what its answers come to, where they are several labels or a number; else as it is.

    A text without a number counts as the mean of the training rows, so that every system is judged on all items;
    `unsaid` tells how many these are.
    """
    if contract.tags:
        separator = contract.separator
        predicted = tuple(joined(divided(text, separator), separator) for text in observed.predicted)
        marks = _marks(observed.expected, predicted, contract)
        return replace(observed, predicted=predicted, marks=marks, free_text=())
    if contract.scale is not None:
        mean = contract.scale.mean
        pairs = [
            (float(wanted), mean if (found := said_number(text)) is None else found)
            for wanted, text in zip(observed.expected, observed.predicted, strict=True)
        ]
        return replace(observed, numbers=np.array(pairs, dtype=np.float64).reshape(-1, 2), free_text=())
    return observed


def unsaid(observed: Observed) -> int:
    """Answers without a number, where one is asked for."""
    return sum(said_number(text) is None for text in observed.predicted) if observed.numbers.size else 0


def _marks(expected: Sequence[str], predicted: Sequence[str], contract: RequestContract) -> Floats:
    wanted, given = ([divided(text, contract.separator) for text in texts] for texts in (expected, predicted))
    later = sorted({label for labels in wanted for label in labels} - set(contract.tags))
    place = {label: number for number, label in enumerate((*contract.tags, *later))}
    marks = np.zeros((len(expected), len(place) + 1, 2))
    for item, pair in enumerate(zip(wanted, given, strict=True)):
        for side, labels in enumerate(pair):
            for label in labels:
                marks[item, place.get(label, len(place)), side] += 1
    return marks
