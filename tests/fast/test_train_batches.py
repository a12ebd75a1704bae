"""Steps and micro-batches follow from the seed alone and lose no row."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from luthier.train.batches import micro_batches, plan_steps

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=60)


@given(LENGTHS, st.integers(1, 9), st.integers(1, 3), st.integers(0, 5))
def test_every_epoch_sees_every_row_once(lengths: list[int], batch: int, epochs: int, seed: int) -> None:
    steps = plan_steps(lengths, batch_size=batch, num_epochs=epochs, max_tokens=None, seed=seed)
    assert Counter(row for step in steps for row in step.rows) == Counter(dict.fromkeys(range(len(lengths)), epochs))
    assert steps[-1].epoch == epochs
    assert all(len(step.rows) <= batch for step in steps)


@given(LENGTHS, st.integers(1, 9), st.integers(1, 400))
def test_a_token_limit_is_never_passed_and_cuts_the_same_sequence(lengths: list[int], batch: int, limit: int) -> None:
    whole = plan_steps(lengths, batch_size=batch, num_epochs=2, max_tokens=None, seed=1)
    cut = plan_steps(lengths, batch_size=batch, num_epochs=2, max_tokens=limit, seed=1)
    assert cut == whole[: len(cut)]
    assert sum(lengths[row] for step in cut for row in step.rows) <= limit
    if len(cut) < len(whole):
        assert sum(lengths[row] for step in whole[: len(cut) + 1] for row in step.rows) > limit


def test_seeds_and_epochs_give_other_orders() -> None:
    rows = [1] * 40
    orders = [
        tuple(
            r for step in plan_steps(rows, batch_size=40, num_epochs=2, max_tokens=None, seed=seed) for r in step.rows
        )
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][:40] != orders[0][40:]


@given(LENGTHS, st.integers(1, 120))
def test_micro_batches_partition_the_step_within_the_budget(lengths: list[int], budget: int) -> None:
    rows = list(range(len(lengths)))
    groups = micro_batches(rows, lengths, max_tokens=budget)
    assert sorted(row for group in groups for row in group) == rows
    for group in groups:
        assert len(group) == 1 or sum(lengths[row] for row in group) <= budget
