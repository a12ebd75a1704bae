"""Label hygiene: names that a reader takes for the same, classes that are too rare, labels that look wrong."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.data.privacy import scrub
from luthier.data.split import lot
from luthier.errors import DataError

FOLDS = 5
FEWEST_ROWS = 50
"""Rows below which too little is left in each fold to contradict anybody."""

_WORD = re.compile(r"[^\W_]+")
_SHORTEST_SIMILAR = 6  # in shorter names one letter makes another word: 'buy' and 'bug'


LEAST_MARGIN = 0.5
"""How much likelier the other label must be; below it a weak model suspects whatever it does not understand."""


@dataclass(frozen=True)
class Suspect:
    """A row whose label a model of the other rows contradicts."""

    index: int
    suggested: str
    given_probability: float
    suggested_probability: float


@dataclass(frozen=True)
class Review:
    """What a model of the other rows says of the labels."""

    agreement: float
    """Share of the rows for which it would have chosen the given label; how far to trust it."""
    suspects: tuple[Suspect, ...]


def refuse_unknown(names: Iterable[str], labels: Collection[str], *, key: str) -> None:
    """Stop where a label to be renamed is not among those of the file.

    Raises:
        DataError: it does not occur.
    """
    for old in names:
        if old not in labels:
            known = ", ".join(scrub(label, personal=True, secrets=True) for label in sorted(labels)[:12])
            raise DataError(f"{key}: no row has the label {old!r}", way_out=f"labels are, for instance: {known}")


def similar_names(labels: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of labels that differ in case, accents, separators, a final 's', or one letter of a long name.

    Names whose digits differ are different on purpose ('level_1', 'level_2').
    """
    names = sorted(set(labels))
    folded = {name: _fold(name) for name in names}
    groups: dict[str, set[str]] = {name: {name} for name in names}
    for left, right in itertools.combinations(names, 2):
        if _similar(folded[left], folded[right]) and groups[left] is not groups[right]:
            joined = groups[left] | groups[right]
            for name in joined:
                groups[name] = joined
    return sorted({tuple(sorted(group)) for group in groups.values() if len(group) > 1})


def _fold(name: str) -> str:
    plain = "".join(char for char in unicodedata.normalize("NFKD", name) if not unicodedata.combining(char))
    return " ".join(word.removesuffix("s") for word in _WORD.findall(plain.casefold()))


def _similar(left: str, right: str) -> bool:
    if left == right:
        return bool(left)
    if re.findall(r"\d+", left) != re.findall(r"\d+", right) or min(len(left), len(right)) < _SHORTEST_SIMILAR:
        return False
    return _one_edit(*sorted((left.replace(" ", ""), right.replace(" ", "")), key=len))


def _one_edit(short: str, long: str) -> bool:
    """Whether one letter inserted, deleted or replaced turns one into the other."""
    if len(long) - len(short) > 1:
        return False
    at = next((place for place, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    return short[at:] == long[at + 1 :] or short[at + 1 :] == long[at + 1 :]


def rare_labels(counts: Mapping[str, int], *, fewer_than: int) -> dict[str, int]:
    """Label -> rows of those with too few, the rarest first."""
    return {label: n for label, n in sorted(counts.items(), key=lambda pair: (pair[1], pair[0])) if n < fewer_than}


def suspected(texts: Sequence[str], answers: Sequence[str], groups: Sequence[str], *, seed: int) -> Review | None:
    """Rows whose label is probably wrong, the surest first; confident learning with a linear model of words.

    Each row is judged by a model that has seen neither it nor its group. With p(j | x) so found and
    t_j = mean of p(j | x) over the rows labeled j, a row labeled i is suspected of j != i where j is the likeliest of
    the labels with p(j | x) >= t_j (Northcutt, Jiang, Chuang 2021, arXiv 1911.00068, equations 1 and 2), and here also
    p(j | x) - p(i | x) >= `LEAST_MARGIN`.

    Args:
        texts: N of them.
        answers: their labels.
        groups: rows of one group are judged together.
        seed: of the folds and of the model.

    Returns:
        Suspects ordered by p(suggested) - p(given); None for fewer than `FEWEST_ROWS` rows or two labels.
    """
    if len(texts) < FEWEST_ROWS or len(set(answers)) < 2:
        return None
    names = sorted(set(answers))
    given = np.array([names.index(answer) for answer in answers])
    folds = np.array([int.from_bytes(lot(seed, f"review:{group}")[:4]) % FOLDS for group in groups])
    found = _out_of_fold(texts, given, folds, classes=len(names), seed=seed)
    rows = np.arange(len(texts))
    own = found[rows, given]
    threshold = np.array([own[given == label].mean() for label in range(len(names))])
    confident = np.where(found >= threshold, found, -1.0)
    suggested = confident.argmax(axis=1)
    margin = np.where(confident[rows, suggested] >= 0, found[rows, suggested] - own, 0.0)
    wrong = np.flatnonzero(margin >= LEAST_MARGIN)
    suspects = (
        Suspect(int(row), names[suggested[row]], float(own[row]), float(found[row, suggested[row]]))
        for row in wrong[np.argsort(-margin[wrong], kind="stable")]
    )
    return Review(float(np.mean(found.argmax(axis=1) == given)), tuple(suspects))


def _out_of_fold(
    texts: Sequence[str], given: NDArray[np.int64], folds: NDArray[np.int64], *, classes: int, seed: int
) -> NDArray[np.float64]:
    """p(label | text) by a model of the other folds; a label that these do not have gets 0. Shape [N, classes]."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import SGDClassifier

    words: Any = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]+").fit_transform(
        texts
    )
    found = np.zeros((len(texts), classes))
    for fold in range(FOLDS):
        held, kept = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        if not held.size or len(set(given[kept].tolist())) < 2:
            continue
        model = SGDClassifier(loss="log_loss", alpha=1e-5, random_state=seed, max_iter=30, tol=1e-3)
        model.fit(words[kept], given[kept])
        found[np.ix_(held, model.classes_)] = model.predict_proba(words[held])
    return found
