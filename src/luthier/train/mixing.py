"""Several tasks in one training: which rows an epoch draws of each, and what each counts in a step.

Notation: task k of K has n_k rows, N = sum n_k. An epoch is N rows, of which task k has the share s_k:

- proportional: s_k = n_k / N, each row once;
- a temperature T (sqrt is 2, equal is without end): s_k proportional to n_k^(1/T) (Raffel et al. 2020,
  arXiv:1910.10683, section 3.5.2, without a limit to n_k);
- annealed: s_k proportional to n_k^a with a = 1 - 0.8 e / (E - 1) in epoch e = 0 .. E-1 (Stickland and Murray 2019,
  arXiv:1902.02671, section 3.2.1, which counts epochs from 1);
- given shares, scaled to 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from luthier.train.inputs import Inputs

_POWERS = {"proportional": 1.0, "sqrt": 0.5, "equal": 0.0}


def task_shares(inputs: Inputs, epoch: int, epochs: int) -> list[float]:
    """Of each task in an epoch; they sum to 1."""
    sampling = inputs.mix.sampling
    if isinstance(sampling, dict):
        raw = np.array([sampling[task.name] for task in inputs.tasks], dtype=np.float64)
    else:
        if sampling == "annealed":
            power = 1.0 - 0.8 * epoch / (epochs - 1) if epochs > 1 else 1.0
        else:
            power = _POWERS[sampling] if isinstance(sampling, str) else 1.0 / sampling
        sizes = np.array([len(task.examples) for task in inputs.tasks], dtype=np.float64)
        raw = (sizes / sizes.max()) ** power  # relative to the largest, so that no power overflows
    return [float(share) for share in raw / raw.sum()]


def drawn_of_tasks(
    sizes: Sequence[int], shares: Sequence[Sequence[float]], *, seed: int
) -> Iterator[NDArray[np.int64]]:
    """The rows of each epoch, shuffled; a task whose rows are used up begins a fresh deck of them.

    Each task deals its rows from shuffled decks over all epochs, so none comes a second time before all of its task
    have come once.

    Args:
        sizes: rows of each task; they are numbered through, task after task.
        shares: of each task, for each epoch.
        seed: of the decks and the order.
    """
    starts = np.concatenate([[0], np.cumsum(sizes)])
    dealt = [0] * len(sizes)
    for epoch, share in enumerate(shares):
        rows = []
        for task, take in enumerate(_whole_numbers(share, int(starts[-1]))):
            rows.append(starts[task] + _deal(sizes[task], dealt[task], take, seed=(seed, 2, task)))
            dealt[task] += take
        every = np.concatenate(rows)
        yield every[np.random.default_rng([seed, epoch]).permutation(len(every))]


def _whole_numbers(shares: Sequence[float], total: int) -> list[int]:
    """`total` divided by shares: largest remainders, ties to the earlier task; at least one row for each."""
    exact = np.array(shares) * total
    found = np.maximum(1, np.floor(exact + 1e-9)).astype(int)
    for place in np.argsort(-(exact - found), kind="stable")[: max(0, total - int(found.sum()))]:
        found[place] += 1
    while found.sum() > total:  # the rows given to tasks of almost no share are taken from the largest
        found[int(found.argmax())] -= 1
    return [int(number) for number in found]


def _deal(size: int, first: int, take: int, *, seed: tuple[int, ...]) -> NDArray[np.int64]:
    """Rows `first` to `first + take` of an endless row of shuffled decks."""
    decks = range(first // size, -(-(first + take) // size))
    cards = [np.random.default_rng([*seed, deck]).permutation(size) for deck in decks]
    start = first - decks.start * size
    return np.concatenate([np.zeros(0, np.int64), *cards])[start : start + take]
