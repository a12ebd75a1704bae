"""Log-probabilities of tokens without ever holding the scores of the whole vocabulary for all of them."""

from __future__ import annotations

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
            _plain[model] = isinstance(head, Linear) and torch.equal(head(hidden_states(model, layout)), scores)
    return _plain[model]


def token_losses(hidden: Tensor, head: Linear, targets: Tensor) -> Tensor:
    """- log p(target) of each position, in nats and float32.

    The gradient by `hidden` is made in the same pass as the loss, chunk by chunk: softmax(z) W - W[target].

    Args:
        hidden: what the head reads, [N, hidden].
        head: of the vocabulary.
        targets: int64 [N].

    Returns:
        [N].
    """
    losses: Tensor = _TokenLosses.apply(hidden, head.weight, head.bias, targets)  # type: ignore[no-untyped-call]
    return losses


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        by_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for chunk in _chunks(targets):
            scores = product(hidden[chunk], weight, bias).float()  # [chunk, vocabulary]
            norms = torch.logsumexp(scores, dim=-1)
            losses[chunk] = norms - scores.gather(1, targets[chunk, None])[:, 0]
            if by_hidden is not None:
                by_hidden[chunk] = product_back(_by_scores(scores, norms, targets[chunk]).to(hidden.dtype), weight)
        ctx.save_for_backward(hidden, weight, bias, targets, by_hidden)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        hidden, weight, bias, targets, by_hidden = ctx.saved_tensors
        grad = grads[0]
        by_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        by_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and ctx.needs_input_grad[2] else None
        if by_weight is not None or by_bias is not None:
            for chunk in _chunks(targets):
                scores = product(hidden[chunk], weight, bias).float()
                rows = _by_scores(scores, torch.logsumexp(scores, dim=-1), targets[chunk]) * grad[chunk, None]
                if by_weight is not None:
                    by_weight += rows.to(hidden.dtype).T @ hidden[chunk]
                if by_bias is not None:
                    by_bias += rows.sum(dim=0)
        return (
            None if by_hidden is None else by_hidden * grad[:, None].to(by_hidden.dtype),
            None if by_weight is None else by_weight.to(weight.dtype),
            None if by_bias is None else by_bias.to(bias.dtype),
            None,
        )


def _chunks(targets: Tensor) -> list[slice]:
    size = _CHUNK if targets.device.type == "cpu" else _CHUNK_THERE
    return [slice(start, start + size) for start in range(0, len(targets), size)]


def _by_scores(scores: Tensor, norms: Tensor, targets: Tensor) -> Tensor:
    """Gradient of the losses by the scores, written over them: softmax less one at the target."""
    found = scores.sub_(norms[:, None]).exp_()
    found[torch.arange(len(targets), device=found.device), targets] -= 1.0
    return found
