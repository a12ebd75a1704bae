"""Steps and micro-batches follow from the seed alone and lose no row."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from luthier.data.shards import Example
from luthier.errors import RunError
from luthier.models.packing import lay_out_rows
from luthier.spec.recipe import Train
from luthier.train.batches import Step, micro_batches, steps_of
from rows_kit import inputs_of

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=60)


def steps(
    lengths: list[int], batch: int, *, epochs: int = 2, seed: int = 1, max_tokens: int | None = None
) -> list[Step]:
    rows = [Example(n, "", "", "", 0, [1] * length, [True] * length) for n, length in enumerate(lengths)]
    settings = Train(batch_size=batch, num_train_epochs=epochs, seed=seed, max_tokens=max_tokens)
    try:
        return steps_of(inputs_of(rows), settings)
    except RunError:  # not one step
        assert max_tokens is not None
        return []


@given(LENGTHS, st.integers(1, 9), st.integers(1, 3), st.integers(0, 5))
def test_every_epoch_sees_every_row_once(lengths: list[int], batch: int, epochs: int, seed: int) -> None:
    made = steps(lengths, batch, epochs=epochs, seed=seed)
    assert Counter(row for step in made for row in step.rows) == Counter(dict.fromkeys(range(len(lengths)), epochs))
    assert made[-1].epoch == epochs
    assert all(len(step.rows) <= batch for step in made)


@given(LENGTHS, st.integers(1, 9), st.integers(1, 400))
def test_a_token_limit_is_never_passed_and_cuts_the_same_sequence(lengths: list[int], batch: int, limit: int) -> None:
    whole = steps(lengths, batch)
    cut = steps(lengths, batch, max_tokens=limit)
    assert cut == whole[: len(cut)]
    assert sum(lengths[row] for step in cut for row in step.rows) <= limit
    if len(cut) < len(whole):
        assert sum(lengths[row] for step in whole[: len(cut) + 1] for row in step.rows) > limit


def test_seeds_and_epochs_give_other_orders() -> None:
    rows = [1] * 40
    orders = [tuple(r for step in steps(rows, 40, seed=seed) for r in step.rows) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][:40] != orders[0][40:]


TOKENS = st.builds(lambda start, end: [1] * start + end, st.integers(0, 40), st.lists(st.integers(0, 1), min_size=1))


@given(st.lists(TOKENS, max_size=12), st.integers(1, 120), st.booleans())
def test_micro_batches_partition_the_step_within_the_budget(tokens: list[list[int]], budget: int, share: bool) -> None:
    rows = [100 + number for number in range(len(tokens))]
    groups = micro_batches(rows, [[ids] for ids in tokens], max_tokens=budget, share=share)
    assert sorted(row for group in groups for row in group.rows) == rows
    for group in groups:
        own = [tokens[row - 100] for row in group.rows]
        assert group.num_tokens == (lay_out_rows(own)[0].input_ids.numel() if share else sum(map(len, own)))
        assert len(group.rows) == 1 or group.num_tokens <= budget


def test_rows_that_share_come_together_and_the_shared_part_is_counted_once() -> None:
    tokens = [[*([7] * 100), 1], [*([8] * 100), 1], [*([7] * 100), 2], [*([8] * 100), 2]]
    assert [part.rows for part in micro_batches(range(4), [[ids] for ids in tokens], max_tokens=120)] == [
        (0, 2),
        (1, 3),
    ]
    assert len(micro_batches(range(4), [[ids] for ids in tokens], max_tokens=120, share=False)) == 4
