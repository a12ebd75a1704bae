"""LoRA layers that compute the same in fewer passes over memory.

y = W x + s B A x, with the second term added into the first by the matrix product itself; backward, from v = s B' dy:
dx = W' dy + A' v, dA = v x', dB = s dy (A x)' (Hu et al. 2021, arXiv 2106.09685, section 4.1). PEFT writes s B A x out,
scales it, and adds it, each a pass over a tensor as large as the layer's output. The layers stay PEFT's, with their
names and parameters; only their forward differs, and only where it says the same.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor
from torch.nn import Identity, Linear

from luthier.models.half import BFloat16Linear, product, product_back


class FusedLoraLinear(LoraLinear):  # type: ignore[misc]
    """PEFT's layer for one plain adapter; anything else is left to PEFT."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        name = self.active_adapters[0] if len(self.active_adapters) == 1 else None
        base = self.base_layer
        if (
            name not in self.lora_A
            or self.disable_adapters
            or self.merged
            or args
            or kwargs
            or name in self.lora_variant
            or not isinstance(self.lora_dropout[name], Identity)
            or self.lora_B[name].bias is not None
            or type(base) not in (Linear, BFloat16Linear)
        ):
            return cast(Tensor, super().forward(x, *args, **kwargs))
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        out: Tensor = _Fused.apply(x, base.weight, base.bias, down, up, float(self.scaling[name]))  # type: ignore[no-untyped-call]
        return out


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # [T, inputs]
        low = rows @ down.to(x.dtype).T  # [T, r]
        out = product(rows, weight, bias)
        out.addmm_(low, up.to(x.dtype).T, alpha=scale)
        ctx.save_for_backward(rows, weight, down, up, low)
        ctx.scale, ctx.has_bias = scale, bias is not None
        return out.reshape(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, down, up, low = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])  # [T, outputs]
        back = grad @ up.to(grad.dtype) * ctx.scale  # [T, r]
        by_x = None
        if ctx.needs_input_grad[0]:
            by_x = product_back(grad, weight)
            by_x.addmm_(back, down.to(grad.dtype))
            by_x = by_x.reshape(*grads[0].shape[:-1], -1)
        by_weight = grad.T @ rows if ctx.needs_input_grad[1] else None
        by_bias = grad.sum(dim=0) if ctx.has_bias and ctx.needs_input_grad[2] else None
        by_down = (back.T @ rows).to(down.dtype)
        by_up = (grad.T @ low).mul_(ctx.scale).to(up.dtype)
        return by_x, by_weight, by_bias, by_down, by_up, None


def fuse(model: Any) -> None:
    """Let every plain LoRA layer of `model` compute so; the module itself is changed."""
    for module in model.modules():
        if type(module) is LoraLinear:
            module.__class__ = FusedLoraLinear
