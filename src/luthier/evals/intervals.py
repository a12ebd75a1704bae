"""Confidence intervals by resampling groups, paired comparisons and their tests.

Shapes: N items, G groups, R resamples, K statistics of a metric.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import special  # scipy.stats would cost every command a second

from luthier.evals.observed import Floats
from luthier.plan.power import normal_quantile, wilson
from luthier.records import Interval

Value = Callable[[Floats], Floats]
"""Metric of summed statistics, [..., K] -> [...]."""

FEWEST_GROUPS = 6
"""With fewer no interval is given but Wilson's: no test by sign flips could call a difference of five groups real, as 1
in 16 of the signs are that one-sided."""
ROUNDING = 1e-12
"""Of an end: what is narrower has no width."""
FLIPS = 10_000
"""Random assignments of signs in the sign-flip test; a p-value of 0.05 is then exact to about 0.004."""

FEWEST_BEYOND = 5
"""Resamples that must lie beyond an end which is read off them; only ends of later looks reach farther."""

_DRAWS_AT_ONCE = 2_000_000
"""Group draws held in memory at a time: 16 MB of counts."""


class Bootstrap:
    """A cluster bootstrap: whole groups are drawn with replacement, because their items resemble each other.

    All questions put to one object are answered with the same draws, so differences and ratios are paired.

    Args:
        groups: group of each item; '' stands for a group of its own. Length N.
        resamples: R.
        level: two-sided confidence level.
        rng: consumed once, for the seed of the draws.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 14; resampling of clusters as
    in Davison and Hinkley, Bootstrap Methods and their Application (1997), section 3.8.
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
        self._reaches = False

    def at(self, level: float) -> Bootstrap:
        """The same draws at another two-sided level, with ends that reach farther than the draws do, where they must.

        Beyond the share of resamples that `FEWEST_BEYOND` are, an end is moved out from the point in proportion to
        Student's t: the last of 2,000 resamples is no bound at 99.99 %.
        """
        made = copy.copy(self)
        made.level, made._reaches = level, True
        return made

    def only(self, places: NDArray[np.bool_]) -> Bootstrap:
        """The same over some of the items, [N]; their draws are others than those of all, the same at every call."""
        made = Bootstrap(
            [f"{group}" for group in self._group_of_item[places]],
            resamples=self.resamples,
            level=self.level,
            rng=np.random.default_rng(self._seed),
        )
        made._reaches = self._reaches
        return made

    def proportion(self, statistics: Floats, value: Value, *, share_of: float = 1.0) -> Interval:
        """Interval of a metric that lies in 0 to 1, never narrower than Wilson's for as many independent items.

        Near 0 and 1 resampling sees too little: with every item right, each resample is right too, and there is no
        spread. Wilson's interval closes that gap; where resampling shows no spread at all, or groups are too few for
        it, it counts groups instead of items. Where a share of the items alone counts, it is that of so many.
        """
        found = self.interval(statistics, value)
        resampled = found.low < found.high
        trials = round(share_of * (self.num_items if resampled else self.num_groups))
        if share_of < 1.0:
            found = found.model_copy(update={"n": round(share_of * self.num_items)})
        if trials == 0:
            return found.model_copy(update={"low": 0.0, "high": 1.0})
        low, high = wilson(found.point * trials, trials, level=self.level)
        if resampled:
            low, high = min(found.low, low), max(found.high, high)
        return found.model_copy(update={"low": low, "high": high})

    def interval(self, statistics: Floats, value: Value, *, worst: Floats | None = None) -> Interval:
        """Interval of one metric of one system; `statistics` has shape [N, K].

        Resamples without any spread know no interval; where `worst` says what the statistics of an item are that is as
        wrong as can be, [K], z^2 such groups are added, as Wilson's interval adds them (Agresti and Coull 1998), and
        the interval reaches to the metric with these.
        """
        by_group = self._by_group(statistics)
        total = by_group.sum(axis=0)
        found = self._interval(value(total), lambda: (value(self._sums(by_group)), value(_without(by_group))))
        if found.low != found.high:
            return found
        if worst is None:
            return found.model_copy(update={"low": math.nan, "high": math.nan})
        more = normal_quantile(self.level) ** 2 * self.num_items / self.num_groups
        far = float(value(total + more * worst))
        return found.model_copy(update={"low": min(found.low, far), "high": max(found.high, far)})

    def difference(self, one: Floats, other: Floats, value: Value) -> Interval:
        """Paired interval of value(one) - value(other); both have shape [N, K].

        Where all groups differ by the same, it reaches towards 0 as if z^2 groups more had shown no difference.
        """
        found = self._paired(one, other, lambda a, b: value(a) - value(b))
        if np.array_equal(one, other) and not math.isnan(found.point):  # one system, however few the groups
            return found.model_copy(update={"low": 0.0, "high": 0.0})
        if found.low != found.high:
            return found
        less = found.point * self.num_groups / (self.num_groups + normal_quantile(self.level) ** 2)
        return found.model_copy(update={"low": min(found.point, less), "high": max(found.point, less)})

    def ratio(self, one: Floats, other: Floats, value: Value) -> Interval:
        """Paired interval of value(one) / value(other); both have shape [N, K]."""
        return self._paired(one, other, lambda a, b: value(a) / value(b))

    def deviation(self, statistics: Sequence[Floats], other: Sequence[Floats] | None, value: Value) -> float:
        """Standard deviation, over other draws of as many groups, of a metric's mean over S systems.

        Args:
            statistics: of each system, S times [N, K].
            other: of what each system is compared with, in the same order: of the differences then.
            value: the metric.

        Returns:
            That of the resamples, times sqrt(G / (G - 1)); NaN with fewer than `FEWEST_GROUPS`, or where the metric
            of a resample is no number.
        """
        if self.num_groups < FEWEST_GROUPS:
            return math.nan
        with np.errstate(invalid="ignore"):
            resampled = np.mean([value(self._sums(self._by_group(one))) for one in statistics], axis=0)
            if other is not None:
                resampled = resampled - np.mean([value(self._sums(self._by_group(one))) for one in other], axis=0)
        spread = float(resampled.std(ddof=1)) * math.sqrt(self.num_groups / (self.num_groups - 1))
        return spread if math.isfinite(spread) else math.nan

    def _paired(self, one: Floats, other: Floats, compare: Callable[[Floats, Floats], Floats]) -> Interval:
        groups = self._by_group(one), self._by_group(other)
        with np.errstate(invalid="ignore", divide="ignore"):  # of endless losses, or to nothing
            point = compare(groups[0].sum(axis=0), groups[1].sum(axis=0))
            return self._interval(
                point,
                lambda: (
                    compare(self._sums(groups[0]), self._sums(groups[1])),
                    compare(_without(groups[0]), _without(groups[1])),
                ),
            )

    def p_value(self, one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
        """Two-sided p-value that two systems are right equally often on the same items; both of shape [N].

        McNemar's exact test where every group has one item, the sign-flip test by group elsewhere.
        """
        if self.num_groups == self.num_items:
            return mcnemar(one, other)
        by_group = np.zeros(self.num_groups)
        np.add.at(by_group, self._group_of_item, one.astype(np.float64) - other.astype(np.float64))
        return sign_flip(by_group, rng=np.random.default_rng(self._seed))

    def _by_group(self, statistics: Floats) -> Floats:
        """Summed statistics of each group; [N, K] -> [G, K]."""
        by_group = np.zeros((self.num_groups, statistics.shape[1]))
        np.add.at(by_group, self._group_of_item, statistics)
        return by_group

    def _sums(self, by_group: Floats) -> Floats:
        """Summed statistics of each resample; [G, K] -> [R, K]. The draws are the same at every call."""
        endless = np.isinf(by_group)
        by_group = np.where(endless, 0.0, by_group)
        rng = np.random.default_rng(self._seed)
        rows_at_once = max(1, _DRAWS_AT_ONCE // self.num_groups)
        sums = []
        for start in range(0, self.resamples, rows_at_once):
            rows = min(rows_at_once, self.resamples - start)
            drawn = rng.integers(self.num_groups, size=(rows, self.num_groups))
            flat = (drawn + self.num_groups * np.arange(rows)[:, None]).ravel()
            counts = np.bincount(flat, minlength=rows * self.num_groups).reshape(rows, self.num_groups)
            summed = counts.astype(np.float64) @ by_group
            if endless.any():  # a group that is not drawn adds nothing, and 0 times infinity is no number
                summed[counts @ endless.astype(np.int64) > 0] = np.inf
            sums.append(summed)
        return np.concatenate(sums)

    def _interval(self, point: Floats, drawn: Callable[[], tuple[Floats, Floats]]) -> Interval:
        """From the metric of all groups; `drawn` gives that of the resamples, [R], and of all groups but one, [G].

        Bias-corrected and accelerated (Efron 1987, "Better bootstrap confidence intervals"; Efron and Tibshirani 1993,
        eq. 14.10), where z of the level is replaced by sqrt(G / (G - 1)) t of G - 1 degrees of freedom: resamples of a
        few groups spread too little, and by so much (Hesterberg 2015, "What teachers should know about the bootstrap",
        section 5.3). Bounds are order statistics, the outer of two. With fewer than `FEWEST_GROUPS` there are none.
        """
        groups = self.num_groups
        point_of = float(point)
        found = Interval(point=point_of, low=math.nan, high=math.nan, level=self.level, n=self.num_items)
        if groups < FEWEST_GROUPS:
            return found
        resampled, without = drawn()
        if np.isnan(resampled).any():
            return found
        rank = ((resampled < point).sum() + 0.5 * (resampled == point).sum()) / len(resampled)
        edge = 1.0 / (len(resampled) + 1)
        bias = float(special.ndtri(min(max(rank, edge), 1.0 - edge)))
        pull = _acceleration(without)
        drawn_level = self.level
        if self._reaches:
            drawn_level = min(self.level, 1.0 - 2.0 * FEWEST_BEYOND / len(resampled))
        reach = math.sqrt(groups / (groups - 1)) * float(special.stdtrit(groups - 1, (1 + drawn_level) / 2))
        low, high = (_corrected(sign * reach, bias=bias, pull=pull) for sign in (-1.0, 1.0))
        left = float(np.quantile(resampled, low, method="lower"))
        right = float(np.quantile(resampled, high, method="higher"))
        width = right - left
        if drawn_level < self.level:
            t, farther = (float(special.stdtrit(groups - 1, (1 + one) / 2)) for one in (drawn_level, self.level))
            left, right = (point_of + (end - point_of) * farther / t for end in (left, right))
        if math.isfinite(width) and width <= ROUNDING * max(abs(left), abs(right)):  # the same sums in another order
            left = right = found.point
        return found.model_copy(update={"low": left, "high": right})


def _without(by_group: Floats) -> Floats:
    """Sums over all groups but one, [G, K]."""
    endless = np.isinf(by_group)
    finite = np.where(endless, 0.0, by_group)
    rest: Floats = finite.sum(axis=0) - finite
    rest[endless.sum(axis=0) - endless > 0] = np.inf
    return rest


def _acceleration(without: Floats) -> float:
    """Of BCa, from the metric of all groups but one, [G]: a sixth of the skewness (eq. 14.15); 0 where it has none."""
    off = without.mean() - without if np.isfinite(without).all() else np.zeros(1)
    squares = float((off**2).sum())
    return float((off**3).sum()) / (6.0 * squares**1.5) if squares > 0 else 0.0


def _corrected(z: float, *, bias: float, pull: float) -> float:
    """The share of resamples below a bound that lies z standard deviations from the middle (eq. 14.10)."""
    moved = bias + z
    shrunk = 1.0 - pull * moved
    if shrunk <= 0:  # so skewed that no resample is beyond
        return 1.0 if moved > 0 else 0.0
    return float(special.ndtr(bias + moved / shrunk))


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
