"""Distillation by logits: of each supervised token (1 - a) (- log p) + a T^2 D(teacher, model), see `models.taught`.

The teacher reads the very rows of the micro-batch, in the same layout, without gradients. Nothing of it is kept: its
chances over a vocabulary take hundreds of times the room of the tokens, and a kept top-k would be another loss. What
is computed again each epoch is a forward pass, a third of what a step of a model of its size takes.

Of an answer that the model wrote itself (`train.own`) a T^2 D alone is learned: nobody has said that it is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from luthier.data.shards import Example
from luthier.models.adapters import bare
from luthier.models.generate import go_on, sampled
from luthier.models.taught import Rule, read, taught_losses
from luthier.records import RequestContract
from luthier.spec.methods import distill
from luthier.spec.section import Method as Settings
from luthier.train.methods.sft import Sft, weighted_sum
from luthier.train.own import OWN
from luthier.train.rows import Row, packed

if TYPE_CHECKING:
    from luthier.train.methods import Method
    from luthier.train.trunk import Trunk

EVEN = 0.5
"""Of jsd where the recipe leaves it open: teacher and model alike, the Jensen-Shannon divergence."""


@runtime_checkable
class Taught(Protocol):
    """A method that learns from a teacher."""

    def under(self, teacher: Any) -> Method:
        """The same method, ready to learn from this model, which is in evaluation mode and where the other one is."""
        ...


@dataclass(frozen=True)
class Distill(Sft):
    """The method; its unit is the supervised token."""

    settings: distill.Distill
    contract: RequestContract
    teacher: Any = None

    def under(self, teacher: Any) -> Distill:
        return replace(self, teacher=bare(teacher))

    @property
    def rule(self) -> Rule:
        given = self.settings
        return Rule(given.alpha, given.temperature, given.divergence, EVEN if given.beta is None else given.beta)

    def loss_sum(
        self,
        model: Any,
        examples: Sequence[Example],
        weights: Sequence[float] | None = None,
        trunk: Trunk | None = None,
    ) -> Tensor:
        """Sum over the supervised tokens, in nats; of a row with a weight both parts are multiplied by it."""
        assert self.teacher is not None, "the teacher is opened before training"
        model = bare(model)
        rows = packed(model, [Row(one.input_ids, one.supervised) for one in examples])
        with torch.no_grad():
            taught = read(self.teacher, rows.layout, rows.keep)
        with nullcontext() if trunk is None else trunk.under(model, rows.layout, rows.computed, rows.places):
            own = read(model, rows.layout, rows.keep)
        losses = taught_losses(own, taught, rows.wanted, self.rule, said=torch.cat([*map(_said, examples)]))
        return weighted_sum(torch.split(losses, rows.counts), weights)

    @property
    def own_share(self) -> float:
        return self.settings.on_policy

    def rewritten(self, model: Any, example: Example, rng: np.random.Generator) -> Example:
        """The row with an answer that the model draws, and its end where it came to one; as it is if none has room."""
        prompt, contract = example.prompt_ids, self.contract
        room = min(contract.max_new_tokens, contract.max_length - len(prompt) - len(contract.end_of_turn_ids))
        if room < 1:
            return example
        made = go_on(bare(model), prompt, max_new_tokens=room, stop_ids=contract.stop_ids, choose=sampled(rng))
        answer = made.whole
        if not answer:
            return example
        marks = [*example.supervised[: len(prompt)], *([True] * len(answer))]
        return replace(example, answer="", made_by=OWN, input_ids=[*prompt, *answer], supervised=marks)


def _said(example: Example) -> Tensor:
    """Which of a row's supervised tokens somebody said: all but those of an answer that the model wrote itself."""
    places = torch.tensor(example.supervised[1:]).nonzero()[:, 0] + 1
    return (places < example.prompt_tokens) | (example.made_by != OWN)


def open_method(settings: Settings, contract: RequestContract) -> Distill:
    """For answers as the contract has them; the teacher comes later."""
    assert isinstance(settings, distill.Distill)
    return Distill(settings, contract)
