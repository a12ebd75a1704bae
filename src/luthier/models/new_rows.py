"""Rows of new tokens that learn beside a frozen base: PEFT's `trainable_token_indices`, computed without copies.

PEFT writes the rows into a copy of all embeddings at every pass, and gives back a gradient for each of them, a tensor
as large as the embeddings. Here the rows stand in the embeddings themselves, where no frozen row changes, and only they
get a gradient. The layers stay PEFT's, with their names and parameters; only their forward differs, and only where it
says the same. Shapes: V vocabulary, n new rows, h hidden, N positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor
from torch.nn import Embedding, Linear
from torch.nn.functional import embedding, linear

from luthier.models.head import gradient_by_scores, linear_of, losses_by_chunk

CHUNK = 256
"""Positions whose scores [chunk, V] are held at once, as in `luthier.models.head`."""
CHUNK_THERE = 2048
"""The same on an accelerator."""


class NewRowsLayer(TrainableTokensLayer):  # type: ignore[misc]
    """PEFT's layer for one adapter whose rows follow on one another; anything else is left to PEFT."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Ids [...] to [..., h] of embeddings; [..., h] to [..., V] of a head."""
        found = rows_of(self)
        if found is None or args or kwargs:
            return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        rows, first = found
        put_rows(self.base_layer.weight, rows, first)
        out: Tensor = self.base_layer(x)
        if not (torch.is_grad_enabled() and rows.requires_grad):
            return out
        if isinstance(self.base_layer, Embedding):
            is_new = (x >= first) & (x < first + len(rows))
            if is_new.any():
                mine = embedding(x[is_new] - first, rows)
                scale = self._get_embed_scale()
                out = out.index_put((is_new,), mine if scale is None else mine * scale.to(mine.dtype))
            return out
        mine = linear(x.detach(), rows)  # adds nothing, and has the gradient by the rows
        return torch.cat(
            [
                out[..., :first],
                out[..., first : first + len(rows)] + (mine - mine.detach()),
                out[..., first + len(rows) :],
            ],
            dim=-1,
        )


def rows_of(layer: Any) -> tuple[Tensor, int] | None:
    """The rows [n, h] and the id of the first, where the layer is plain: one adapter, at work, in one piece."""
    names = layer.active_adapters
    if len(names) != 1 or layer.disable_adapters or layer.merged or names[0] not in layer.trainable_tokens_delta:
        return None
    ids = layer.token_indices[names[0]]
    in_one_piece = list(ids) == list(range(ids[0], ids[0] + len(ids)))
    if not in_one_piece or type(layer.base_layer) not in (Embedding, Linear):
        return None
    return layer.trainable_tokens_delta[names[0]], ids[0]


def put_rows(weight: Tensor, rows: Tensor, first: int) -> None:
    """Let the frozen weight say at these rows what they say; seen by no gradient."""
    weight.data[first : first + len(rows)] = rows.data


def fuse_rows(model: Any) -> None:
    """Let every such layer of `model` compute so; the module itself is changed."""
    for module in model.modules():
        if type(module) is TrainableTokensLayer:
            module.__class__ = NewRowsLayer


def learned_rows(head: Any) -> tuple[Tensor, int] | None:
    """The rows of a head that learn beside its frozen weight, and the first id; None where none do."""
    found = rows_of(head.token_adapter) if isinstance(head, TrainableTokensWrapper) else None
    return found if found is not None and found[0].requires_grad else None


def token_losses_with_rows(hidden: Tensor, head: Any, targets: Tensor) -> Tensor:
    """As `luthier.models.head.token_losses`, with the gradient by the rows that learn.

    Args:
        hidden: what the head reads, [N, h].
        head: of the vocabulary, with `learned_rows`.
        targets: int64 [N].

    Returns:
        [N].
    """
    found = learned_rows(head)
    assert found is not None, "no row of this head learns"
    assert hidden.requires_grad, "the gradient by scores is made with that by the states"
    rows, first = found
    weight = linear_of(head).weight
    put_rows(weight, rows, first)
    by_rows = torch.zeros((len(hidden), len(rows)), dtype=torch.float32, device=hidden.device)

    def of_chunk(scores: Tensor, chunk: slice) -> tuple[Tensor, Callable[[], Tensor]]:
        norms, asked = torch.logsumexp(scores, dim=-1), targets[chunk]
        losses = norms - scores.gather(1, asked[:, None])[:, 0]

        def gradient() -> Tensor:
            whole = gradient_by_scores(scores, norms, asked)
            by_rows[chunk] = whole[:, first : first + len(rows)]
            return whole

        return losses, gradient

    size = CHUNK if hidden.device.type == "cpu" else CHUNK_THERE
    losses = losses_by_chunk(hidden, weight, None, of_chunk, size=size)
    nothing: Tensor = _ByRows.apply(rows, hidden, by_rows)  # type: ignore[no-untyped-call]
    return losses + nothing


class _ByRows(torch.autograd.Function):
    """Nothing, [N], with the gradient by the rows: (d loss / d score)' hidden."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, hidden: Tensor, by_scores: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, by_scores)
        return torch.zeros(len(hidden), dtype=torch.float32, device=hidden.device)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, by_scores = ctx.saved_tensors
        return (by_scores * grads[0][:, None]).T @ hidden, None, None
