"""Noise of training and noise of the test, told apart on systems whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from test_evals_coverage import LEVEL, REPETITIONS, SLACK, of

from luthier.evals.compare import points_of
from luthier.evals.intervals import FEWEST_GROUPS, Bootstrap
from luthier.evals.observed import Observed
from luthier.evals.seeds import interval_of_mean, scores_over


def mean(sums: np.ndarray) -> np.ndarray:
    return np.asarray(sums[..., 0] / sums[..., 1])


@pytest.mark.parametrize(("seeds", "of_training", "of_test"), [(3, 1.0, 0.3), (3, 0.1, 3.0), (5, 0.4, 1.5)])
def test_the_interval_holds_the_truth_for_other_seeds_on_other_rows(
    seeds: int, of_training: float, of_test: float
) -> None:
    """Normal scores: a part of the seed, one of the group, one of both; the truth is 0."""
    groups, held = 20, 0
    for number in range(REPETITIONS):
        rng = np.random.default_rng(number)
        scores = (
            rng.normal(scale=of_training, size=(seeds, 1))
            + rng.normal(scale=of_test, size=(1, groups))
            + rng.normal(size=(seeds, groups))
        )
        bootstrap = Bootstrap([""] * groups, resamples=200, level=LEVEL, rng=rng)
        spread = bootstrap.deviation([of(one) for one in scores], None, mean)
        found = interval_of_mean(scores.mean(axis=1).tolist(), spread, num_groups=groups, level=LEVEL)
        held += found.low <= 0.0 <= found.high
    assert held / REPETITIONS >= LEVEL - 0.02 - SLACK


def labels(right: float, rng: np.random.Generator, expected: tuple[str, ...]) -> Observed:
    said = tuple(one if rng.uniform() < right else "ab".replace(one, "") for one in expected)
    return Observed(expected, said)


def test_each_run_is_paired_with_its_own_others_and_the_mean_is_that_of_the_values() -> None:
    rng = np.random.default_rng(0)
    expected = tuple(rng.choice(["a", "b"], size=120))
    runs = [{name: labels(right, rng, expected) for name, right in (("base", 0.6), ("tuned", 0.9))} for _ in range(3)]
    bootstrap = Bootstrap([f"g{place // 4}" for place in range(120)], resamples=400, level=LEVEL, rng=rng)
    scores, gaps = scores_over(runs, bootstrap)
    assert [one.metric for one in scores] == [one.metric for one in gaps] == ["macro_f1", "accuracy"]
    for number, metric in enumerate(("macro_f1", "accuracy")):
        each = [points_of(run["tuned"])[metric] for run in runs]
        assert scores[number].values == pytest.approx(each)
        assert scores[number].mean.point == pytest.approx(np.mean(each))
        assert scores[number].training_sd == pytest.approx(np.std(each, ddof=1))
        lead = [points_of(run["tuned"])[metric] - points_of(run["base"])[metric] for run in runs]
        assert gaps[number].against == "base"
        assert gaps[number].values == pytest.approx(lead)
        assert gaps[number].mean.low > 0
        assert 0 <= scores[number].mean.low <= scores[number].mean.high <= 1


def test_seeds_that_say_the_same_leave_the_noise_of_the_test_alone() -> None:
    rng = np.random.default_rng(1)
    expected = tuple(rng.choice(["a", "b"], size=200))
    one = labels(0.8, rng, expected)
    bootstrap = Bootstrap([""] * 200, resamples=2000, level=LEVEL, rng=rng)
    scores, _ = scores_over([{"tuned": one}] * 4, bootstrap)
    accuracy = scores[1]
    share = accuracy.mean.point
    assert accuracy.training_sd == 0.0
    assert accuracy.test_sd == pytest.approx(math.sqrt(share * (1 - share) / 199), rel=0.06)
    low, high = accuracy.mean.low, accuracy.mean.high
    assert (high - low) / 2 == pytest.approx(1.972 * accuracy.test_sd, rel=1e-3), "t of 199 degrees of freedom"


def test_nothing_is_known_of_a_few_groups_or_without_any_spread() -> None:
    expected = ("a", "b") * 30
    right = Observed(expected, expected)
    many = Bootstrap([""] * 60, resamples=200, level=LEVEL, rng=np.random.default_rng(0))
    few = [f"g{place % (FEWEST_GROUPS - 1)}" for place in range(60)]
    for bootstrap in (many, Bootstrap(few, resamples=200, level=LEVEL, rng=np.random.default_rng(0))):
        scores, _ = scores_over([{"tuned": right}] * 2, bootstrap)
        assert scores[1].mean.point == 1.0
        assert math.isnan(scores[1].mean.low)
        assert math.isnan(scores[1].mean.high)


def test_a_lead_moves_only_where_the_systems_differ() -> None:
    """Paired: rows that are easy or hard for both do not move it, however much they move each score."""
    rng = np.random.default_rng(2)
    expected = tuple(rng.choice(["a", "b"], size=150))
    one = labels(0.7, rng, expected)
    bootstrap = Bootstrap([""] * 150, resamples=400, level=LEVEL, rng=rng)
    scores, gaps = scores_over([{"tuned": one, "base": one}] * 2, bootstrap)
    assert scores[1].test_sd > 0.03
    assert gaps[1].values == (0.0, 0.0)
    assert gaps[1].test_sd == gaps[1].training_sd == 0.0
    flipped = Observed(expected, ("x",) * 5 + one.predicted[5:])
    _, gaps = scores_over([{"tuned": one, "base": flipped}] * 2, bootstrap)
    assert 0 < gaps[1].test_sd < 0.5 * scores[1].test_sd
