"""Supervised fine-tuning: - sum over supervised t of log p(ids[t] | ids[:t]), rows packed so that none sees another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Dropout
from torch.nn.functional import cross_entropy

from luthier.data.shards import Example
from luthier.models.adapters import bare
from luthier.models.packing import Segment, forward_logits, lay_out


def count(example: Example) -> int:
    """Supervised tokens; the first token of a row has nothing before it and is never one."""
    return sum(example.supervised[1:])


def loss_sum(model: Any, examples: Sequence[Example], weights: Sequence[float] | None = None) -> Tensor:
    """Negative log-likelihood of the supervised tokens, summed, in nats; what all rows begin with is computed once.

    With weights w of the rows: - sum over rows r of w[r] sum over supervised t of log p(ids[t] | ids[:t]).
    """
    shared = _shared_start(model, examples)
    segments = [Segment(examples[0].input_ids[:shared])] if shared else []
    parent = 0 if shared else None
    layout = lay_out(segments + [Segment(example.input_ids[shared:], parent) for example in examples])
    before, targets, owners = [], [], []
    for row, (start, example) in enumerate(zip(layout.starts[len(segments) :], examples, strict=True)):
        for place, (token, supervised) in enumerate(zip(example.input_ids, example.supervised, strict=True)):
            if supervised and place > 0:
                # A token is predicted at the position before it: in the shared start up to the row's first own token.
                before.append(place - 1 if place <= shared else start + place - shared - 1)
                targets.append(token)
                owners.append(row)
    logits = forward_logits(bare(model), layout, torch.tensor(before))
    if weights is None:
        return cross_entropy(logits.float(), torch.tensor(targets), reduction="sum")
    losses = cross_entropy(logits.float(), torch.tensor(targets), reduction="none")
    return (losses * torch.tensor([weights[row] for row in owners], dtype=losses.dtype)).sum()


def _shared_start(model: Any, examples: Sequence[Example]) -> int:
    """Tokens that all rows begin with, at least one of each row left over; 0 where dropout makes every row its own."""
    if len(examples) < 2 or any(isinstance(part, Dropout) and part.p > 0 and part.training for part in model.modules()):
        return 0
    first, last = min(example.input_ids for example in examples), max(example.input_ids for example in examples)
    longest = min(len(example.input_ids) for example in examples) - 1
    return next((place for place in range(longest) if first[place] != last[place]), longest)
