"""The claim never says more than the intervals."""

from __future__ import annotations

import math

import pytest

from luthier.eval_records import Difference, SystemScore
from luthier.evals.headline import headline
from luthier.records import Interval


def interval(point: float, low: float, high: float) -> Interval:
    return Interval(point=point, low=low, high=high, n=200)


def claim(base_gap: Interval, *, linear: float = 0.5, linear_gap: Interval | None = None) -> str:
    points = {"tfidf_logreg": linear, "base": 0.3, "tuned": 0.8}
    scores = [
        SystemScore(system=name, title=name, metrics={"macro_f1": interval(p, p - 0.05, p + 0.05)}, seconds=1.0)
        for name, p in points.items()
    ]
    gaps = {"base": base_gap, "tfidf_logreg": linear_gap or interval(0.8 - linear, -0.1, 0.4)}
    differences = [
        Difference(system="tuned", against=name, metric="macro_f1", interval=gap, p_value=math.nan)
        for name, gap in gaps.items()
    ]
    return headline(scores, differences, num_items=200, metric="macro_f1")


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        (interval(0.5, 0.4, 0.6), "0.500 more than the base model (+0.400 to +0.600)"),
        (interval(-0.1, -0.2, -0.01), "0.100 less than the base model (-0.200 to -0.010)"),
        (interval(0.1, -0.05, 0.25), "no difference to the base model is shown, +0.100 (-0.050 to +0.250)"),
        (interval(0.1, 0.0, 0.2), "no difference to the base model is shown, +0.100 (+0.000 to +0.200)"),
    ],
)
def test_a_gain_is_claimed_only_where_its_interval_excludes_zero(gap, words):
    assert claim(gap) == (
        f"On 200 test items the tuned model reaches macro-F1 0.800 (95% interval 0.750 to 0.850), {words} "
        "(base model 0.300)."
    )


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        (interval(-0.1, -0.2, -0.01), "a difference that the intervals show"),
        (interval(-0.1, -0.2, 0.05), "a difference that may be chance"),
    ],
)
def test_a_better_linear_model_is_the_headline(gap, words):
    assert claim(interval(0.5, 0.4, 0.6), linear=0.9, linear_gap=gap) == (
        "TF-IDF + logistic regression beats the tuned model on 200 test items: macro-F1 0.900 "
        f"(95% interval 0.850 to 0.950) against 0.800 (95% interval 0.750 to 0.850), {words}."
    )


def test_a_linear_model_as_good_as_the_tuned_one_does_not_beat_it():
    assert claim(interval(0.5, 0.4, 0.6), linear=0.8).startswith("On 200 test items the tuned model")
