"""Rows of a step whose answers the model writes itself, for a teacher to judge: on-policy distillation.

What a model learns from answers that others wrote does not tell it what to do after its own first mistake (Agarwal et
al. 2024, arXiv 2306.13649, algorithm 1). Of the rows of each step a share is drawn, and the answers of these are
replaced by what the model says at that moment, each token drawn with its chance. Nothing flows back through the draw.

Which rows those are, and what is drawn, follows from the run's seed, the step's number, the row and the weights alone,
so it does not depend on what was written before: a run that is taken up again writes the same. Every rank writes all of
a step's answers, for each needs to know how many tokens they have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from luthier.data.shards import Example
from luthier.models.forward import in_evaluation
from luthier.train.inputs import Inputs

OWN = "own"
"""`made_by` of a row whose answer the model wrote."""

_WHICH, _WHAT = 4, 5  # kinds of draws, beside those of other files


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


def _rng(*numbers: int) -> np.random.Generator:
    return np.random.default_rng(numbers)
