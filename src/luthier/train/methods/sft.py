"""Supervised fine-tuning: - sum over supervised t of log p(ids[t] | ids[:t]), rows packed so that none sees another."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from luthier.data.shards import Example
from luthier.models.adapters import bare
from luthier.models.forward import forward_logits, hidden_states, is_noisy
from luthier.models.head import has_plain_head, token_losses
from luthier.models.packing import SHARED, lay_out_rows
from luthier.records import RequestContract
from luthier.spec.section import Method as Settings

if TYPE_CHECKING:
    from luthier.train.trunk import Trunk


class Sft:
    """The method; its unit is the supervised token."""

    def count(self, example: Example) -> int:
        """Supervised tokens; the first token of a row has nothing before it and is never one."""
        return sum(example.supervised[1:])

    def computed(self, example: Example) -> Sequence[Sequence[int]]:
        """The tokens that are computed: all before the last supervised one, which is predicted but never read."""
        last = max(place for place, supervised in enumerate(example.supervised) if supervised)
        return [example.input_ids[:last]]

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
        model = bare(model)
        plain = has_plain_head(model)
        rows = [row for example in examples for row in self.computed(example)]
        longest = max(map(len, rows))
        layout, places = lay_out_rows(rows, shared=longest + 1 if is_noisy(model) else SHARED)
        before, targets, owners = [], [], []
        for row, (example, place) in enumerate(zip(examples, places, strict=True)):
            supervised = torch.tensor(example.supervised[1 : len(place) + 1]).nonzero()[:, 0]
            before.append(place[supervised])  # a token is predicted at the position before it
            targets.append(torch.tensor(example.input_ids)[supervised + 1])
            owners.append(torch.full_like(supervised, row))
        keep, wanted = torch.cat(before).to(model.device), torch.cat(targets).to(model.device)
        with nullcontext() if trunk is None else trunk.under(model, layout, rows, places):
            if plain:
                losses = token_losses(hidden_states(model, layout)[keep], model.get_output_embeddings(), wanted)
            else:
                losses = cross_entropy(forward_logits(model, layout, keep).float(), wanted, reduction="none")
        if weights is not None:
            losses = losses * torch.tensor(weights, dtype=losses.dtype)[torch.cat(owners)].to(losses.device)
        return losses.sum()


def open_method(settings: Settings, contract: RequestContract) -> Sft:
    """It has no settings, and asks nothing of the task."""
    return Sft()
