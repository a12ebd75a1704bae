"""Several seeds of one recipe on the same test rows: how much of a score is the seed's, how much the test rows'.

Of S seeds judged on the same G groups of test rows, with m the mean of a metric over seeds:

    training_sd^2 = sample variance of the S values              (from seed to seed, on these rows)
    test_sd^2     = variance of m over draws of G groups         (bootstrap of groups, all seeds on the same draw)
    var(m)        = training_sd^2 / S + test_sd^2

the two-way decomposition of Cameron, Gelbach and Miller (2011, "Robust inference with multiway clustering", eq. 2.11)
without its last term, the part that both ways count: so the variance is rather too large than too small, as in Owen
(2007, "The pigeonhole bootstrap"). The interval is m -+ t sqrt(var(m)) with the degrees of freedom of Satterthwaite
(1946) for parts of S - 1 and G - 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import special

from luthier.eval_records import SeedScore
from luthier.evals.compare import counted, measurable
from luthier.evals.intervals import Bootstrap
from luthier.evals.metric import load_metric
from luthier.evals.observed import Floats, Observed
from luthier.records import Interval
from luthier.spec.plugins import METRICS

FEWEST_SEEDS = 2
"""With one there is no spread to be seen."""


def scores_over(
    runs: Sequence[Mapping[str, Observed]], bootstrap: Bootstrap
) -> tuple[tuple[SeedScore, ...], tuple[SeedScore, ...]]:
    """Metrics of the tuned model over seeds, and its lead over every other system.

    Args:
        runs: system -> what it said, for each seed, over the same items; 'tuned' in each.
        bootstrap: over these items.

    Returns:
        Scores, and differences tuned - other paired by item within each run; metrics in the order of a report.
    """
    tuned = [run["tuned"] for run in runs]
    scores, gaps = [], []
    for name in measurable(tuned[0]):
        scores.append(_score(name, tuned, None, bootstrap))
        for other in runs[0]:
            if other != "tuned" and all(name in measurable(run[other]) for run in runs):
                found = _score(name, tuned, [run[other] for run in runs], bootstrap)
                gaps.append(found.model_copy(update={"against": other}))
    return tuple(scores), tuple(gaps)


def _score(name: str, tuned: Sequence[Observed], other: Sequence[Observed] | None, bootstrap: Bootstrap) -> SeedScore:
    metric, (_, drawn) = load_metric(name), counted(name, tuned[0], bootstrap)  # the same items in every run

    def statistics(systems: Sequence[Observed]) -> list[Floats]:
        return [metric.statistics(counted(name, one, bootstrap)[0]) for one in systems]

    mine, its = statistics(tuned), None if other is None else statistics(other)
    values = np.array([float(metric.value(one.sum(axis=0))) for one in mine])
    with np.errstate(invalid="ignore"):  # of endless losses
        if its is not None:
            values = values - np.array([float(metric.value(one.sum(axis=0))) for one in its])
        training, test = float(values.std(ddof=1)), drawn.deviation(mine, its, metric.value)
        mean = interval_of_mean(values.tolist(), test, num_groups=drawn.num_groups, level=drawn.level)
    if its is None:
        facts = METRICS.get(name)
        least = 0.0 if facts.is_proportion or not facts.higher_is_better else -math.inf  # a loss is not below 0
        low, high = np.clip([mean.low, mean.high], least, 1.0 if facts.is_proportion else math.inf).tolist()
        mean = mean.model_copy(update={"low": low, "high": high})  # NaN stays NaN
    return SeedScore(
        metric=name,
        values=tuple(values.tolist()),
        mean=mean.model_copy(update={"n": drawn.num_items}),
        training_sd=training,
        test_sd=test,
    )


def interval_of_mean(values: Sequence[float], test_sd: float, *, num_groups: int, level: float) -> Interval:
    """See above.

    Args:
        values: of each seed; `FEWEST_SEEDS` or more.
        test_sd: standard deviation of their mean from draw to draw of the test rows.
        num_groups: G.
        level: two-sided.

    Returns:
        Bounds are NaN where `test_sd` is, or where neither part shows any spread, of which nothing follows.
    """
    count, mean = len(values), float(np.mean(values))
    parts = (float(np.var(values, ddof=1)) / count, test_sd**2)
    whole = sum(parts)
    if not whole > 0:  # or NaN
        return Interval(point=mean, low=math.nan, high=math.nan, level=level, n=num_groups)
    freedom = whole**2 / (parts[0] ** 2 / (count - 1) + parts[1] ** 2 / (num_groups - 1))
    reach = float(special.stdtrit(freedom, (1 + level) / 2)) * math.sqrt(whole)
    return Interval(point=mean, low=mean - reach, high=mean + reach, level=level, n=num_groups)
