"""Supervised fine-tuning: - sum over supervised t of log p(ids[t] | ids[:t]), rows packed so that none sees another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.data.shards import Example
from luthier.records import RequestContract
from luthier.spec.section import Method as Settings
from luthier.train.rows import Row, supervised_losses

if TYPE_CHECKING:
    from luthier.train.trunk import Trunk


class Sft:
    """The method; its unit is the supervised token."""

    def count(self, example: Example) -> int:
        """Supervised tokens; the first token of a row has nothing before it and is never one."""
        return sum(example.supervised[1:])

    def computed(self, example: Example) -> Sequence[Sequence[int]]:
        """The tokens that are computed: all before the last supervised one, which is predicted but never read."""
        return [Row(example.input_ids, example.supervised).computed]

    def loss_sum(
        self,
        model: Any,
        examples: Sequence[Example],
        weights: Sequence[float] | None = None,
        trunk: Trunk | None = None,
    ) -> Tensor:
        """Negative log-likelihood of the supervised tokens, summed, in nats; what rows share is computed once.

        With weights w of the rows: - sum over rows r of w[r] sum over supervised t of log p(ids[t] | ids[:t]).
        """
        return weighted_sum(
            supervised_losses(model, [Row(one.input_ids, one.supervised) for one in examples], trunk), weights
        )


def weighted_sum(losses: Sequence[Tensor], weights: Sequence[float] | None) -> Tensor:
    """Of the losses of each row, each [its tokens], the sum; where there are weights, each times its row's."""
    whole = torch.cat(tuple(losses))
    if weights is not None:
        counts = torch.tensor([len(own) for own in losses])
        factors = torch.tensor(weights, dtype=whole.dtype).repeat_interleave(counts)
        whole = whole * factors.to(whole.device)
    return whole.sum()


def open_method(settings: Settings, contract: RequestContract) -> Sft:
    """It has no settings, and asks nothing of the task."""
    return Sft()
