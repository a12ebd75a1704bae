"""Mean of the F1 of each label that occurs in the expected answers; one that is never predicted counts 0."""

from __future__ import annotations

import numpy as np

from luthier.evals.observed import Floats, Observed


def statistics(observed: Observed) -> Floats:
    """(right, predicted, expected) of each class C, as 0 or 1; shape [N, 3 C]."""
    if observed.marks.size:
        expected, given = observed.marks[:, :-1, 0], observed.marks[:, :-1, 1]
        return np.concatenate([expected * given, given, expected], axis=1)
    classes = np.array(sorted(set(observed.expected)))
    expected = np.array(observed.expected)[:, None] == classes
    predicted = np.array(observed.predicted)[:, None] == classes
    return np.concatenate([expected & predicted, predicted, expected], axis=1).astype(np.float64)


def value(sums: Floats) -> Floats:
    """Mean over the classes with expected > 0 of F1 = 2 right / (predicted + expected).

    Where no item has a label, 1 if none is given either, else 0.
    """
    right, predicted, expected = np.split(sums, 3, axis=-1)
    occurs = expected > 0
    f1 = np.divide(2 * right, predicted + expected, out=np.zeros_like(right), where=occurs)
    count = occurs.sum(axis=-1)
    nothing = np.asarray(predicted.sum(axis=-1) == 0, dtype=np.float64)
    return np.asarray(np.divide(f1.sum(axis=-1), count, out=nothing, where=count > 0))
