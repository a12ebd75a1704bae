"""Several labels and numbers are counted as scikit-learn counts them, whoever said them and however."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import echo_engine
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.metrics import (
    f1_score,
    hamming_loss,
    log_loss,
    mean_absolute_error,
    r2_score,
    root_mean_squared_error,
)

from luthier.data.answers import joined
from luthier.eval_records import SystemScore
from luthier.evals.calibrate import calibrate_each
from luthier.evals.compare import class_scores, differences, metrics_of, mistakes, points_of
from luthier.evals.headline import headline
from luthier.evals.intervals import Bootstrap
from luthier.evals.marks import unsaid, with_marks
from luthier.evals.observed import Observed
from luthier.records import Scale

TAGS = ("a", "b", "c")
SEVERAL = echo_engine.contract(task="multi_label", labels=(), tags=TAGS, separator=",")
NUMBER = echo_engine.contract(task="regression", labels=(), scale=Scale(mean=2.0, spread=1.0))
SETS = st.lists(st.sets(st.sampled_from(TAGS)), min_size=2, max_size=30)


def seen(expected: list[Any], said: list[Any]) -> Observed:
    texts = [tuple(joined(one, ",") for one in sets) for sets in (expected, said)]
    return with_marks(Observed(texts[0], texts[1]), SEVERAL)


def matrix(sets: list[Any]) -> np.ndarray:
    return np.array([[int(tag in one) for tag in TAGS] for one in sets])


@given(SETS, st.randoms(use_true_random=False))
def test_several_labels_score_as_scikit_learn_says(expected: list[set[str]], rng: Any) -> None:
    said = [{tag for tag in TAGS if rng.random() < 0.5} for _ in expected]
    points = points_of(seen(expected, said))
    wanted, given_ = matrix(expected), matrix(said)
    assert points["micro_f1"] == pytest.approx(f1_score(wanted, given_, average="micro", zero_division=1.0))
    assert points["hamming_loss"] == pytest.approx(hamming_loss(wanted, given_))
    assert points["accuracy"] == pytest.approx(
        np.mean([one == other for one, other in zip(expected, said, strict=True)])
    )
    occurs = [place for place in range(3) if wanted[:, place].any()]
    if occurs:
        macro = f1_score(wanted, given_, labels=occurs, average="macro", zero_division=0.0)
        assert points["macro_f1"] == pytest.approx(macro)
    for score, place in zip(class_scores(seen(expected, said), TAGS), range(3), strict=True):
        assert score.support == wanted[:, place].sum()
        assert score.f1 == pytest.approx(f1_score(wanted[:, place], given_[:, place], zero_division=0.0))


def test_a_label_that_nobody_knows_is_wrong_and_one_that_only_the_test_rows_have_is_missed() -> None:
    found = points_of(seen([{"a"}, {"a", "later"}], [{"a", "invented"}, {"a"}]))
    assert found["micro_f1"] == pytest.approx(2 * 2 / (3 + 3))
    assert found["accuracy"] == 0.0
    written = points_of(seen([{"a"}, {"a", "later"}], [{"a"}, {"later", "a"}]))
    assert written["micro_f1"] == written["accuracy"] == 1.0, "a model that writes may know it all the same"


def test_chances_of_labels_are_scored_by_their_logs() -> None:
    rng = np.random.default_rng(0)
    chances = rng.uniform(0.01, 0.99, size=(40, 3))
    expected = [{tag for tag in TAGS if rng.random() < 0.4} for _ in range(40)]
    said = [{tag for tag, p in zip(TAGS, row, strict=True) if p >= 0.5} for row in chances]
    observed = replace(seen(expected, said), chances=chances)
    wanted = np.mean([log_loss(matrix(expected)[:, place], chances[:, place], labels=[0, 1]) for place in range(3)])
    assert points_of(observed)["binary_log_loss"] == pytest.approx(wanted)
    assert observed.only([3, 1]).chances.tolist() == chances[[3, 1]].tolist()


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=3, max_size=40))
def test_numbers_score_as_scikit_learn_says(pairs: list[tuple[int, int]]) -> None:
    expected, said = zip(*pairs, strict=True)
    observed = with_marks(Observed(tuple(map(str, expected)), tuple(map(str, said))), NUMBER)
    points = points_of(observed)
    assert points["mae"] == pytest.approx(mean_absolute_error(expected, said))
    assert points["rmse"] == pytest.approx(root_mean_squared_error(expected, said))
    if len(set(expected)) > 1:
        assert points["r_squared"] == pytest.approx(r2_score(expected, said), rel=1e-6, abs=1e-9)
    else:
        assert math.isnan(points["r_squared"])


def test_numbers_far_from_zero_keep_what_they_differ_by() -> None:
    expected, said = [1e9 + one for one in range(6)], [1e9 + one + 0.5 for one in range(6)]
    observed = with_marks(Observed(tuple(map(repr, expected)), tuple(map(repr, said))), NUMBER)
    assert points_of(observed)["r_squared"] == pytest.approx(r2_score(expected, said), rel=1e-6)


def test_what_says_no_number_counts_as_the_mean_and_is_told() -> None:
    observed = with_marks(Observed(("1", "4", "2"), ("it is 3.5, I think", "no idea", "-1e-1")), NUMBER)
    assert observed.numbers.tolist() == [[1.0, 3.5], [4.0, 2.0], [2.0, -0.1]]
    assert unsaid(observed) == 1
    rows = [echo_engine.example(f"row {place}", "ggg", line=place + 2) for place in range(3)]
    assert [mistake.predicted for mistake in mistakes(observed, rows)] == ["it is 3.5, I think", "-1e-1", "no idea"]


def test_the_first_line_is_about_errors_where_less_is_better() -> None:
    rng = np.random.default_rng(0)
    expected = tuple(map(str, rng.integers(0, 9, size=80).tolist()))

    def system(off: float) -> Observed:
        said = [str(float(one) + off * rng.normal()) for one in expected]
        return with_marks(Observed(expected, tuple(said)), NUMBER)

    def line(tuned: float, linear: float) -> str:
        systems = {"tuned": system(tuned), "base": system(3.0), "tfidf_ridge": system(linear)}
        bootstrap = Bootstrap([""] * 80, resamples=300, level=0.95, rng=np.random.default_rng(0))
        scores = [
            SystemScore(system=name, title=name, metrics=metrics_of(one, bootstrap), seconds=1.0)
            for name, one in systems.items()
        ]
        return headline(scores, differences(systems, bootstrap), num_items=80, metric="mae")

    assert line(0.2, 1.0).startswith("On 80 test items the tuned model reaches mean absolute error")
    assert "less than the base model" in line(0.2, 1.0)
    assert line(1.0, 0.2).startswith("TF-IDF + ridge regression beats the tuned model")
    assert "that the intervals show" in line(1.0, 0.2)


@pytest.mark.parametrize("true", [0.5, 2.5])
def test_one_temperature_for_all_labels_is_the_one_that_drew_them(true: float) -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(1500, 4)) * 3
    has = rng.uniform(size=scores.shape) < 1 / (1 + np.exp(-scores / true))
    found = calibrate_each(scores, has)
    assert found.temperature == pytest.approx(true, rel=0.08)
    assert (found.num_items, found.log_loss_after <= found.log_loss_before) == (1500, True)
    right = np.where(has, scores, -scores)
    plain = minimize_scalar(lambda t: np.logaddexp(0, -right / t).mean(), bounds=(0.1, 10), method="bounded").x
    assert found.temperature == pytest.approx(plain, rel=0.01)


def test_prose_in_the_place_of_labels_is_wrong_and_still_a_share() -> None:
    """However many unknown labels it comes to; the metric is taken for a share, which has an interval of its own."""
    observed = seen([{"a"}] * 40, [{"I am sorry", "to hear", "that", "x", "y"}] * 40)
    found = metrics_of(observed, Bootstrap([""] * 40, resamples=200, level=0.95, rng=np.random.default_rng(0)))
    assert (found["hamming_loss"].point, found["hamming_loss"].high) == (1.0, 1.0)


@pytest.mark.parametrize("text", ["nan", "inf", "-Infinity", "1e999", "1_000"])
def test_a_number_that_is_none_counts_as_the_mean(text: str) -> None:
    observed = with_marks(Observed(("1", "4"), (text, "3")), NUMBER)
    assert observed.numbers.tolist() == [[1.0, 2.0], [4.0, 3.0]]
    assert unsaid(observed) == 1


def test_a_certain_head_that_is_wrong_loses_much_and_not_everything() -> None:
    observed = replace(seen([{"a"}, set()], [set(), {"a"}]), chances=np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
    assert points_of(observed)["binary_log_loss"] == pytest.approx(-math.log(1e-15) / 3)


def test_where_the_outlier_stands_does_not_matter() -> None:
    expected = [1e6, *map(float, range(40))]
    said = [one + 0.1 for one in expected]
    for order in (1, -1):
        observed = with_marks(Observed(tuple(map(repr, expected[::order])), tuple(map(repr, said[::order]))), NUMBER)
        bootstrap = Bootstrap([""] * 41, resamples=300, level=0.95, rng=np.random.default_rng(0))
        assert metrics_of(observed, bootstrap)["r_squared"].low == pytest.approx(1.0, abs=0.2)
