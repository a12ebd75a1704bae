"""Parity of heads: how far scores may be apart, and what a number near 0 or a score at the threshold means."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import samples
from numpy.typing import NDArray

from luthier.engines.parity import check_parity
from luthier.engines.protocol import Item, Result
from luthier.records import ParityCheck, RequestContract, Scale

BOUND = 1e-4
GOLDEN = samples.golden()
NUMBER = samples.contract(labels=(), answered_by="head", scale=Scale(mean=20.0, spread=5.0), task="regression")
SEVERAL = samples.contract(
    labels=(), tags=("a", "b"), separator=", ", answered_by="head", threshold=0.5, task="multi_label"
)


@dataclasses.dataclass(frozen=True)
class Head:
    """An engine that has the same scores for every prompt."""

    scores: tuple[float, ...]

    def class_logits(self, prompt_ids: Sequence[int], task: str = "") -> NDArray[np.float32]:
        return np.array(self.scores, dtype=np.float32)

    def each(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        return map(function, items)


def checked(contract: RequestContract, one: tuple[float, ...], other: tuple[float, ...]) -> ParityCheck:
    asked: Any = (GOLDEN.prompt, list(GOLDEN.prompt_ids))
    return check_parity(Head(one), Head(other), [GOLDEN], contract=contract, encode=lambda text: asked, bound=BOUND)


@pytest.mark.parametrize(
    ("one", "other", "passes"),
    [
        (1e-7, 3e-7, True),  # 1e-6 minutes of the mean of training: rounding, though the one is thrice the other
        (0.0, 0.9e-4, True),
        (0.0, 1.1e-4, False),  # more than the bound in standard deviations
        (50.0, 50.004, True),  # far from the mean the bound is of the number
        (50.0, 50.006, False),
        (0.1, float("nan"), False),
    ],
)
def test_a_number_is_held_to_the_bound_in_standard_deviations(one: float, other: float, passes: bool) -> None:
    found = checked(NUMBER, (one,), (other,))
    assert found.passed is passes
    assert ("logits differ by" in found.first_difference) is not passes


def test_a_label_whose_score_is_at_the_threshold_may_fall_on_either_side() -> None:
    assert checked(SEVERAL, (4e-5, 2.0), (-4e-5, 2.0)).passed, "within the bound of 2"
    wrong = checked(SEVERAL, (4e-3, 2.0), (-4e-3, 2.0))
    assert not wrong.passed
    assert "logits differ by" in wrong.first_difference


@pytest.mark.parametrize("contract", [NUMBER, SEVERAL, samples.contract(answered_by="head")])
def test_a_head_of_other_labels_is_told_as_such(contract: RequestContract) -> None:
    wanted = (1.0,) * len(contract.head_rows)
    for other in ((1.0,) * 20, (), (1.0,) * (len(wanted) + 1)):
        found = checked(contract, wanted, other)
        assert not found.passed
        assert found.first_difference.startswith(f"golden {GOLDEN.name!r}: {len(other)} scores, expected ")
