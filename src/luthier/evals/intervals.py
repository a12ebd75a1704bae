"""Confidence intervals by resampling groups, paired comparisons and their tests.

Shapes: N items, G groups, R resamples, K statistics of a metric.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import special  # scipy.stats would cost every command a second

from luthier.evals.observed import Floats
from luthier.plan.power import wilson
from luthier.records import Interval

Value = Callable[[Floats], Floats]
"""Metric of summed statistics, [..., K] -> [...]."""

FLIPS = 10_000
"""Random assignments of signs in the sign-flip test; a p-value of 0.05 is then exact to about 0.004."""

_DRAWS_AT_ONCE = 2_000_000
"""Group draws held in memory at a time: 16 MB of counts."""


class Bootstrap:
    """A percentile cluster bootstrap: whole groups are drawn with replacement, because their items resemble each other.

    All questions put to one object are answered with the same draws, so differences and ratios are paired.

    Args:
        groups: group of each item; '' stands for a group of its own. Length N.
        resamples: R.
        level: two-sided confidence level.
        rng: consumed once, for the seed of the draws.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; resampling of clusters as in
    Davison and Hinkley, Bootstrap Methods and their Application (1997), section 3.8.
    """

    def __init__(self, groups: Sequence[str], *, resamples: int, level: float, rng: np.random.Generator) -> None:
        if not groups:
            raise ValueError("a bootstrap needs at least one item")
        places: dict[object, int] = {}
        keys = [group or ("item", index) for index, group in enumerate(groups)]
        self._group_of_item = np.array([places.setdefault(key, len(places)) for key in keys])
        self.num_items = len(groups)
        self.num_groups = len(places)
        self.resamples = resamples
        self.level = level
        self._seed = int(rng.integers(2**63))

    def only(self, places: NDArray[np.bool_]) -> Bootstrap:
        """The same over some of the items, [N]; their draws are others than those of all, the same at every call."""
        return Bootstrap(
            [f"{group}" for group in self._group_of_item[places]],
            resamples=self.resamples,
            level=self.level,
            rng=np.random.default_rng(self._seed),
        )

    def proportion(self, statistics: Floats, value: Value, *, share_of: float = 1.0) -> Interval:
        """Interval of a metric that lies in 0 to 1, never narrower than Wilson's for as many independent items.

        Near 0 and 1 resampling sees too little: with every item right, each resample is right too, and the percentile
        interval has no width. Wilson's interval closes that gap; where resampling shows no spread at all, it counts
        groups instead of items. Where a share of the items alone counts, Wilson's interval is that of so many.
        """
        found = self.interval(statistics, value)
        trials = round(share_of * (self.num_groups if found.low == found.high else self.num_items))
        if share_of < 1.0:
            found = found.model_copy(update={"n": round(share_of * self.num_items)})
        if trials == 0:
            return found.model_copy(update={"low": 0.0, "high": 1.0})
        low, high = wilson(found.point * trials, trials, level=self.level)
        return found.model_copy(update={"low": min(found.low, low), "high": max(found.high, high)})

    def interval(self, statistics: Floats, value: Value) -> Interval:
        """Percentile interval of one metric of one system; `statistics` has shape [N, K]."""
        return self._interval(value(statistics.sum(axis=0)), value(self._sums(statistics)))

    def difference(self, one: Floats, other: Floats, value: Value) -> Interval:
        """Paired interval of value(one) - value(other); both have shape [N, K]."""
        point = value(one.sum(axis=0)) - value(other.sum(axis=0))
        return self._interval(point, value(self._sums(one)) - value(self._sums(other)))

    def ratio(self, one: Floats, other: Floats, value: Value) -> Interval:
        """Paired interval of value(one) / value(other); both have shape [N, K]."""
        point = value(one.sum(axis=0)) / value(other.sum(axis=0))
        return self._interval(point, value(self._sums(one)) / value(self._sums(other)))

    def p_value(self, one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
        """Two-sided p-value that two systems are right equally often on the same items; both of shape [N].

        McNemar's exact test where every group has one item, the sign-flip test by group elsewhere.
        """
        if self.num_groups == self.num_items:
            return mcnemar(one, other)
        by_group = np.zeros(self.num_groups)
        np.add.at(by_group, self._group_of_item, one.astype(np.float64) - other.astype(np.float64))
        return sign_flip(by_group, rng=np.random.default_rng(self._seed))

    def _sums(self, statistics: Floats) -> Floats:
        """Summed statistics of each resample; [N, K] -> [R, K]. The draws are the same at every call."""
        by_group = np.zeros((self.num_groups, statistics.shape[1]))
        np.add.at(by_group, self._group_of_item, statistics)
        rng = np.random.default_rng(self._seed)
        rows_at_once = max(1, _DRAWS_AT_ONCE // self.num_groups)
        sums = []
        for start in range(0, self.resamples, rows_at_once):
            rows = min(rows_at_once, self.resamples - start)
            drawn = rng.integers(self.num_groups, size=(rows, self.num_groups))
            flat = (drawn + self.num_groups * np.arange(rows)[:, None]).ravel()
            counts = np.bincount(flat, minlength=rows * self.num_groups).reshape(rows, self.num_groups)
            sums.append(counts.astype(np.float64) @ by_group)
        return np.concatenate(sums)

    def _interval(self, point: Floats, resampled: Floats) -> Interval:
        tail = (1 - self.level) / 2
        low, high = np.quantile(resampled, [tail, 1 - tail])
        return Interval(point=float(point), low=float(low), high=float(high), level=self.level, n=self.num_items)


def mcnemar(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Two-sided exact p-value that two systems are right equally often on the same items; both of shape [N].

    Only items that one system gets right and the other wrong count; under the hypothesis each side is a fair coin.
    Source: McNemar, Psychometrika 12 (1947), with the binomial distribution instead of the approximation.
    """
    only_one = int((one & ~other).sum())
    discordant = int((one != other).sum())
    return min(1.0, 2.0 * float(special.bdtr(min(only_one, discordant - only_one), discordant, 0.5)))


def sign_flip(differences: Floats, *, rng: np.random.Generator) -> float:
    """Two-sided p-value that differences of groups, [G], lie around 0, whatever the items within a group share.

    Under the hypothesis the two systems may be exchanged within each group, which flips its sign; p is the share of
    `FLIPS` random assignments, the observed one counted with them, whose sum lies as far from 0 as the observed one.

    Source: Fisher, The Design of Experiments (1935), section 21; the count with the observed one as in Phipson and
    Smyth, Statistical Applications in Genetics and Molecular Biology 9 (2010).
    """
    found = differences[differences != 0]
    observed = abs(found.sum())
    as_far, done = 0, 0
    while done < FLIPS:
        rows = min(FLIPS - done, max(1, _DRAWS_AT_ONCE // max(1, found.size)))
        signs = 2.0 * rng.integers(2, size=(rows, found.size)) - 1.0
        as_far += int((np.abs(signs @ found) >= observed - 1e-9).sum())
        done += rows
    return (as_far + 1) / (FLIPS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, in the order given.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected
