"""The rows on which it is measured what a part of a model does, and the model's loss on them.

Rows are laid out one after the other, none seeing another; what they share is computed for each, so that each counts
as much as it stands there. Names: T tokens in a packed row, N positions with a loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.data.shards import Example
from luthier.models.forward import forward_logits, hidden_states
from luthier.models.head import has_plain_head, token_losses
from luthier.models.packing import Layout, Segment, lay_out

AT_ONCE = 1024
"""Tokens of a packed row; a longer row stands alone."""


@dataclass(frozen=True)
class Rows:
    """Some rows in one pass."""

    layout: Layout
    spans: tuple[tuple[int, int], ...]
    """First token of each row in the layout, and the one after its last."""
    read: Tensor
    """Int64 [N]: places whose next token has a loss."""
    targets: Tensor
    """Int64 [N]: those tokens."""

    @property
    def tokens(self) -> int:
        return self.spans[-1][1]


def drawn(examples: Sequence[Example], tokens: int, *, seed: int) -> list[Example]:
    """Rows in a drawn order until they have so many tokens, or none is left."""
    found: list[Example] = []
    counted = 0
    for place in np.random.default_rng(seed).permutation(len(examples)):
        if counted >= tokens:
            break
        found.append(examples[int(place)])
        counted += len(found[-1].input_ids)
    return found


def packed(examples: Sequence[Example], *, whole: bool, at_once: int = AT_ONCE) -> list[Rows]:
    """Lay rows out, as many in one pass as there is room for.

    Args:
        examples: of one token or more each.
        whole: whether every token has a loss; else those that are supervised.
        at_once: tokens of a pass.
    """
    batches: list[list[Example]] = []
    room = 0
    for example in examples:
        if not batches or len(example.input_ids) > room:
            batches.append([])
            room = at_once
        batches[-1].append(example)
        room -= len(example.input_ids)
    return [_lay_out(batch, whole=whole) for batch in batches]


def _lay_out(batch: Sequence[Example], *, whole: bool) -> Rows:
    spans, read, targets, start = [], [], [], 0
    for example in batch:
        ids = example.input_ids
        for place in range(1, len(ids)):
            if whole or example.supervised[place]:
                read.append(start + place - 1)
                targets.append(ids[place])
        spans.append((start, start + len(ids)))
        start += len(ids)
    layout = lay_out([Segment(example.input_ids) for example in batch])
    return Rows(layout, tuple(spans), torch.tensor(read, dtype=torch.long), torch.tensor(targets, dtype=torch.long))


def summed_loss(model: Any, rows: Rows) -> Tensor:
    """- log p of every token that has a loss, summed, in nats; a scalar."""
    read, targets = rows.read.to(model.device), rows.targets.to(model.device)
    if has_plain_head(model):
        return token_losses(hidden_states(model, rows.layout)[read], model.get_output_embeddings(), targets).sum()
    logits = forward_logits(model, rows.layout, read).float()
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")


def counted(batches: Sequence[Rows]) -> int:
    """Positions that have a loss."""
    return sum(len(rows.read) for rows in batches)


def ticked(batches: Sequence[Rows], tick: Any) -> Iterator[Rows]:
    """The batches, each told of when it is done: (batches done, all)."""
    for number, rows in enumerate(batches):
        yield rows
        tick(number + 1, len(batches))
