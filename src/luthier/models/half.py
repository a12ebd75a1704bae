"""Frozen linear layers whose products are made in bfloat16; what goes in and comes out stays float32.

Processors with AMX or AVX-512 BF16, and every recent accelerator, multiply bfloat16 several times as fast as float32
and sum in float32. A frozen weight is held in bfloat16 alone (half the memory); what is multiplied with it is rounded
to bfloat16, 8 bits of precision, on the way in and on the way out. Everything else, the adapter, attention, norms, the
loss and its sums, is computed in float32 as before (Micikevicius et al. 2018, arXiv 1710.03740, without loss scaling,
which bfloat16's range does not need: Kalamkar et al. 2019, arXiv 1905.12322).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Parameter
from torch.nn.functional import linear

from luthier.models.quantised import holds_four_bits


def product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Rows W' + bias in the precision of the weight, given back in that of the rows; [T, inputs] to [T, outputs]."""
    if weight.dtype == rows.dtype:
        return linear(rows, weight, bias)
    out = linear(rows.to(weight.dtype), weight).to(rows.dtype)
    return out if bias is None else out.add_(bias)


def product_back(grad: Tensor, weight: Tensor) -> Tensor:
    """Grad W in the precision of the weight; [T, outputs] to [T, inputs]."""
    return (grad.to(weight.dtype) @ weight).to(grad.dtype)


class BFloat16Linear(Linear):
    """A frozen layer with its weight in bfloat16."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs], in the precision of what is given."""
        rows = input.reshape(-1, input.shape[-1])
        out: Tensor = _Product.apply(rows, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return out.view(*input.shape[:-1], -1)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return product(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return product_back(grads[0], weight), None, None


def halve(model: Any) -> int:
    """Hold the weight of every frozen linear layer of `model` in bfloat16; how many there were.

    The embedding stays as it is; a head that shares its weight gets a copy. A weight in four bits becomes bfloat16 for
    its product.
    """
    halved = 0
    for module in model.modules():
        if holds_four_bits(module):
            module.compute_dtype = torch.bfloat16
        elif type(module) is Linear and not any(own.requires_grad for own in module.parameters(recurse=False)):
            module.weight = Parameter(module.weight.detach().to(torch.bfloat16), requires_grad=False)
            module.__class__ = BFloat16Linear
            halved += 1
    return halved


def is_halved(model: Any) -> bool:
    """Whether `halve` found something to hold so."""
    return any(type(module) is BFloat16Linear for module in model.modules())
