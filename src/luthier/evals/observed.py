"""What one system said to N items, beside what was expected: all that a metric may look at."""

from __future__ import annotations

from dataclasses import dataclass, field

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

    def __post_init__(self) -> None:
        sizes = {len(self.expected), len(self.predicted)}
        sizes |= {len(part) for part in (self.probabilities, self.free_text) if part}
        sizes |= {part.size for part in (self.answer_nll, self.answer_tokens) if part.size}
        assert sizes == {len(self.expected)}, f"fields of different lengths: {sizes}"

    @property
    def correct(self) -> NDArray[np.bool_]:
        """[N] whether the prediction is the expected answer, outer white space aside."""
        pairs = zip(self.predicted, self.expected, strict=True)
        return np.array([said.strip() == asked.strip() for said, asked in pairs], dtype=np.bool_)
