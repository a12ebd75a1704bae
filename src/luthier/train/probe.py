"""The largest micro-batch is tried before anything is learned: a run that would die of memory does so at once.

And, for the plan, how fast steps of the run are on this machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.errors import OutOfMemory
from luthier.models.forward import is_noisy
from luthier.spec.recipe import Train
from luthier.train.batches import Step, Turn, steps_of, turns_of
from luthier.train.inputs import Inputs
from luthier.train.memory import peak_memory_gib, resident_gib
from luthier.train.optim import make_optimizer
from luthier.train.own import with_own_answers
from luthier.train.reference import measured

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


MOST_COUNTED = 400
"""Steps of a run whose tokens are counted; of a longer one, so many at even distances stand for all."""


@dataclass(frozen=True)
class Pace:
    """How fast steps of a run are, and how much all of them compute."""

    steps: int
    seconds: float
    computed_tokens: int
    """In the steps timed."""
    supervised_tokens: int
    all_computed: int
    """Of the whole run."""
    all_supervised: int


def pace(
    model: Any,
    inputs: Inputs,
    settings: Train,
    *,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Pace:
    """Do steps of the run, drawn evenly from it, until `seconds` are over; at least three of them where it has them.

    The weights stay as they are: the optimizer's rate is 0. One step is done before the clock starts.

    Raises:
        RunError: see `steps_of`.
    """
    steps = steps_of(inputs, settings)
    optimizer = make_optimizer({name: p for name, p in model.named_parameters() if p.requires_grad}, settings)
    counted = steps[:: max(1, len(steps) // MOST_COUNTED)]
    tokens = [_tokens(model, inputs, settings, step) for step in counted]
    order, timed = _spread(len(counted)), list[int]()
    begun, least = clock(), min(3, len(counted))
    for number, place in enumerate([order[0], *order]):
        seen = with_own_answers(model, inputs, counted[place].rows, seed=settings.seed, step=place)
        seen = measured(model, seen, counted[place].rows, max_tokens=settings.micro_batch_tokens or 1)
        _step(model, seen, settings, counted[place])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if number == 0:  # what comes up once has come up
            begun = clock()
            continue
        timed.append(place)
        if len(timed) >= least and clock() - begun >= seconds:
            break
    took, share = clock() - begun, len(steps) / len(counted)
    return Pace(
        steps=len(timed),
        seconds=took,
        computed_tokens=sum(tokens[place][0] for place in timed),
        supervised_tokens=sum(tokens[place][1] for place in timed),
        all_computed=round(share * sum(computed for computed, _ in tokens)),
        all_supervised=round(share * sum(supervised for _, supervised in tokens)),
    )


def _spread(number: int) -> list[int]:
    """All places, in an order whose beginnings are spread evenly: by the digits of the golden section's multiples."""
    return sorted(range(number), key=lambda place: place * 0.6180339887498949 % 1.0)


def _turns(model: Any, inputs: Inputs, settings: Train, step: Step) -> Sequence[Turn]:
    assert settings.micro_batch_tokens is not None
    return turns_of(step.rows, inputs, max_tokens=settings.micro_batch_tokens, share=not is_noisy(model))


def _tokens(model: Any, inputs: Inputs, settings: Train, step: Step) -> tuple[int, int]:
    """Computed and supervised in a step."""
    turns = _turns(model, inputs, settings, step)
    computed = sum(part.num_tokens for turn in turns for part in turn.parts)
    return computed, sum(sum(example.supervised[1:]) for example in inputs.examples(step.rows))


def _step(model: Any, inputs: Inputs, settings: Train, step: Step) -> None:
    model.train()
    for turn in _turns(model, inputs, settings, step):
        for part in turn.parts:
            loss = inputs.tasks[turn.task].method.loss_sum(model, inputs.examples(part.rows))
            (loss / turn.count).backward()  # type: ignore[no-untyped-call]
