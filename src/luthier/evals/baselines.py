"""What can be had without a language model: the commonest label, and a linear model over words and letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import FeatureUnion

from luthier.data.shards import Example

REGULARISATIONS = (1.0, 10.0, 100.0)
"""Candidates for C, the inverse strength of the penalty."""
_MIN_VALIDATION = 30
"""With fewer validation items their noise would choose C; folds of the training rows choose instead."""
_FOLDS = 3
_MAX_ITERATIONS = 5000


@dataclass(frozen=True)
class Baseline:
    """Predictions of a system that needs no language model."""

    title: str
    predicted: tuple[str, ...]
    """Label of each test item."""


def majority(train: Sequence[Example], validation: Sequence[Example], test: Sequence[Example]) -> Baseline:
    """The commonest training label for every item; of equals the first in the alphabet."""
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


BASELINES: dict[
    Literal["majority", "tfidf_logreg"],
    Callable[[Sequence[Example], Sequence[Example], Sequence[Example]], Baseline],
] = {"majority": majority, "tfidf_logreg": tfidf_logreg}


def _columns(examples: Sequence[Example]) -> tuple[list[str], list[str]]:
    return [example.text for example in examples], [example.answer for example in examples]


def _features() -> Any:
    # The default pattern drops words of one letter and all punctuation, which often carry the label of a short text.
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]+")
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    return FeatureUnion([("words", words), ("letters", letters)])


def _fit(inputs: Any, labels: Sequence[str], c: float) -> Any:
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
