"""What methods over preferences share: log-probabilities of two answers to one prompt, which is computed once.

Names: P pairs; of the two answers the first is the preferred one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from luthier.data.shards import Example
from luthier.train.rows import Row, supervised_losses

if TYPE_CHECKING:
    from luthier.train.trunk import Trunk


class Scores(NamedTuple):
    """How likely a model finds the answers of P pairs."""

    logprobs_P2: Tensor
    """Sum of log p over an answer's tokens, its end of turn included; float64, as differences of it count."""
    tokens_P2: Tensor
    """How many these are."""

    @property
    def means_P2(self) -> Tensor:
        """Mean log-probability a token."""
        return self.logprobs_P2 / self.tokens_P2


def rows_of(example: Example) -> tuple[Row, Row]:
    """The prompt with the preferred answer, and with the other."""
    prompt = example.prompt_ids
    other = [*prompt, *example.rejected_ids]
    return (
        Row(example.input_ids, example.supervised),
        Row(other, [False] * len(prompt) + [True] * len(example.rejected_ids)),
    )


def pair_scores(model: Any, examples: Sequence[Example], trunk: Trunk | None = None) -> Scores:
    """Log-probabilities of both answers of each pair, in one forward pass."""
    losses = supervised_losses(model, [row for example in examples for row in rows_of(example)], trunk)
    logprobs = torch.stack([-own.double().sum() for own in losses]).view(-1, 2)
    tokens = torch.tensor([len(own) for own in losses], dtype=torch.float64, device=logprobs.device).view(-1, 2)
    return Scores(logprobs, tokens)


class Pairs(ABC):
    """A method whose unit is the pair."""

    def count(self, example: Example) -> int:
        """One pair."""
        return 1

    def computed(self, example: Example) -> Sequence[Sequence[int]]:
        """Both answers behind their prompt, each but for its last token, which is never read."""
        return [row.computed for row in rows_of(example)]

    @abstractmethod
    def losses(self, scores: Scores, examples: Sequence[Example]) -> Tensor:
        """The loss of each pair, [P]."""

    def loss_sum(
        self,
        model: Any,
        examples: Sequence[Example],
        weights: Sequence[float] | None = None,
        trunk: Trunk | None = None,
    ) -> Tensor:
        """Sum of the losses of the pairs, each times its weight where there are weights."""
        losses = self.losses(pair_scores(model, examples, trunk), examples)
        if weights is not None:
            losses = losses * torch.tensor(weights, dtype=losses.dtype, device=losses.device)
        return losses.sum()
