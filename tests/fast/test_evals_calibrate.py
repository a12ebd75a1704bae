"""A temperature is the one that makes held-out labels likeliest; metrics of sureness say what their papers say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from luthier.evals.calibrate import calibrate
from luthier.evals.compare import coverage, metrics_of
from luthier.evals.intervals import Bootstrap
from luthier.evals.metric import load_metric
from luthier.evals.observed import Observed

Floats = np.ndarray


def drawn(count: int, true_temperature: float, *, seed: int = 0) -> tuple[Floats, list[int]]:
    """Scores, and labels drawn with the chances that these scores have at a temperature."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(count, 5)) * 3
    chances = np.exp(scores / true_temperature)
    chances /= chances.sum(axis=1, keepdims=True)
    return scores, [int(rng.choice(5, p=row)) for row in chances]


@pytest.mark.parametrize("true", [0.5, 1.0, 2.5])
def test_the_temperature_that_drew_the_labels_is_found(true: float) -> None:
    found = calibrate(*drawn(4000, true))
    assert found.temperature == pytest.approx(true, rel=0.08)
    assert found.log_loss_after <= found.log_loss_before + 1e-3


@given(st.integers(20, 80), st.integers(0, 1000), st.floats(0.2, 5))
@settings(max_examples=20, deadline=None)
def test_scores_that_are_scaled_get_the_same_chances(count: int, seed: int, scale: float) -> None:
    scores, wanted = drawn(count, 1.0, seed=seed)
    one, other = calibrate(scores, wanted), calibrate(scores * scale, wanted)
    assert other.temperature == pytest.approx(one.temperature * scale, rel=1e-3)
    assert other.log_loss_after == pytest.approx(one.log_loss_after, rel=1e-3)


def test_it_is_guos_but_for_platts_targets() -> None:
    scores, wanted = drawn(300, 2.0)

    def loss(temperature: float) -> float:
        z = scores / temperature
        return float(-(z[range(300), wanted] - np.log(np.exp(z).sum(axis=1))).mean())

    plain = minimize_scalar(loss, bounds=(0.1, 10), method="bounded").x
    assert calibrate(scores, wanted).temperature == pytest.approx(plain, rel=0.05)


def test_rows_that_are_all_right_do_not_make_it_certain() -> None:
    scores = np.zeros((30, 3))
    scores[:, 1] = 5.0
    found = calibrate(scores, [1] * 30)
    z = 5.0 / found.temperature
    assert 1 / (1 + 2 * math.exp(-z)) == pytest.approx(31 / 32, abs=1e-3)  # Platt: (N + 1) / (N + 2)


# --- metrics ---


def observed(sure: list[float], right: list[bool], answered: list[bool] | None = None) -> Observed:
    """Two labels; 'a' is always chosen."""
    return Observed(
        expected=tuple("a" if one else "b" for one in right),
        predicted=("a",) * len(right),
        probabilities=tuple({"a": p, "b": 1 - p} for p in sure),
        answered=tuple(answered or ()),
    )


def value(name: str, seen: Observed) -> float:
    metric = load_metric(name)
    return float(metric.value(metric.statistics(seen).sum(axis=0)))


def test_log_loss_is_the_mean_surprise() -> None:
    seen = observed([0.9, 0.6, 0.8], [True, False, True])
    assert value("log_loss", seen) == pytest.approx(-(math.log(0.9) + math.log(0.4) + math.log(0.8)) / 3)
    assert value("log_loss", observed([1.0], [False])) == math.inf


def test_calibration_error_is_guos_equation_3() -> None:
    rng = np.random.default_rng(0)
    sure, right = rng.uniform(0.5, 1.0, 200), rng.uniform(size=200) < 0.7
    expected = 0.0
    for number in range(15):
        inside = (sure >= number / 15) & (sure < (number + 1) / 15)
        if inside.any():
            expected += inside.sum() / 200 * abs(right[inside].mean() - sure[inside].mean())
    assert value("calibration_error", observed(sure.tolist(), right.tolist())) == pytest.approx(expected)
    assert value("calibration_error", observed([1.0] * 4, [True] * 4)) == 0.0


def test_coverage_and_what_is_right_of_it() -> None:
    seen = observed([0.9, 0.6, 0.8, 0.7], [True, False, True, False], [True, False, True, True])
    assert (value("coverage", seen), value("answered_accuracy", seen)) == (0.75, pytest.approx(2 / 3))
    nothing = observed([0.6] * 3, [True] * 3, [False] * 3)
    assert (value("coverage", nothing), value("answered_accuracy", nothing)) == (0.0, 0.0)


def test_the_interval_of_what_is_answered_rests_on_those_items_alone() -> None:
    """Ten of a hundred are answered, all rightly: that shows as little as ten items do."""
    rest = [True] * 10 + [False] * 90
    bootstrap = Bootstrap([""] * 100, resamples=300, level=0.95, rng=np.random.default_rng(0))
    found = metrics_of(observed([0.9] * 100, rest, rest), bootstrap)["answered_accuracy"]
    alone = Bootstrap([""] * 10, resamples=300, level=0.95, rng=np.random.default_rng(0))
    expected = metrics_of(observed([0.9] * 10, [True] * 10), alone)["accuracy"]
    assert (found.point, found.n) == (1.0, 10)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    none = metrics_of(observed([0.9] * 100, rest, [False] * 100), bootstrap)["answered_accuracy"]
    assert (none.point, none.low, none.high, none.n) == (0.0, 0.0, 1.0, 0)


def test_the_curve_counts_from_each_threshold_on() -> None:
    points = {one.threshold: one for one in coverage(observed([0.55, 0.92, 0.97, 0.65], [False, True, True, True]))}
    assert (points[0.0].coverage, points[0.0].accuracy) == (1.0, 0.75)
    assert (points[0.6].coverage, points[0.6].accuracy) == (0.75, 1.0)
    assert (points[0.99].coverage, points[0.99].accuracy) == (0.0, None)
