"""Rows of a step whose answers the model writes itself, for a teacher or for rewards to judge.

What a model learns from answers that others wrote does not tell it what to do after its own first mistake (Agarwal et
al. 2024, arXiv 2306.13649, algorithm 1). Of the rows of each step a share is drawn, and the answers of these are
replaced by what the model says at that moment, each token drawn with its chance. Nothing flows back through the draw.

Which rows those are, and what is drawn, follows from the run's seed, the step's number, the row and the weights alone,
so it does not depend on what was written before: a run that is taken up again writes the same. Every rank writes all of
a step's answers, for each needs to know how many tokens they have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from luthier.data.shards import Example
from luthier.models.forward import in_evaluation
from luthier.train.inputs import Inputs

OWN = "own"
"""`made_by` of a row whose answer the model wrote."""

_WHICH, _WHAT = 4, 5  # kinds of draws, beside those of other files


@dataclass(frozen=True, slots=True)
class Written(Example):
    """A row with answers that the model wrote to its prompt, and what each is worth."""

    answers: tuple[tuple[int, ...], ...] = ()
    """Tokens, with the end of turn where it came to one."""
    rewards: tuple[float, ...] = ()
    advantages: tuple[float, ...] = ()
    """By how much each is worth more than the others."""

    @property
    def num_tokens(self) -> int:
        """Of the prompt and all answers."""
        return self.prompt_tokens + sum(map(len, self.answers))

    @property
    def num_supervised(self) -> int:
        """Of all answers."""
        return sum(map(len, self.answers))


@runtime_checkable
class OnPolicy(Protocol):
    """A method that learns from what the model itself writes."""

    @property
    def own_share(self) -> float:
        """Of the rows."""
        ...

    def rewritten(self, model: Any, example: Example, rng: np.random.Generator) -> Example:
        """The row with an answer of the model, which is in evaluation mode and holds no gradients."""
        ...


def with_own_answers(model: Any, inputs: Inputs, rows: Sequence[int], *, seed: int, step: int) -> Inputs:
    """The inputs as step number `step` (from 0) sees them: of some of its rows the answers are the model's own.

    They are the same object where no method asks for that.
    """
    methods = [task.method for task in inputs.tasks]
    if not any(isinstance(method, OnPolicy) and method.own_share for method in methods):
        return inputs
    own: dict[int, Example] = {}
    with in_evaluation(model):
        for row in sorted(rows):
            method = methods[inputs.task_of(row)]
            if not isinstance(method, OnPolicy) or method.own_share <= _rng(seed, _WHICH, step, row).random():
                continue
            own[row] = method.rewritten(model, inputs.example(row), _rng(seed, _WHAT, step, row))
    return replace(inputs, own=own)


def rewards_of_step(inputs: Inputs) -> dict[str, float]:
    """What a step tells of answers that were written in it: their mean reward, and the share of prompts whose answers
    are all worth the same, from which nothing is learned; for each of several tasks. Empty where none were written.
    """
    told = {}
    for place, task in enumerate(inputs.tasks):
        written = [one for row, one in inputs.own.items() if isinstance(one, Written) and inputs.task_of(row) == place]
        if written:
            prefix = f"{task.name}." if len(inputs.tasks) > 1 else ""
            told[f"{prefix}reward"] = float(np.mean([one.rewards for one in written]))
            told[f"{prefix}rewards_alike"] = float(np.mean([len(set(one.rewards)) == 1 for one in written]))
    return told


def _rng(*numbers: int) -> np.random.Generator:
    return np.random.default_rng(numbers)
