"""Which rows each optimizer step sees, and how a step is cut into micro-batches. All of it follows from the seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from luthier.data.imbalance import drawn_epoch
from luthier.data.shards import Example
from luthier.errors import RunError
from luthier.models.packing import SHARED, common_start, num_laid_out
from luthier.spec.recipe import Sampler, Train


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


def steps_of(examples: Sequence[Example], settings: Train) -> list[Step]:
    """The steps of a run.

    Raises:
        RunError: train.max_tokens does not suffice for one step.
    """
    assert settings.batch_size is not None
    assert settings.num_train_epochs is not None
    lengths = [len(example.input_ids) for example in examples]
    steps = plan_steps(
        lengths,
        batch_size=settings.batch_size,
        num_epochs=settings.num_train_epochs,
        max_tokens=settings.max_tokens,
        seed=settings.seed,
        labels=[example.answer for example in examples] if settings.sampler != "shuffle" else (),
        sampler=settings.sampler,
    )
    if not steps:
        first = sum(sorted(lengths)[: settings.batch_size])
        raise RunError(
            f"train.max_tokens {settings.max_tokens} is less than the first step needs (at least {first} tokens)",
            way_out="raise train.max_tokens or lower train.batch_size",
        )
    return steps


def plan_steps(
    lengths: Sequence[int],
    *,
    batch_size: int,
    num_epochs: int,
    max_tokens: int | None,
    seed: int,
    labels: Sequence[str] = (),
    sampler: Sampler = "shuffle",
) -> list[Step]:
    """The whole run as a list, so that a resumed run needs nothing but the number of the step.

    Every epoch is a fresh permutation, or, with a sampler, as many rows, drawn by label. The last step of an epoch may
    be smaller; rows are never repeated to fill it.

    Args:
        lengths: tokens of each row.
        batch_size: rows a step.
        num_epochs: passes over the rows.
        max_tokens: no step begins that would take the total above this; None for no limit.
        seed: of the permutations.
        labels: of each row, for a sampler.
        sampler: which rows an epoch draws.
    """
    steps: list[Step] = []
    spent = 0
    for epoch in range(num_epochs):
        if sampler == "shuffle":
            order = np.random.default_rng([seed, epoch]).permutation(len(lengths))
        else:
            order = drawn_epoch(labels, sampler, seed=seed, epoch=epoch)
        for start in range(0, len(order), batch_size):
            rows = tuple(int(row) for row in order[start : start + batch_size])
            spent += sum(lengths[row] for row in rows)
            if max_tokens is not None and spent > max_tokens:
                return steps
            steps.append(Step(rows, epoch + (start + len(rows)) / len(order)))
    return steps


def micro_batches(
    rows: Sequence[int], tokens: Sequence[Sequence[int]], *, max_tokens: int, share: bool = True
) -> list[MicroBatch]:
    """Cut a step's rows into groups that compute at most `max_tokens` tokens, what rows begin with alike counted once.

    A row longer than the budget gets a group of its own. The loss does not depend on the cut.

    Args:
        rows: of the step.
        tokens: of each of these rows.
        max_tokens: computed at once.
        share: False where every row is computed by itself.
    """
    order = sorted(range(len(rows)), key=lambda place: (tokens[place], rows[place]))
    groups: list[list[int]] = []  # of places
    taken = max_tokens + 1
    for number, place in enumerate(order):
        before = tokens[order[number - 1]] if number and share else []
        # Fewer than SHARED tokens in common are not shared, so a row may share that much less than it has in common.
        more = len(tokens[place]) - max(0, common_start(before, tokens[place]) - SHARED + 1)
        if taken + more > max_tokens:
            groups.append([])
            more, taken = len(tokens[place]), 0
        groups[-1].append(place)
        taken += more
    return [_micro_batch(rows, tokens, group, share=share) for group in groups]


def _micro_batch(
    rows: Sequence[int], tokens: Sequence[Sequence[int]], places: Sequence[int], *, share: bool
) -> MicroBatch:
    own = [tokens[place] for place in places]
    return MicroBatch(tuple(rows[place] for place in places), num_laid_out(own) if share else sum(map(len, own)))
