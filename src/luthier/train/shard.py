"""Weights of the decoder's layers divided between ranks (FSDP2), for bases that no rank can hold beside its work.

Each layer's weights lie in equal parts on all ranks and come together only while that layer is computed (Zhao et al.
2023, arXiv 2304.11277; torch's `fully_shard`). Embeddings, the last norm and the head stay whole on each: the head's
weight is read directly (models/head.py). Three things differ from torch's habit, and make the gradient that of one
process: gradients are summed, not averaged, since each part is divided by the whole step's count already; only the last
micro-batch of a step sums them; and a rank that has fewer micro-batches than another computes a row that counts
nothing, for whoever leaves out a layer's exchange leaves the others waiting.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from luthier.models.adapters import bare
from luthier.train.dist import Ranks


def shard(model: Any, ranks: Ranks) -> None:
    """Divide the weights of the decoder's layers between the ranks, in place; one process keeps them whole."""
    if ranks.size == 1:
        return
    ranks.same_weights(p for p in model.parameters() if p.requires_grad)
    decoder = bare(model).get_decoder()
    mesh = init_device_mesh(model.device.type, (ranks.size,))
    undivided = set(decoder.parameters()) - {parameter for layer in decoder.layers for parameter in layer.parameters()}
    for layer in decoder.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    # The root has no weights of its own: it lets one layer's weights come together while another computes.
    fully_shard(decoder, mesh=mesh, ignored_params=undivided)
    for module in decoder.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other, and a factor of 1 needs no other


def is_sharded(model: Any) -> bool:
    """Whether a model's layers are divided between ranks, so that all must compute whatever one computes."""
    return isinstance(bare(model).get_decoder(), FSDPModule)


def sum_on_backward(model: Any, last: bool) -> None:
    """Let the next backward pass sum gradients over the ranks, or only add to what it has computed itself."""
    if is_sharded(model):
        decoder = bare(model).get_decoder()
        decoder.set_requires_gradient_sync(last)
        decoder.set_is_last_backward(last)


def is_part(tensor: Tensor) -> bool:
    """Whether this rank holds a part of a tensor."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, each whole; all ranks have to ask."""
    return {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in tensors.items()}


def clip(parameters: Iterable[Parameter], most: float, ranks: Ranks) -> float:
    """Scale the gradients so that their norm over all parameters and ranks is at most `most`; gives the norm before.

    Raises:
        RankLost: another rank has ended.
    """
    held = [p for p in parameters if p.grad is not None]
    if not any(is_part(p) for p in held):
        return float(torch.nn.utils.clip_grad_norm_(held, most))
    gradients = [(is_part(p), local(p.grad)) for p in held if p.grad is not None]
    of_parts = sum(float(g.double().square().sum()) for part, g in gradients if part)
    of_wholes = sum(float(g.double().square().sum()) for part, g in gradients if not part)  # the same on every rank
    norm = float((ranks.sum_numbers(of_parts)[0] + of_wholes) ** 0.5)
    factor = min(1.0, most / (norm + 1e-6))  # as torch's clip_grad_norm_ has it
    for _, gradient in gradients:
        gradient.mul_(factor)
    return norm
