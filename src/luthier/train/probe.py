"""The largest micro-batch is tried before anything is learned: a run that would die of memory does so at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luthier.errors import OutOfMemory
from luthier.models.forward import is_noisy
from luthier.spec.recipe import Train
from luthier.train.batches import steps_of, turns_of
from luthier.train.inputs import Inputs
from luthier.train.memory import peak_memory_gib, resident_gib

_LOOKED_AT = 8  # steps with the most tokens, whose micro-batches are compared, beside that with the longest row


@dataclass(frozen=True)
class Probe:
    """What the largest micro-batch took."""

    tokens: int
    """Computed at once."""
    peak_memory_gib: float
    """Of the process so far."""


def probe(
    model: Any,
    inputs: Inputs,
    settings: Train,
    *,
    ram_gib: float | None,
    ranks: int = 1,
) -> Probe:
    """Forward and backward of the largest micro-batch of the run; nothing is learned from it.

    Args:
        model: with its adapter; its gradients are cleared.
        inputs: of the run.
        settings: of the run.
        ram_gib: what all processes on this machine may take; None for no limit.
        ranks: these processes; each tries the same.

    Raises:
        OutOfMemory: it took more than its share of `ram_gib`; names the budget of tokens that would fit by what was
            measured.
        RunError: see `steps_of`.
    """
    assert settings.micro_batch_tokens is not None
    model.train()
    share = not is_noisy(model)
    largest: Sequence[int] = ()
    most = 0
    lengths = inputs.lengths
    steps = steps_of(inputs, settings)
    heavy = sorted(steps, key=lambda step: -sum(lengths[row] for row in step.rows))[:_LOOKED_AT]
    longest = max(steps, key=lambda step: max(lengths[row] for row in step.rows))
    for step in [*heavy, longest]:
        for turn in turns_of(step.rows, inputs, max_tokens=settings.micro_batch_tokens, share=share):
            for part in turn.parts:
                if part.num_tokens > most:
                    largest, most = part.rows, part.num_tokens
    before = resident_gib()
    method = inputs.tasks[inputs.task_of(largest[0])].method
    method.loss_sum(model, inputs.examples(largest)).backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)
    peak = peak_memory_gib()
    if ram_gib is not None and peak > ram_gib / ranks:
        fitting = int(most * max(0.0, ram_gib / ranks - before) / max(peak - before, 1e-9))
        shared = f", for {ranks} processes" if ranks > 1 else ""
        raise OutOfMemory(
            f"the largest micro-batch ({most} tokens) took {peak:.2f} GiB, objective.budget.ram_gib is {ram_gib:g}"
            f"{shared}",
            way_out=f"lower train.micro_batch_tokens to {fitting}, which does not change the result"
            if fitting >= max(lengths)
            else "lower train.max_length, choose a smaller base, or raise the budget: one row alone does not fit",
        )
    return Probe(most, peak)
