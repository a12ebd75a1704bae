"""Kahneman-Tversky optimisation of both answers of a pair (Ethayarajh et al. 2024, arXiv 2402.01306, equations 7, 8).

With r(x, y) = log pi(y | x) - log pi_ref(y | x), s the logistic function, and z a reference point, the loss of a pair
is the mean of that of its answers,

    w_D (1 - s(beta (r(x, y_w) - z)))  and  w_U (1 - s(beta (z - r(x, y_l)))).

z = max(0, mean of r(x, y')) estimates how far the model has gone from its base, over answers y' that were written to
other prompts; nothing flows back through it. Here y' are both answers of the task's next row, whatever step that is in:
the pairs of prompt and strange answer are the same all through the run, so what the base says of them is computed once
with that of the rows themselves. z is the mean over all rows of a step, read before its first micro-batch, so it does
not depend on how the step is cut. TRL takes strange answers from the same micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from luthier.data.shards import Example
from luthier.records import RequestContract
from luthier.spec.methods import kto
from luthier.spec.section import Method as Settings
from luthier.train.batches import micro_batches
from luthier.train.pairs import Pairs, Scores, pair_scores
from luthier.train.reference import Reference

_NEAR = 64
"""Rows among which another prompt is looked for; without end that would take the square of the rows of one prompt."""


@dataclass(frozen=True)
class Kto(Pairs):
    """The method; it learns once it knows where the model stood, and, in each step, where it stands."""

    settings: kto.Kto
    reference: Reference | None = None
    point: float = 0.0
    """z, in nats."""

    def beside(self, reference: Reference) -> Kto:
        return replace(self, reference=reference)

    def strange(self, rows: Sequence[Example], place: int) -> Example:
        """The prompt of a row with the answers of the next one whose prompt is another; its own if no near one is."""
        own = rows[place]
        others = (rows[(place + step) % len(rows)] for step in range(1, min(len(rows), _NEAR)))
        other = next((one for one in others if one.prompt_ids != own.prompt_ids), own)
        answer = other.input_ids[other.prompt_tokens :]
        marks = [False] * own.prompt_tokens + [True] * len(answer)
        return replace(
            own, input_ids=[*own.prompt_ids, *answer], supervised=marks, answer=other.answer,
            rejected=other.rejected, rejected_ids=list(other.rejected_ids),
        )  # fmt: skip

    def at_step(self, model: Any, strange: Sequence[Example], *, max_tokens: int) -> Kto:
        """The same method for a step whose rows have these strange answers; `model` is asked without gradients."""
        assert self.reference is not None, "the reference is opened before training"
        gained = 0.0
        for part in micro_batches(range(len(strange)), [self.computed(one) for one in strange], max_tokens=max_tokens):
            read = [strange[row] for row in part.rows]
            scores = pair_scores(model, read).logprobs_P2
            gained += float((scores - self.reference.of(read).to(scores.device)).sum())
        return replace(self, point=max(0.0, gained / (2 * len(strange))))

    def losses(self, scores: Scores, examples: Sequence[Example]) -> Tensor:
        assert self.reference is not None, "the reference is opened before training"
        gains_P2 = scores.logprobs_P2 - self.reference.of(examples).to(scores.logprobs_P2.device)
        beta, point, given = self.settings.beta, self.point, self.settings
        desirable = 1.0 - torch.sigmoid(beta * (gains_P2[:, 0] - point))
        undesirable = 1.0 - torch.sigmoid(beta * (point - gains_P2[:, 1]))
        return (given.desirable_weight * desirable + given.undesirable_weight * undesirable) / 2.0


def open_method(settings: Settings, contract: RequestContract) -> Kto:
    """It asks nothing of the task."""
    assert isinstance(settings, kto.Kto)
    return Kto(settings)
