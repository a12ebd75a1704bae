"""Which rows each optimizer step sees, and how a step is cut into micro-batches. All of it follows from the seed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from luthier.data.imbalance import drawn_epoch
from luthier.errors import RunError
from luthier.models.packing import SHARED, common_start, num_laid_out
from luthier.spec.recipe import Train
from luthier.train.inputs import Inputs
from luthier.train.mixing import drawn_of_tasks, task_shares


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    rows: tuple[int, ...]
    epoch: float
    """Epochs completed after this step, e.g. 1.5."""


@dataclass(frozen=True)
class MicroBatch:
    """What is computed at once."""

    rows: tuple[int, ...]
    num_tokens: int
    """Computed, what rows begin with alike counted once."""


def steps_of(inputs: Inputs, settings: Train) -> list[Step]:
    """The steps of a run.

    Raises:
        RunError: train.max_tokens does not suffice for one step.
    """
    assert settings.batch_size is not None
    assert settings.num_train_epochs is not None
    steps = plan_steps(
        inputs.lengths,
        _epochs(inputs, settings),
        batch_size=settings.batch_size,
        max_tokens=settings.max_tokens,
    )
    if not steps:
        first = sum(sorted(inputs.lengths)[: settings.batch_size])
        raise RunError(
            f"train.max_tokens {settings.max_tokens} is less than the first step needs (at least {first} tokens)",
            way_out="raise train.max_tokens or lower train.batch_size",
        )
    return steps


def _epochs(inputs: Inputs, settings: Train) -> Iterator[NDArray[np.int64]]:
    """The rows of each epoch in order: a fresh permutation, or as many rows, drawn by label or by task.

    All follows from the seed and the number of the epoch.
    """
    times, seed = settings.num_train_epochs or 1, settings.seed
    if len(inputs.tasks) > 1 and inputs.mix.sampling != "proportional":
        sizes = [len(task.examples) for task in inputs.tasks]
        shares = [task_shares(inputs, epoch, times) for epoch in range(times)]
        yield from drawn_of_tasks(sizes, shares, seed=seed)
        return
    labels = [example.answer for example in inputs.all()] if settings.sampler != "shuffle" else ()
    for epoch in range(times):
        if settings.sampler == "shuffle":
            yield np.random.default_rng([seed, epoch]).permutation(len(inputs))
        else:
            yield drawn_epoch(labels, settings.sampler, seed=seed, epoch=epoch)


def plan_steps(
    lengths: Sequence[int], epochs: Iterable[NDArray[np.int64]], *, batch_size: int, max_tokens: int | None
) -> list[Step]:
    """The whole run as a list, so that a resumed run needs nothing but the number of the step.

    The last step of an epoch may be smaller; rows are never repeated to fill it.

    Args:
        lengths: tokens of each row.
        epochs: rows of each, in order.
        batch_size: rows a step.
        max_tokens: no step begins that would take the total above this; None for no limit.
    """
    steps: list[Step] = []
    spent = 0
    for epoch, order in enumerate(epochs):
        for start in range(0, len(order), batch_size):
            rows = tuple(int(row) for row in order[start : start + batch_size])
            spent += sum(lengths[row] for row in rows)
            if max_tokens is not None and spent > max_tokens:
                return steps
            steps.append(Step(rows, epoch + (start + len(rows)) / len(order)))
    return steps


@dataclass(frozen=True)
class Turn:
    """The rows of one task in a step, cut into micro-batches; none holds rows of two tasks."""

    task: int
    rows: tuple[int, ...]
    count: int
    """Units of the task's method."""
    parts: tuple[MicroBatch, ...]


def turns_of(rows: Sequence[int], inputs: Inputs, *, max_tokens: int, share: bool = True, ranks: int = 1) -> list[Turn]:
    """A step's rows task by task, in the order of the tasks."""
    turns = []
    for number, task in enumerate(inputs.tasks):
        own = tuple(row for row in rows if inputs.task_of(row) == number)
        if own:
            examples = inputs.examples(own)
            tokens = [task.method.computed(example) for example in examples]
            count = sum(map(task.method.count, examples))
            parts = micro_batches(own, tokens, max_tokens=max_tokens, share=share, ranks=ranks)
            turns.append(Turn(number, own, count, tuple(parts)))
    return turns


def micro_batches(
    rows: Sequence[int],
    tokens: Sequence[Sequence[Sequence[int]]],
    *,
    max_tokens: int,
    share: bool = True,
    ranks: int = 1,
) -> list[MicroBatch]:
    """Cut a step's rows into groups that compute at most `max_tokens` tokens, what rows begin with alike counted once.

    A row longer than the budget gets a group of its own. For several ranks the groups are a multiple of them where
    there are rows enough, and as even as can be: cut with the smallest budget that needs no more of them. The loss does
    not depend on the cut.

    Args:
        rows: of the step.
        tokens: of each of these rows: the sequences that it is computed from, which stay together.
        max_tokens: computed at once.
        share: False where every row is computed by itself.
        ranks: processes that will share the groups.
    """
    order = sorted(range(len(rows)), key=lambda place: (tokens[place], rows[place]))
    alone = [_num_computed(tokens[place], share=share) for place in order]
    # Fewer than SHARED tokens in common are not shared, so a row may share that much less than it has in common.
    common = [common_start(tokens[a][0], tokens[b][0]) if share else 0 for a, b in pairwise(order)]
    beside = alone[:1] + [length - max(0, start - SHARED + 1) for length, start in zip(alone[1:], common, strict=True)]
    groups = _fill(alone, beside, max_tokens)
    if len(groups) % ranks:
        most = len(groups) + ranks - len(groups) % ranks
        # A group that begins later costs no more, so a larger budget never needs more groups.
        budget = bisect_left(range(max_tokens), True, key=lambda budget: len(_fill(alone, beside, budget)) <= most)
        groups = _fill(alone, beside, budget)
    return [_micro_batch(rows, tokens, [order[number] for number in group], share=share) for group in groups]


def _fill(alone: Sequence[int], beside: Sequence[int], budget: int) -> list[range]:
    """Neighbours together while the budget lasts.

    Args:
        alone: tokens that each row takes as the first of a group.
        beside: tokens that it takes behind its neighbour.
        budget: of a group.
    """
    starts: list[int] = []
    taken = budget + 1
    for number, more in enumerate(beside):
        if taken + more > budget:
            starts.append(number)
            more, taken = alone[number], 0
        taken += more
    return [range(start, end) for start, end in pairwise([*starts, len(alone)])]


def dealt(parts: Sequence[MicroBatch], ranks: int) -> list[list[MicroBatch]]:
    """Which rank computes which micro-batches: those with the most tokens first, each to the rank with the fewest.

    So no rank computes more than 4/3 of what the best division would give it (Graham 1969, "Bounds on multiprocessing
    timing anomalies", theorem 2). Ties go to the lower number, so every rank finds the same division. A rank gets
    nothing where there are fewer micro-batches than ranks.
    """
    hands: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for place in sorted(range(len(parts)), key=lambda place: (-parts[place].num_tokens, place)):
        rank = loads.index(min(loads))
        hands[rank].append(place)
        loads[rank] += parts[place].num_tokens
    return [[parts[place] for place in sorted(hand)] for hand in hands]


def _micro_batch(
    rows: Sequence[int], tokens: Sequence[Sequence[Sequence[int]]], places: Sequence[int], *, share: bool
) -> MicroBatch:
    own = [ids for place in places for ids in tokens[place]]
    return MicroBatch(tuple(rows[place] for place in places), _num_computed(own, share=share))


def _num_computed(sequences: Sequence[Sequence[int]], *, share: bool) -> int:
    return num_laid_out(sequences) if share else sum(map(len, sequences))
