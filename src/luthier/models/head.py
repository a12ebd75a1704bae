"""Log-probabilities of tokens without ever holding the scores of the whole vocabulary for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import Linear

from luthier.models.forward import forward_logits, hidden_states, in_evaluation
from luthier.models.half import product, product_back
from luthier.models.packing import lay_out_rows

_CHUNK = 256  # positions whose scores [chunk, vocabulary] are held at once
_CHUNK_THERE = 2048  # the same on an accelerator, which takes as long to begin a small product as to make a large one
_plain: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def has_plain_head(model: Any) -> bool:
    """Whether the model's scores are its head times the last hidden state and nothing more (no cap, no scale).

    Found by looking, once a model: families differ in what they do to scores, and in what they call it.
    """
    if model not in _plain:
        head = model.get_output_embeddings()
        layout, _ = lay_out_rows([[1, 2]])
        with in_evaluation(model):
            scores = forward_logits(model, layout, torch.arange(2))
            _plain[model] = isinstance(linear_of(head), Linear) and torch.equal(
                head(hidden_states(model, layout)), scores
            )
    return _plain[model]


def linear_of(head: Any) -> Any:
    """A head as it is beneath PEFT's wrapper for rows of new tokens, which computes the same."""
    return getattr(getattr(head, "token_adapter", None), "base_layer", head)


def token_losses(hidden: Tensor, head: Linear, targets: Tensor) -> Tensor:
    """- log p(target) of each position, in nats and float32.

    Args:
        hidden: what the head reads, [N, hidden].
        head: of the vocabulary.
        targets: int64 [N].

    Returns:
        [N].
    """

    def of_chunk(scores: Tensor, chunk: slice) -> tuple[Tensor, Callable[[], Tensor]]:
        norms, asked = torch.logsumexp(scores, dim=-1), targets[chunk]
        losses = norms - scores.gather(1, asked[:, None])[:, 0]
        return losses, lambda: gradient_by_scores(scores, norms, asked)

    size = _CHUNK if hidden.device.type == "cpu" else _CHUNK_THERE
    return losses_by_chunk(hidden, head.weight, head.bias, of_chunk, size=size)


OfChunk = Callable[[Tensor, slice], tuple[Tensor, Callable[[], Tensor]]]
"""Scores [chunk, V] in float32, which it may write over, and their places -> losses [chunk], and what makes the
gradient of these by the scores [chunk, V]."""


def losses_by_chunk(
    states: Tensor, weight: Tensor | None, bias: Tensor | None, of_chunk: OfChunk, *, size: int
) -> Tensor:
    """Losses of N positions from their scores, of which those of one chunk at a time are held; float32 [N].

    The gradient by `states` is made in the same pass as the losses; for that by the head the scores are made again.

    Args:
        states: what the head reads, [N, hidden]; or the scores themselves, [N, V].
        weight: of the head, [V, hidden]; None where `states` are the scores.
        bias: of the head, [V].
        of_chunk: the loss.
        size: positions in a chunk.
    """
    losses: Tensor = _LossesByChunk.apply(states, weight, bias, of_chunk, size)  # type: ignore[no-untyped-call]
    return losses


class _LossesByChunk(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor | None, bias: Tensor | None, of_chunk: OfChunk, size: int
    ) -> Tensor:
        losses = torch.empty(len(states), dtype=torch.float32, device=states.device)
        by_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        for chunk in _chunks(len(states), size):
            losses[chunk], gradient = of_chunk(scores_of(states[chunk], weight, bias), chunk)
            if by_states is not None:
                rows = gradient().to(states.dtype)
                by_states[chunk] = rows if weight is None else product_back(rows, weight)
        ctx.save_for_backward(states, weight, bias, by_states)
        ctx.of_chunk, ctx.size = of_chunk, size
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias, by_states = ctx.saved_tensors
        grad = grads[0]
        by_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        by_bias = torch.zeros_like(bias, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        for chunk in _chunks(len(states), ctx.size) if by_weight is not None or by_bias is not None else ():
            _, gradient = ctx.of_chunk(scores_of(states[chunk], weight, bias), chunk)
            rows = gradient().mul_(grad[chunk, None])
            if by_weight is not None:
                by_weight += rows.to(states.dtype).T @ states[chunk]
            if by_bias is not None:
                by_bias += rows.sum(dim=0)
        return (
            None if by_states is None else by_states * grad[:, None].to(by_states.dtype),
            None if by_weight is None else by_weight.to(weight.dtype),
            None if by_bias is None else by_bias.to(bias.dtype),
            None,
            None,
        )


def _chunks(length: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, length, size)]


def scores_of(states: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """[chunk, V] in float32, never the memory of `states`."""
    if weight is None:
        return states.to(torch.float32, copy=True)
    return product(states, weight, bias).float()


def gradient_by_scores(scores: Tensor, norms: Tensor, targets: Tensor) -> Tensor:
    """Gradient of the losses by the scores, written over them: softmax less one at the target."""
    found = scores.sub_(norms[:, None]).exp_()
    found[torch.arange(len(targets), device=found.device), targets] -= 1.0
    return found
