"""Intervals cover what they claim; groups count; what is paired cancels."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, false_discovery_control

from luthier.evals.intervals import FEWEST_GROUPS, Bootstrap, holm, mcnemar, sign_flip
from luthier.evals.metric import load_metric
from luthier.evals.metrics import accuracy, macro_f1, perplexity
from luthier.evals.observed import Observed

RIGHTS = st.lists(st.booleans(), min_size=1, max_size=80)


def shares(right) -> np.ndarray:
    right = np.asarray(right, dtype=np.float64)
    return np.stack([right, np.ones_like(right)], axis=1)


def bootstrap(groups, *, resamples=500, level=0.95, seed=0) -> Bootstrap:
    return Bootstrap(groups, resamples=resamples, level=level, rng=np.random.default_rng(seed))


def covered(draw, truth, *, times=400, resamples=400) -> float:
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(times):
        groups, right = draw(rng)
        found = bootstrap(groups, resamples=resamples, seed=seed).proportion(shares(right), accuracy.value)
        hits += found.low <= truth <= found.high
    return hits / times


@pytest.mark.parametrize(("n", "p"), [(150, 0.5), (150, 0.85), (60, 0.97)])
def test_the_interval_covers_the_truth_as_often_as_it_says(n, p):
    assert covered(lambda rng: ([""] * n, rng.random(n) < p), p) >= 0.93


def test_resampling_groups_covers_the_truth_where_items_of_a_group_resemble_each_other():
    groups = [f"g{index // 5}" for index in range(300)]

    def draw(rng):  # all five items of a group share their fate: 300 items are worth 60
        return groups, np.repeat(rng.random(60) < 0.7, 5)

    def careless(rng):
        return [""] * 300, np.repeat(rng.random(60) < 0.7, 5)

    assert covered(draw, 0.7) >= 0.92
    assert covered(careless, 0.7) < 0.75


@settings(deadline=None)
@given(RIGHTS)
def test_groups_of_one_item_give_the_plain_bootstrap(right):
    named = bootstrap([f"customer {index}" for index in range(len(right))])
    plain = bootstrap([""] * len(right))
    assert named.proportion(shares(right), accuracy.value) == plain.proportion(shares(right), accuracy.value)
    assert named.num_groups == plain.num_groups == len(right)


def test_repeating_every_item_in_its_group_changes_nothing_but_the_count():
    right = np.random.default_rng(3).random(50) < 0.6
    once = bootstrap([str(index) for index in range(50)]).interval(shares(right), accuracy.value)
    thrice = bootstrap([str(index) for index in range(50)] * 3).interval(shares(np.tile(right, 3)), accuracy.value)
    assert (once.point, once.low, once.high) == pytest.approx((thrice.point, thrice.low, thrice.high), abs=1e-12)
    assert (once.n, thrice.n) == (50, 150)


@settings(deadline=None)
@given(RIGHTS)
def test_the_difference_of_a_system_with_itself_is_exactly_zero_and_its_ratio_exactly_one(right):
    found = bootstrap([""] * len(right)).difference(shares(right), shares(right), accuracy.value)
    assert (found.point, found.low, found.high) == (0.0, 0.0, 0.0)
    losses = np.stack([np.arange(1.0, len(right) + 1), np.ones(len(right))], axis=1)
    ratio = bootstrap([""] * len(right)).ratio(losses, losses, perplexity.value)
    assert ratio.point == 1.0
    ends = [] if len(right) < FEWEST_GROUPS else [1.0, 1.0]  # of a few items nothing is promised
    assert [end for end in (ratio.low, ratio.high) if not math.isnan(end)] == ends


def test_pairing_narrows_the_difference_of_systems_that_fail_on_the_same_items():
    hard = np.random.default_rng(0).random(400) < 0.5
    better = hard.copy()
    better[np.flatnonzero(~hard)[:20]] = True
    draws = bootstrap([""] * 400)
    gap = draws.difference(shares(better), shares(hard), accuracy.value)
    alone = draws.interval(shares(better), accuracy.value)
    assert gap.low > 0
    assert gap.high - gap.low < (alone.high - alone.low) / 2


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    losses = shares(np.random.default_rng(5).exponential(size=90))
    first, again, other = (bootstrap([""] * 90, seed=s).interval(losses, accuracy.value) for s in (7, 7, 8))
    assert first == again
    assert first != other


def test_draws_in_several_blocks_are_the_draws_in_one(monkeypatch):
    right = np.random.default_rng(5).random(90) < 0.8
    one = bootstrap([""] * 90).interval(shares(right), accuracy.value)
    monkeypatch.setattr("luthier.evals.intervals._DRAWS_AT_ONCE", 90 * 7)
    assert bootstrap([""] * 90).interval(shares(right), accuracy.value) == one


def test_all_right_is_no_proof_of_perfection():
    many = bootstrap([""] * 100).proportion(shares([True] * 100), accuracy.value)
    assert (many.point, many.high) == (1.0, 1.0)
    assert many.low == pytest.approx(binomtest(100, 100).proportion_ci(method="wilson").low)
    one_group = bootstrap(["same"] * 100).proportion(shares([True] * 50 + [False] * 50), accuracy.value)
    assert one_group.low < 0.1, "one group is one observation"
    assert one_group.high > 0.9


def test_a_wider_level_is_a_wider_interval():
    right = np.random.default_rng(2).random(80) < 0.7
    narrow, wide = (bootstrap([""] * 80, level=p).proportion(shares(right), accuracy.value) for p in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.point < narrow.high < wide.high
    assert (narrow.level, wide.level) == (0.8, 0.99)


def test_macro_f1_of_2000_resamples_of_300_items_takes_less_than_a_second():
    rng = np.random.default_rng(0)
    labels = [f"label {index}" for index in range(12)]
    seen = Observed(tuple(rng.choice(labels, 300)), tuple(rng.choice(labels, 300)))
    started = time.perf_counter()
    bootstrap([""] * 300, resamples=2000).proportion(macro_f1.statistics(seen), macro_f1.value)
    assert time.perf_counter() - started < 1


def test_resamples_without_a_class_leave_it_out():
    seen = Observed(("a",) * 30 + ("b",), ("a",) * 30 + ("b",))
    found = bootstrap([""] * 31).proportion(load_metric("macro_f1").statistics(seen), macro_f1.value)
    assert found.high == 1.0
    assert found.low == pytest.approx(binomtest(31, 31).proportion_ci(method="wilson").low), "all resamples are at 1"


def test_no_items_is_our_own_mistake():
    with pytest.raises(ValueError, match="at least one item"):
        bootstrap([])


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_the_exact_binomial_sum_over_discordant_items(pairs):
    one, other = (np.array(side) for side in zip(*pairs, strict=True))
    gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
    # Two-sided exact p-value of a fair coin: twice the smaller tail, at most 1.
    reference = min(1.0, 2 * binom.cdf(min(gained, lost), gained + lost, 0.5))
    assert mcnemar(one, other) == pytest.approx(reference)
    assert mcnemar(one, other) == mcnemar(other, one)


def test_mcnemar_of_a_system_with_itself_is_one():
    right = np.array([True, False, True])
    assert mcnemar(right, right) == 1.0


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (3, 1), (12, 9), (14, 4), (20, 5), (40, 30)])
def test_flipping_groups_of_one_item_gives_mcnemar(gained, lost):
    one = np.array([True] * gained + [False] * lost + [True] * 50)
    other = np.array([False] * gained + [True] * lost + [True] * 50)
    p = sign_flip(one.astype(float) - other, rng=np.random.default_rng(0))
    assert p == pytest.approx(mcnemar(one, other), abs=0.012)
    singles = bootstrap([""] * len(one))
    assert singles.p_value(one, other) == mcnemar(one, other)


def test_the_paired_test_keeps_its_level_where_items_of_a_group_share_their_errors():
    groups = [f"g{index // 5}" for index in range(200)]
    rng = np.random.default_rng(5)
    seen, careless, times = 0, 0, 400
    for seed in range(times):
        one, other = (np.repeat(rng.random(40) < 0.7, 5) for _ in range(2))
        seen += bootstrap(groups, seed=seed).p_value(one, other) <= 0.05
        careless += mcnemar(one, other) <= 0.05
    assert seen / times < 0.05 + 3 * (0.05 * 0.95 / times) ** 0.5
    assert careless / times > 0.25


def test_the_paired_test_by_group_finds_what_is_there_and_repeats_itself():
    groups = [f"g{index // 2}" for index in range(200)]
    rng = np.random.default_rng(3)
    one, other = rng.random(200) < 0.9, rng.random(200) < 0.6
    p = bootstrap(groups).p_value(one, other)
    assert p == bootstrap(groups).p_value(one, other) < 0.001
    assert p == pytest.approx(bootstrap(groups).p_value(other, one), abs=1e-3)
    assert bootstrap(groups).p_value(one, one) == 1.0


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_between_the_raw_and_the_bonferroni_value_and_keeps_the_order(p_values):
    corrected = holm(p_values)
    for raw, found in zip(p_values, corrected, strict=True):
        assert raw <= found <= min(1.0, raw * len(p_values)) + 1e-12
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()
    assert np.all(np.array(corrected) >= false_discovery_control(p_values) - 1e-12), "Holm is stricter than FDR"


def test_holm_by_hand():
    # Sorted 0.01, 0.03, 0.04: 3 * 0.01, then max(0.03, 2 * 0.03), then max(0.06, 1 * 0.04).
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
