"""What can be had without a language model: the commonest label, and a linear model over words and letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.pipeline import FeatureUnion

from luthier.data.answers import divided, joined
from luthier.data.shards import Example
from luthier.records import RequestContract

REGULARISATIONS = (1.0, 10.0, 100.0)
"""Candidates for C, the inverse strength of the penalty."""
PENALTIES = (10.0, 1.0, 0.1)
"""Candidates for the penalty of ridge regression, the strongest first."""
_MIN_VALIDATION = 30
"""With fewer validation items their noise would choose C; folds of the training rows choose instead."""
_FOLDS = 3
_MAX_ITERATIONS = 5000


@dataclass(frozen=True)
class Baseline:
    """Predictions of a system that needs no language model."""

    title: str
    predicted: tuple[str, ...]
    """Answer to each test item."""


def majority(train: Sequence[Example], validation: Sequence[Example], test: Sequence[Example]) -> Baseline:
    """The commonest training answer (label, or set of labels) for every item; of equals the first in the alphabet."""
    counts = Counter(example.answer for example in train)
    label = min(counts, key=lambda name: (-counts[name], name))
    return Baseline(f"majority class ({label})", (label,) * len(test))


def tfidf_logreg(train: Sequence[Example], validation: Sequence[Example], test: Sequence[Example]) -> Baseline:
    """Logistic regression over TF-IDF of words and letters, fitted on the training rows only.

    C is the one of `REGULARISATIONS` with the highest accuracy on the validation rows, or, where these are few, in
    stratified folds of the training rows; of equals the stronger penalty.
    """
    texts, labels = _columns(train)
    features = _features().fit(texts)
    inputs = features.transform(texts)
    if len(validation) >= _MIN_VALIDATION:
        held_texts, held_labels = _columns(validation)
        models = {c: _fit(inputs, labels, c) for c in REGULARISATIONS}
        held_inputs = features.transform(held_texts)
        best = _best({c: _accuracy(model, held_inputs, held_labels) for c, model in models.items()})
        model = models[best]
    else:
        best = _choose_in_folds(inputs, labels)
        model = _fit(inputs, labels, best)
    predicted = model.predict(features.transform(_columns(test)[0]))
    return Baseline(f"TF-IDF + logistic regression (C = {best:g})", tuple(str(label) for label in predicted))


def mean(train: Sequence[Example], validation: Sequence[Example], test: Sequence[Example]) -> Baseline:
    """The mean of the training numbers for every item."""
    found = float(np.mean(_numbers(train)))
    return Baseline(f"mean of the training rows ({found:.4g})", (repr(found),) * len(test))


def tfidf_ridge(train: Sequence[Example], validation: Sequence[Example], test: Sequence[Example]) -> Baseline:
    """Ridge regression over TF-IDF of words and letters, fitted on the training rows only.

    The penalty is the one of `PENALTIES` with the lowest mean absolute error on the validation rows, or, where these
    are few, in folds of the training rows; of equals the stronger.
    """

    def fit(inputs: Any, alpha: float, wanted: Any) -> Any:
        return Ridge(alpha=alpha).fit(inputs, wanted)

    def miss(model: Any, inputs: Any, wanted: Any) -> float:
        return float(np.abs(model.predict(inputs) - wanted).mean())

    alpha, model, features = _chosen(train, validation, np.array(_numbers(train)), _numbers, PENALTIES, fit, miss)
    predicted = model.predict(features.transform(_columns(test)[0]))
    return Baseline(f"TF-IDF + ridge regression (penalty {alpha:g})", tuple(repr(float(value)) for value in predicted))


class _EachLabel:
    """A logistic regression a label; one that all or no rows have needs none."""

    def __init__(self, inputs: Any, marks: NDArray[np.bool_], c: float) -> None:
        self._models = [
            bool(column[0]) if column.all() or not column.any() else _fit(inputs, column, c) for column in marks.T
        ]

    def predict(self, inputs: Any) -> NDArray[np.bool_]:
        """[N, C]"""
        columns = [
            np.full(inputs.shape[0], model) if isinstance(model, bool) else model.predict(inputs)
            for model in self._models
        ]
        return np.stack(columns, axis=1).astype(np.bool_)


def tfidf_each(
    train: Sequence[Example], validation: Sequence[Example], test: Sequence[Example], *, separator: str
) -> Baseline:
    """Whether a text has a label, by a logistic regression each over TF-IDF of words and letters.

    C, one for all, is the one of `REGULARISATIONS` with the highest micro-F1 on the validation rows, or, where these
    are few, in folds of the training rows; of equals the stronger penalty.
    """
    labels = sorted({label for example in train for label in divided(example.answer, separator)})

    def marks_of(examples: Sequence[Example]) -> NDArray[np.bool_]:
        sets = [set(divided(example.answer, separator)) for example in examples]
        return np.array([[label in given for label in labels] for given in sets], dtype=np.bool_)

    def miss(model: Any, inputs: Any, wanted: NDArray[np.bool_]) -> float:
        given = model.predict(inputs)
        return -2.0 * float((given & wanted).sum()) / max(1.0, float(given.sum() + wanted.sum()))

    def fit(inputs: Any, c: float, wanted: NDArray[np.bool_]) -> _EachLabel:
        return _EachLabel(inputs, wanted, c)

    c, model, features = _chosen(train, validation, marks_of(train), marks_of, REGULARISATIONS, fit, miss)
    given = model.predict(features.transform(_columns(test)[0]))
    predicted = [joined([label for label, has in zip(labels, row, strict=True) if has], separator) for row in given]
    return Baseline(f"TF-IDF + logistic regression a label (C = {c:g})", tuple(predicted))


def _chosen(
    train: Sequence[Example],
    validation: Sequence[Example],
    wanted: Any,
    wanted_of: Callable[[Sequence[Example]], Any],
    strengths: Sequence[float],
    fit: Callable[[Any, float, Any], Any],
    miss: Callable[[Any, Any, Any], float],
) -> tuple[float, Any, Any]:
    """The strength with the lowest miss, the model with it, and its features; of equals the first strength."""
    texts, _ = _columns(train)
    features = _features().fit(texts)
    inputs = features.transform(texts)
    if len(validation) >= _MIN_VALIDATION:
        held, right = features.transform(_columns(validation)[0]), np.array(wanted_of(validation))
        misses = {one: miss(fit(inputs, one, wanted), held, right) for one in strengths}
    elif len(texts) >= _FOLDS:
        misses = dict.fromkeys(strengths, 0.0)
        for kept, left in KFold(_FOLDS, shuffle=True, random_state=0).split(texts):
            for one in strengths:
                misses[one] += miss(fit(inputs[kept], one, wanted[kept]), inputs[left], wanted[left])
    else:
        misses = {strengths[len(strengths) // 2]: 0.0}
    best = min(misses, key=lambda one: misses[one])
    return best, fit(inputs, best, wanted), features


Made = Callable[[Sequence[Example], Sequence[Example], Sequence[Example]], Baseline]
"""(training, validation, test rows) -> what a baseline predicts for the last."""


def baselines_of(contract: RequestContract) -> dict[str, Made]:
    """Those that need no language model, by name."""
    if contract.labels:
        return {"majority": majority, "tfidf_logreg": tfidf_logreg}
    if contract.tags:
        return {"majority": majority, "tfidf_logreg": partial(tfidf_each, separator=contract.separator)}
    return {"mean": mean, "tfidf_ridge": tfidf_ridge} if contract.scale is not None else {}


def _numbers(examples: Sequence[Example]) -> list[float]:
    return [float(example.answer) for example in examples]


def _columns(examples: Sequence[Example]) -> tuple[list[str], list[str]]:
    return [example.text for example in examples], [example.answer for example in examples]


def _features() -> Any:
    # The default pattern drops words of one letter and all punctuation, which often carry the label of a short text.
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]+")
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    return FeatureUnion([("words", words), ("letters", letters)])


def _fit(inputs: Any, labels: Any, c: float) -> Any:
    return LogisticRegression(C=c, max_iter=_MAX_ITERATIONS).fit(inputs, labels)


def _accuracy(model: Any, inputs: Any, labels: Sequence[str]) -> float:
    return float(np.mean(model.predict(inputs) == np.array(labels)))


def _best(accuracies: dict[float, float]) -> float:
    return min(accuracies, key=lambda c: (-accuracies[c], c))


def _choose_in_folds(inputs: Any, labels: Sequence[str]) -> float:
    """C by mean accuracy over folds; classes too rare to stand in each fold stay in training."""
    counts = Counter(labels)
    answers = np.array(labels)
    foldable = np.flatnonzero([counts[label] >= _FOLDS for label in labels])
    always = np.flatnonzero([counts[label] < _FOLDS for label in labels])
    if not foldable.size:
        return REGULARISATIONS[len(REGULARISATIONS) // 2]
    accuracies: dict[float, list[float]] = {c: [] for c in REGULARISATIONS}
    for kept, held in StratifiedKFold(_FOLDS).split(np.zeros(foldable.size), answers[foldable]):
        fitted, tested = np.concatenate([foldable[kept], always]), foldable[held]
        for c in REGULARISATIONS:
            model = _fit(inputs[fitted], answers[fitted], c)
            accuracies[c].append(_accuracy(model, inputs[tested], answers[tested]))
    return _best({c: float(np.mean(values)) for c, values in accuracies.items()})
