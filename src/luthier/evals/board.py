"""Several runs on the same test rows: every pair is compared, and all intervals hold together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from luthier.eval_records import Difference
from luthier.evals.compare import measurable, metrics_of
from luthier.evals.intervals import Bootstrap
from luthier.evals.metric import load_metric
from luthier.evals.observed import Observed
from luthier.records import Interval
from luthier.spec.plugins import METRICS

_BEYOND = 20
"""Resamples that are to lie beyond each end of an interval."""


@dataclass(frozen=True)
class Ranking:
    """Systems by the main metric of the first."""

    metric: str
    scores: dict[str, dict[str, Interval]]
    """The best first; where two are equal, in the order given; those without the metric last, and in no pair."""
    pairs: tuple[Difference, ...]
    """The better minus the other."""
    pair_level: float
    num_groups: int


def ranked(said: Mapping[str, Observed], groups: Sequence[str], *, resamples: int, level: float, seed: int) -> Ranking:
    """Metrics of each system, and the differences of all pairs.

    Args:
        said: system -> what it said to the same items.
        groups: of the items.
        resamples: of the bootstrap at least; more where so many pairs ask for rarer ends.
        level: that all intervals of differences hold together: each is of 1 - (1 - level) / number of pairs.
        seed: of the resamples.
    """
    bootstrap = Bootstrap(groups, resamples=resamples, level=level, rng=np.random.default_rng(seed))
    scores = {name: metrics_of(seen, bootstrap) for name, seen in said.items()}
    main = measurable(next(iter(said.values())))[0]
    sign = 1.0 if METRICS.get(main).higher_is_better else -1.0
    known = [name for name in said if main in scores[name] and not math.isnan(scores[name][main].point)]
    order = sorted(known, key=lambda name: -sign * scores[name][main].point)
    pairs = list(combinations(order, 2))
    pair_level = 1.0 - (1.0 - level) / max(1, len(pairs))
    drawn = Bootstrap(
        groups,
        resamples=max(resamples, math.ceil(2 * _BEYOND / (1.0 - pair_level))),
        level=pair_level,
        rng=np.random.default_rng(seed),
    )
    metric = load_metric(main)
    counts = {name: metric.statistics(said[name]) for name in order}
    found = tuple(
        Difference(
            system=one,
            against=other,
            metric=main,
            interval=drawn.difference(counts[one], counts[other], metric.value),
            p_value=math.nan,
        )
        for one, other in pairs
    )
    rest = [name for name in said if name not in order]
    return Ranking(
        main, {name: scores[name] for name in (*order, *rest)}, found, pair_level, num_groups=bootstrap.num_groups
    )
