"""Losses of the supervised tokens of several rows, which one forward pass computes; what rows begin with alike once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from luthier.models.adapters import bare
from luthier.models.forward import forward_logits, hidden_states, is_noisy
from luthier.models.head import has_plain_head, token_losses
from luthier.models.new_rows import learned_rows, token_losses_with_rows
from luthier.models.packing import SHARED, Layout, lay_out_rows

if TYPE_CHECKING:
    from luthier.train.trunk import Trunk


class Row(NamedTuple):
    """Tokens, and which of them are learned."""

    ids: Sequence[int]
    supervised: Sequence[bool]
    """As long as `ids`; the first token has nothing before it and never counts."""

    @property
    def computed(self) -> Sequence[int]:
        """All tokens before the last supervised one, which is predicted but never read."""
        last = max(place for place, supervised in enumerate(self.supervised) if supervised)
        return self.ids[:last]


@dataclass(frozen=True)
class Packed:
    """Rows laid out for one forward pass, so that none sees another, and where their learned tokens are predicted."""

    layout: Layout
    computed: list[Sequence[int]]
    places: list[Tensor]
    """Of each computed token of a row the index in the layout."""
    keep: Tensor
    """Int64 [N], row after row: a token is predicted at the position before it."""
    wanted: Tensor
    """Int64 [N], the tokens predicted there."""
    counts: list[int]
    """Of each row; they sum to N."""


def packed(model: Any, rows: Sequence[Row]) -> Packed:
    """Lay rows out for `model`; what they begin with alike is there once, unless noise makes every row its own."""
    computed = [row.computed for row in rows]
    longest = max(map(len, computed))
    layout, places = lay_out_rows(computed, shared=longest + 1 if is_noisy(model) else SHARED)
    before, targets = [], []
    for row, place in zip(rows, places, strict=True):
        supervised = torch.tensor(row.supervised[1 : len(place) + 1]).nonzero()[:, 0]
        before.append(place[supervised])
        targets.append(torch.tensor(row.ids)[supervised + 1])
    keep, wanted = torch.cat(before).to(model.device), torch.cat(targets).to(model.device)
    return Packed(layout, computed, places, keep, wanted, [len(own) for own in before])


def supervised_losses(model: Any, rows: Sequence[Row], trunk: Trunk | None = None) -> list[Tensor]:
    """- log p(ids[t] | ids[:t]) of the supervised tokens t of each row, in nats and float32; each [its tokens].

    Rows are packed so that none sees another. Where there is a trunk, the layers that learn start at its states.
    """
    model = bare(model)
    plain = has_plain_head(model)
    laid = packed(model, rows)
    with nullcontext() if trunk is None else trunk.under(model, laid.layout, laid.computed, laid.places):
        if plain:
            states, head = hidden_states(model, laid.layout)[laid.keep], model.get_output_embeddings()
            of_tokens = token_losses if learned_rows(head) is None else token_losses_with_rows
            losses = of_tokens(states, head, laid.wanted)
        else:
            scores = forward_logits(model, laid.layout, laid.keep).float()
            losses = cross_entropy(scores, laid.wanted, reduction="none")
    return list(torch.split(losses, laid.counts))
