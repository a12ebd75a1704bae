"""Intervals hold the truth as often as they say, on systems whose truth is known; 1,000 repetitions each."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from luthier.evals.intervals import FEWEST_GROUPS, Bootstrap
from luthier.evals.metric import load_metric
from luthier.evals.observed import Floats, Observed
from luthier.records import Interval

REPETITIONS = 1000
LEVEL = 0.95
SLACK = 3 * math.sqrt(LEVEL * (1 - LEVEL) / REPETITIONS)
"""Three standard errors of a share of so many repetitions: chance alone fails one run in several hundred."""


def share(hold: Callable[[np.random.Generator], bool]) -> float:
    return float(np.mean([hold(np.random.default_rng(seed)) for seed in range(REPETITIONS)]))


def bootstrap(groups: int, rng: np.random.Generator, *, each: int = 1) -> Bootstrap:
    named = [f"g{number // each}" for number in range(groups * each)]
    return Bootstrap(named, resamples=300, level=LEVEL, rng=rng)


def mean(sums: Floats) -> Floats:
    return np.asarray(sums[..., 0] / sums[..., 1])


def of(values: Floats) -> Floats:
    return np.stack([values, np.ones_like(values)], axis=1)


def holds(interval: Interval, truth: float) -> bool:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low <= truth <= interval.high


@pytest.mark.parametrize("items", [8, 20, 60])
def test_a_mean_of_normal_numbers(items: int) -> None:
    def hold(rng: np.random.Generator) -> bool:
        return holds(bootstrap(items, rng).interval(of(rng.normal(size=items)), mean), 0.0)

    assert share(hold) >= LEVEL - 0.02 - SLACK


@pytest.mark.parametrize("items", [30, 100])
def test_a_mean_of_losses_most_of_which_are_small(items: int) -> None:
    def hold(rng: np.random.Generator) -> bool:
        return holds(bootstrap(items, rng).interval(of(rng.exponential(size=items)), mean), 1.0)

    assert share(hold) >= LEVEL - 0.025 - SLACK


@pytest.mark.parametrize(("groups", "each"), [(6, 10), (12, 5), (40, 3)])
def test_a_difference_of_two_equal_systems_whose_items_resemble_each_other_in_groups(groups: int, each: int) -> None:
    """Shares of right answers move together within a group; without groups the interval would be far too narrow."""

    def hold(rng: np.random.Generator) -> bool:
        ease = np.repeat(rng.normal(size=(groups, 2)), each, axis=0)
        right = (ease + rng.normal(size=ease.shape) > 0).astype(np.float64)
        found = bootstrap(groups, rng, each=each).difference(of(right[:, 0]), of(right[:, 1]), mean)
        return holds(found, 0.0)

    assert share(hold) >= LEVEL - 0.02 - SLACK


@pytest.mark.parametrize("accuracy", [0.6, 0.97])
def test_a_share_of_right_answers(accuracy: float) -> None:
    def hold(rng: np.random.Generator) -> bool:
        right = (rng.uniform(size=40) < accuracy).astype(np.float64)
        return holds(bootstrap(40, rng).proportion(of(right), mean), accuracy)

    assert share(hold) >= LEVEL - SLACK


def test_kappa_of_degrees() -> None:
    metric, order = load_metric("quadratic_kappa"), ("0", "1", "2", "3")

    def drawn(items: int, rng: np.random.Generator) -> Observed:
        wanted = rng.integers(4, size=items)
        said = np.clip(wanted + rng.choice([-1, 0, 0, 1, 2], size=items), 0, 3)
        return Observed(tuple(map(str, wanted)), tuple(map(str, said)), order=order)

    truth = float(metric.value(metric.statistics(drawn(200_000, np.random.default_rng(0))).sum(axis=0)))

    def hold(rng: np.random.Generator) -> bool:
        found = bootstrap(50, rng).interval(metric.statistics(drawn(50, rng)), metric.value)
        return holds(found, truth)

    assert share(hold) >= LEVEL - 0.02 - SLACK


def test_a_target_at_the_truth_is_passed_by_chance_no_more_often_than_one_time_in_twenty() -> None:
    def passes(rng: np.random.Generator) -> bool:
        right = (rng.uniform(size=80) < 0.8).astype(np.float64)
        low = bootstrap(80, rng).proportion(of(right), mean).low
        assert low is not None
        return low >= 0.8

    assert share(passes) <= 0.05


def test_a_few_groups_show_nothing() -> None:
    few = FEWEST_GROUPS - 1
    made = bootstrap(few, np.random.default_rng(0), each=20)
    one, other = np.ones(20 * few), np.zeros(20 * few)
    assert math.isnan(made.difference(of(one), of(other), mean).low or 0.0)
    assert math.isnan(made.interval(of(np.arange(20.0 * few)), mean).low or 0.0)
    low, high = (made.proportion(of(one), mean).low, made.proportion(of(one), mean).high)
    assert low == pytest.approx(few / (few + stats.norm.ppf(0.975) ** 2))
    assert high == 1.0


def test_resamples_without_spread_are_widened_by_what_could_have_been() -> None:
    made = bootstrap(10, np.random.default_rng(0))
    z2 = stats.norm.ppf(0.975) ** 2
    all_better = made.difference(of(np.ones(10)), of(np.zeros(10)), mean)
    assert (all_better.low, all_better.high) == (pytest.approx(10 / (10 + z2)), 1.0)
    same = made.difference(of(np.ones(10)), of(np.ones(10)), mean)
    assert (same.point, same.low, same.high) == (0.0, 0.0, 0.0)
    order = ("a", "b", "c")
    right = Observed(order * 3 + ("a",), order * 3 + ("a",), order=order)
    for name, best, sign in (("quadratic_kappa", 1.0, -1.0), ("mae", 0.0, 1.0)):
        metric = load_metric(name)
        from luthier.evals.metric import worst_of

        found = made.interval(metric.statistics(right), metric.value, worst=worst_of(name, right))
        assert found.point == best
        assert sign * ((found.high if sign > 0 else found.low) - best) > 0.2
    assert math.isnan(made.interval(of(np.ones(10)), mean).low or 0.0), "nothing is known of how wrong it could be"


def test_an_endless_loss_is_endless_and_not_no_number() -> None:
    losses = np.array([*np.linspace(0.1, 2.0, 20), np.inf])
    found = bootstrap(21, np.random.default_rng(0)).interval(of(losses), mean)
    assert found.point == math.inf
    assert found.high == math.inf
    assert found.low > 0


@pytest.mark.parametrize("value", [0.1, math.log(2), -0.3])
def test_what_only_rounding_tells_apart_has_no_spread(value: float) -> None:
    made = bootstrap(10, np.random.default_rng(0), each=6)
    assert math.isnan(made.interval(of(np.full(60, value)), mean).low or 0.0)
    gap = made.difference(of(np.full(60, value)), of(np.zeros(60)), mean)
    assert gap.low is not None
    assert gap.high is not None
    assert gap.high - gap.low > 0.2 * abs(value)
    share = made.proportion(of(np.tile([1.0, 1.0, 0.0], 20)), mean)
    assert share.low is not None
    assert share.low < 0.4, "ten groups that are all alike are worth ten rows"
