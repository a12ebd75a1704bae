"""What a test split of a given size can prove, before anything was trained."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import special  # scipy.stats would cost a second to import

from luthier.spec.limits import Limit
from luthier.spec.plugins import METRICS

POWER = 0.80
ALPHA = 0.05
DISCORDANCE = 0.30
"""Assumed share of items on which exactly one of the two models is right; the more, the better a difference hides."""


def normal_quantile(level: float) -> float:
    """The z between -z and z of which lies the central `level` of a standard normal distribution."""
    return float(special.ndtri((1 + level) / 2))


def wilson(successes: float, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Two-sided score interval of a proportion (Wilson 1927).

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), p = successes / n
    """
    z, p = normal_quantile(level), successes / n
    middle = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def must_observe(target: float, n: int, *, level: float = 0.95) -> float | None:
    """Smallest share k/n whose lower Wilson bound reaches `target`; None where even n of n do not.

    The score interval is the score test turned round, so the bound reaches t where p >= t + z sqrt(t(1-t)/n), and
    reaches 1 nowhere.
    """
    if target >= 1.0:
        return None
    z = normal_quantile(level)
    needed = target + z * math.sqrt(max(0.0, target * (1 - target)) / n)
    successes = math.ceil(needed * n - 1e-9)
    return successes / n if successes <= n else None


def mcnemar_power(n: int, difference: float, *, discordance: float, alpha: float = ALPHA) -> float:
    """Probability that the exact two-sided McNemar test on n pairs gives p <= alpha.

    Of n pairs K ~ Bin(n, psi) are discordant, of which X ~ Bin(K, (psi + delta) / 2 psi) favor the better model; the
    test rejects where 2 P(Bin(K, 1/2) <= min(X, K - X)) <= alpha.

    Args:
        n: pairs.
        difference: delta, the true difference in accuracy, 0 <= delta <= psi.
        discordance: psi, the share of pairs with exactly one right answer.
        alpha: level of the test.
    """
    spread = 7 * math.sqrt(n * discordance * (1 - discordance)) + 9  # nothing of weight lies farther out
    low, high = max(1, math.floor(n * discordance - spread)), min(n, math.ceil(n * discordance + spread))
    pairs = np.arange(low, high + 1)
    weight = special.bdtr(pairs * 1.0, n, discordance) - special.bdtr(pairs - 1.0, n, discordance)
    critical = _critical(pairs, alpha)
    inside = np.maximum(critical, 0)
    favor = (discordance + difference) / (2 * discordance)
    rejected = special.bdtr(inside, pairs, favor) + special.bdtr(inside, pairs, 1 - favor)
    return float(np.sum(weight * np.where(critical < 0, 0.0, rejected)))


def _critical(pairs: NDArray[np.int64], alpha: float) -> NDArray[np.float64]:
    """Largest c with 2 P(Bin(K, 1/2) <= c) <= alpha for each number K of discordant pairs; -1 where there is none."""
    counts = np.ceil(special.bdtrik(alpha / 2, pairs, 0.5))
    for _ in range(2):  # the inverse is continuous in c, so its ceiling is at most two too high
        tail = special.bdtr(np.maximum(counts, 0), pairs, 0.5)
        counts = np.where((counts >= 0) & (tail > alpha / 2), counts - 1, counts)
    return counts  # type: ignore[no-any-return]


def smallest_difference(
    n: int, *, discordance: float = DISCORDANCE, power: float = POWER, alpha: float = ALPHA
) -> float:
    """Smallest true accuracy difference that McNemar's test shows with `power` on n pairs; 1.0 where none is.

    Differences above the assumed discordance need more of it: the discordance is then the difference itself.
    """

    def shows(difference: float) -> bool:
        return mcnemar_power(n, difference, discordance=max(discordance, difference), alpha=alpha) >= power

    low, high = 0.0, 1.0
    if not shows(high):
        return 1.0
    while high - low > 2e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if shows(middle) else (middle, high)
    return high


OF_SOME_ITEMS = ("answered_accuracy", "term_accuracy")
"""Shares of items of which nobody knows before how many there will be."""


def is_planned(metric: str) -> bool:
    """Whether a binomial model may say before training what must be seen of it."""
    return METRICS.get(metric).is_proportion and metric not in OF_SOME_ITEMS


def needed_for(limit: Limit, n: int, *, level: float) -> float | None:
    """About the point value that must be seen for the bound to clear a target; None where that cannot be said.

    The metric is taken for a share of n independent items. Accuracy is one where rows share no group; macro-F1 is not,
    it is a mean over labels and rests on fewer items each, so its real interval is mostly somewhat wider. None for a
    metric that is no share, and where even a perfect score would not do.
    """
    if not is_planned(limit.metric) or limit.op != ">=":
        return None
    return must_observe(limit.value, n, level=level)
