"""A leaderboard claims no more than all its intervals together show."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.evals.board import ranked
from luthier.evals.observed import Observed

ITEMS = 160
EXPECTED = tuple("ab"[place % 2] for place in range(ITEMS))
GROUPS = [f"g{place // 2}" for place in range(ITEMS)]


def system(right: float, rng: np.random.Generator) -> Observed:
    said = tuple(one if rng.uniform() < right else "ab".replace(one, "") for one in EXPECTED)
    return Observed(EXPECTED, said)


def test_the_best_comes_first_and_every_pair_is_compared_the_better_minus_the_other() -> None:
    rng = np.random.default_rng(0)
    said = {name: system(right, rng) for name, right in (("low", 0.5), ("high", 0.95), ("middle", 0.75))}
    found = ranked(said, GROUPS, resamples=200, level=0.95, seed=0)
    assert list(found.scores) == ["high", "middle", "low"]
    assert [(one.system, one.against) for one in found.pairs] == [
        ("high", "middle"), ("high", "low"), ("middle", "low"),
    ]  # fmt: skip
    assert found.pair_level == pytest.approx(1 - 0.05 / 3)
    assert found.num_groups == 80
    for pair in found.pairs:
        scores = [found.scores[name]["macro_f1"].point for name in (pair.system, pair.against)]
        assert pair.interval.point == pytest.approx(scores[0] - scores[1])
        assert pair.interval.low > 0


def test_systems_that_say_the_same_keep_the_order_given() -> None:
    one = system(0.7, np.random.default_rng(1))
    found = ranked({"b": one, "a": one, "c": one}, GROUPS, resamples=200, level=0.95, seed=0)
    assert list(found.scores) == ["b", "a", "c"]
    assert all(pair.interval.low == pair.interval.high == 0.0 for pair in found.pairs)


def test_of_losses_the_smaller_comes_first() -> None:
    rng, tokens = np.random.default_rng(2), np.full(ITEMS, 10.0)
    said = {
        name: Observed(EXPECTED, ("",) * ITEMS, answer_nll=rng.gamma(2.0, nats, ITEMS), answer_tokens=tokens,
                       answer_bytes=tokens)
        for name, nats in (("worse", 4.0), ("better", 1.0))
    }  # fmt: skip
    found = ranked(said, GROUPS, resamples=200, level=0.95, seed=0)
    assert list(found.scores) == ["better", "worse"]
    assert found.metric == "bits_per_byte"
    assert found.pairs[0].interval.high < 0


def test_of_equal_systems_a_difference_is_shown_in_no_more_than_one_leaderboard_of_twenty() -> None:
    boards, claimed, items = 300, 0, 48
    for number in range(boards):
        rng = np.random.default_rng(number)
        said = {name: system(0.75, rng).only(range(items)) for name in "xyz"}
        found = ranked(said, [""] * items, resamples=200, level=0.95, seed=number)
        claimed += any(one.interval.low > 0 for one in found.pairs)
    assert claimed / boards <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / boards)
