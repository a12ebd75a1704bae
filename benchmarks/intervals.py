"""How often a 95 % interval of a difference leaves out 0 though two systems are equally good; rows of intervals.csv.

    python benchmarks/intervals.py [REPETITIONS]

Ten rows a group; how easy a row is for either system moves with its group, so right answers do, too. Beside the
interval of luthier.evals.intervals stands the percentile bootstrap over the same groups, usual in evaluation scripts.
The table of docs/evaluation.md is made of it. One process; 300 resamples each.
"""

from __future__ import annotations

import math
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rows import append, commit, processor

from luthier.evals.intervals import Bootstrap

RESULTS = Path(__file__).parent / "results" / "intervals.csv"
GROUPS, EACH, RESAMPLES, LEVEL = (6, 10, 20, 40), 10, 300, 0.95


def equal_systems(groups: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Right (1) or wrong (0) of two systems that are right half of the time, [N, 2]."""
    ease = np.repeat(rng.normal(size=(groups, 2)), EACH, axis=0)
    return (ease + rng.normal(size=ease.shape) > 0).astype(np.float64)


def percentile_misses(right: NDArray[np.float64], groups: int, rng: np.random.Generator) -> bool:
    """Whether the percentiles of the resampled difference leave out 0."""
    gaps = (right[:, 0] - right[:, 1]).reshape(groups, EACH).mean(axis=1)
    means = gaps[rng.integers(groups, size=(RESAMPLES, groups))].mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return bool(low > 0 or high < 0)


def ours_misses(right: NDArray[np.float64], groups: int, rng: np.random.Generator) -> bool:
    """Whether the interval of a report leaves out 0."""
    made = Bootstrap([f"g{row // EACH}" for row in range(groups * EACH)], resamples=RESAMPLES, level=LEVEL, rng=rng)
    one, other = (np.stack([right[:, side], np.ones(len(right))], axis=1) for side in (0, 1))
    found = made.difference(one, other, lambda sums: np.asarray(sums[..., 0] / sums[..., 1]))
    return found.low > 0 or found.high < 0


def main(repetitions: int) -> None:
    """A row for each number of groups."""
    for groups in GROUPS:
        missed = np.zeros(2)
        for seed in range(repetitions):
            right = equal_systems(groups, np.random.default_rng(seed))
            missed += [
                percentile_misses(right, groups, np.random.default_rng((seed, 1))),
                ours_misses(right, groups, np.random.default_rng((seed, 2))),
            ]
        percentile, ours = missed / repetitions
        head, dirty = commit()
        row = {
            "commit": head, "dirty": dirty, "processor": processor(), "numpy": version("numpy"), "groups": groups,
            "rows_a_group": EACH, "repetitions": repetitions, "resamples": RESAMPLES,
            "percentile_misses": round(percentile, 4), "luthier_misses": round(ours, 4),
            "standard_error_at_5_percent": round(math.sqrt(0.05 * 0.95 / repetitions), 4),
        }  # fmt: skip
        append(RESULTS, row)
        print(f"{groups} groups: percentile {percentile:.1%}, here {ours:.1%}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
