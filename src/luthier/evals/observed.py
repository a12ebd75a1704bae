"""What one system said to N items, beside what was expected: all that a metric may look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def _nothing() -> Floats:
    return np.empty(0, dtype=np.float64)


@dataclass(frozen=True)
class Observed:
    """One system on N items, in the order of the split; a field that was not measured is empty."""

    expected: tuple[str, ...]
    predicted: tuple[str, ...]
    """Chosen label, or generated text where the task has no closed set."""
    probabilities: tuple[dict[str, float], ...] = ()
    free_text: tuple[str, ...] = ()
    """Greedy text; for a closed task the label that it is, '' where it is none."""
    answer_nll: Floats = field(default_factory=_nothing)
    """[N] negative log-likelihood in nats of the expected answer, its end of turn included."""
    answer_tokens: Floats = field(default_factory=_nothing)
    """[N] tokens that `answer_nll` sums over."""
    answered: tuple[bool, ...] = ()
    """Whether a label is given; of a system that may abstain."""
    prefers: bool = False
    """Whether each item was a choice between two answers; `predicted` is then the one that was preferred."""
    leads: Floats = field(default_factory=_nothing)
    """[N] by how much the expected answer led, in nats; of models that prefer."""
    answer_bytes: Floats = field(default_factory=_nothing)
    """[N] of documents: bytes of the text of these tokens, in UTF-8."""
    order: tuple[str, ...] = ()
    """The labels from the lowest to the highest, where they are degrees."""
    terms: Floats = field(default_factory=_nothing)
    """[N, 2] terms of a glossary that the answer keeps, and those that it should keep."""
    rewards: Floats = field(default_factory=_nothing)
    """[N] what the answer is worth by the task's rewards, 0 to 1."""

    translates: bool = False
    """Whether answers are translations."""
    marks: Floats = field(default_factory=_nothing)
    """[N, C + 1, 2] where a text may have several labels: how often each is expected, and given; the last column is for
    labels that are given and are neither learned nor expected anywhere."""
    chances: Floats = field(default_factory=_nothing)
    """[N, C'] probability of each label that was learned, which come first among the C."""
    numbers: Floats = field(default_factory=_nothing)
    """[N, 2] the expected number and the predicted one."""

    def __post_init__(self) -> None:
        sizes = {len(self.expected), len(self.predicted)}
        sizes |= {len(part) for part in (self.probabilities, self.free_text, self.answered) if part}
        numbers = (self.answer_nll, self.answer_tokens, self.leads, self.answer_bytes)
        sizes |= {
            len(part)
            for part in (*numbers, self.terms, self.rewards, self.marks, self.chances, self.numbers)
            if part.size
        }
        assert sizes == {len(self.expected)}, f"fields of different lengths: {sizes}"

    def only(self, places: Sequence[int]) -> Observed:
        """The same system on the items at these places."""

        def of(part: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(part[place] for place in places) if part else ()

        def numbers(part: Floats) -> Floats:
            return part[list(places)] if part.size else part

        return Observed(
            of(self.expected), of(self.predicted), of(self.probabilities), of(self.free_text),
            numbers(self.answer_nll), numbers(self.answer_tokens), of(self.answered), self.prefers, numbers(self.leads),
            numbers(self.answer_bytes), self.order, numbers(self.terms), numbers(self.rewards),
            self.translates, numbers(self.marks), numbers(self.chances), numbers(self.numbers),
        )  # fmt: skip

    @property
    def degrees(self) -> NDArray[np.float64]:
        """[N, 2] places of the expected and the predicted label in their order, from 0."""
        place = {label: float(number) for number, label in enumerate(self.order)}
        pairs = zip(self.expected, self.predicted, strict=True)
        return np.array([[place[asked], place[said]] for asked, said in pairs], dtype=np.float64).reshape(-1, 2)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """[N] whether the prediction is the expected answer, outer white space aside."""
        pairs = zip(self.predicted, self.expected, strict=True)
        return np.array([said.strip() == asked.strip() for said, asked in pairs], dtype=np.bool_)
