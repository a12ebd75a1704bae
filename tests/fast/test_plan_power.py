from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.plan.power import mcnemar_power, must_observe, needed_for, normal_quantile, smallest_difference, wilson
from luthier.spec.limits import Limit


@pytest.mark.parametrize(
    ("n", "difference", "discordance"),
    [
        (280, 0.10, 0.30),
        (280, 0.05, 0.30),
        (60, 0.25, 0.40),
        (1000, 0.05, 0.30),
        (30, 0.5, 0.5),
        (12, 0.1, 0.3),
    ],
)
def test_mcnemar_power_equals_a_simulation_of_the_exact_test(n: int, difference: float, discordance: float) -> None:
    from scipy.stats import binomtest

    rng = np.random.default_rng(7)
    runs = 20_000
    better = (discordance + difference) / 2
    counts = rng.multinomial(n, [better, discordance - better, 1 - discordance], size=runs)
    verdicts: dict[tuple[int, int], bool] = {}
    rejected = 0
    for wins, losses in counts[:, :2].tolist():
        key = (min(wins, losses), wins + losses)
        if key not in verdicts:
            verdicts[key] = key[1] > 0 and binomtest(key[0], key[1]).pvalue <= 0.05
        rejected += verdicts[key]
    simulated = rejected / runs
    power = mcnemar_power(n, difference, discordance=discordance)
    assert power == pytest.approx(simulated, abs=4 * math.sqrt(0.25 / runs))


def test_mcnemar_power_without_a_difference_keeps_its_level() -> None:
    for n in (6, 40, 333, 5000):
        assert mcnemar_power(n, 0.0, discordance=0.3) <= 0.05


@given(n=st.integers(6, 3000))
@settings(max_examples=25, deadline=None)
def test_more_items_show_smaller_differences(n: int) -> None:
    here, there = smallest_difference(n), smallest_difference(2 * n)
    assert there < here or here == 1.0
    assert mcnemar_power(n, here, discordance=max(0.3, here)) >= 0.8 - 1e-9


def test_smallest_difference_of_known_sizes() -> None:
    assert smallest_difference(3) == 1.0  # 3 pairs can at best give p = 0.25
    asymptotic = (normal_quantile(0.95) + 0.8416) * math.sqrt(0.3 / 280)  # without the test's discreteness
    assert asymptotic < smallest_difference(280) < 1.1 * asymptotic


def test_smallest_difference_of_a_large_test_split_is_quick() -> None:
    start = time.process_time()
    assert smallest_difference(100_000) < 0.006
    assert time.process_time() - start < 1.0


@given(n=st.integers(1, 5000), data=st.data(), level=st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_wilson_equals_scipy(n: int, data: st.DataObject, level: float) -> None:
    from scipy.stats import binomtest

    k = data.draw(st.integers(0, n))
    reference = binomtest(k, n).proportion_ci(level, method="wilson")
    low, high = wilson(k, n, level=level)
    assert low == pytest.approx(reference.low, abs=1e-12)
    assert high == pytest.approx(reference.high, abs=1e-12)


@given(n=st.integers(1, 3000), target=st.floats(0.01, 0.999), level=st.sampled_from([0.9, 0.95, 0.99]))
def test_must_observe_is_the_smallest_share_whose_bound_clears_the_target(n: int, target: float, level: float) -> None:
    share = must_observe(target, n, level=level)
    if share is None:
        assert wilson(n, n, level=level)[0] < target
        return
    k = round(share * n)
    assert share == k / n
    assert wilson(k, n, level=level)[0] >= target - 1e-9
    assert k == 0 or wilson(k - 1, n, level=level)[0] < target


def test_only_proportions_are_predicted() -> None:
    assert needed_for(Limit("intent", "accuracy", ">=", 0.8, False), 280, level=0.95) == pytest.approx(0.85)
    assert needed_for(Limit("intent", "perplexity", "<=", 2.0, False), 280, level=0.95) is None
    assert needed_for(Limit("intent", "answered_accuracy", ">=", 0.8, False), 280, level=0.95) is None, "of how many?"


@pytest.mark.parametrize("n", [1, 100, 100_000])
def test_no_bound_ever_reaches_one(n: int) -> None:
    assert must_observe(1.0, n) is None
    assert wilson(n, n)[0] < 1.0
