"""Which layers may go: by how little they change what passes through them, or by the loss without them.

x_l,t is what enters layer l for token t, x_L,t what leaves the last one; n layers are removed.

    block_influence   1 - mean_t cos(x_l,t, x_l+1,t)                    (Men et al. 2024, arXiv 2403.03853, equation 1)
    angular           mean over rows of arccos(cos(x_l,T, x_l+n,T)) / pi, T the row's last token
                                                                                (Gromov et al. 2024, arXiv 2403.17887)
    loss              mean loss without the layer; the layer whose loss is least goes, and those that are left are
                      measured again                              (SLEB: Song et al. 2024, arXiv 2402.09025, metric 3)

Layers that need not be contiguous are scored one by one (n = 1 above), and the lowest go. Of contiguous ones every
block of n layers is scored, and the lowest goes: by block_influence with cos(x_l, x_l+n), by loss with all n left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from luthier.compress.prune.rows import Rows, counted, summed_loss
from luthier.models.forward import check_packing, hidden_states, in_evaluation
from luthier.models.trunk import HandOn, Hold, layers_in_place
from luthier.spec.prune import LayerMeasure

Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Depth:
    """What was measured of the layers, and which of them go."""

    scores: tuple[float | None, ...]
    """Of each layer; of contiguous ones of the block that begins with it, None where none does. Of `loss` the rise of
    the loss, of layers that need not be contiguous when the layer went, or in the last round where it stays."""
    removed: tuple[int, ...]
    """In the order in which they were chosen."""


def choose_layers(
    model: Any, batches: Sequence[Rows], *, by: LayerMeasure, remove: int, contiguous: bool, tick: Tick
) -> Depth:
    """Score the layers of a model on packed rows, and choose those that go. Of equal ones the lowest goes.

    Args:
        model: in evaluation mode; unchanged afterwards.
        batches: the rows.
        by: the measure.
        remove: how many go.
        contiguous: whether they stand one above the other.
        tick: told of (passes done, all).
    """
    if by == "loss" and not contiguous:
        return _one_by_one(model, batches, remove, tick)
    span = remove if contiguous else 1
    scores = _losses(model, batches, span, tick) if by == "loss" else _turns(model, batches, by, span, tick)
    order = sorted(range(len(scores)), key=scores.__getitem__)  # stable: of equal ones the lowest
    removed = range(order[0], order[0] + remove) if contiguous else order[:remove]
    return Depth((*scores, *[None] * (span - 1)), tuple(removed))


def _turns(model: Any, batches: Sequence[Rows], by: LayerMeasure, span: int, tick: Tick) -> list[float]:
    """How far each layer, or the block of `span` that begins with it, turns what passes through."""
    count = len(model.get_decoder().layers) - span + 1
    sums, terms = [0.0] * count, 0
    for number, rows in enumerate(batches):
        states = states_between(model, rows)
        if by == "angular":
            last = torch.tensor([end - 1 for _, end in rows.spans], device=model.device)
            states = [one[last] for one in states]
        terms += len(states[0])
        for layer in range(count):
            cos = cosine_similarity(states[layer].double(), states[layer + span].double(), dim=-1).clamp(-1.0, 1.0)
            apart = 1.0 - cos if by == "block_influence" else torch.arccos(cos) / math.pi
            sums[layer] += float(apart.sum())
        tick(number + 1, len(batches))
    return [one / terms for one in sums]


def states_between(model: Any, rows: Rows) -> list[Tensor]:
    """What enters each layer, and what leaves the last one: L + 1 times [T, hidden]."""
    check_packing(model)  # it makes passes of its own, once a model
    found: list[Tensor] = []
    layers = list(model.get_decoder().layers)
    hooks = [layer.register_forward_pre_hook(lambda module, given: found.append(given[0][0])) for layer in layers]
    hooks.append(layers[-1].register_forward_hook(lambda module, given, out: found.append(out[0])))
    try:
        with in_evaluation(model):
            hidden_states(model, rows.layout)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(found) == len(layers) + 1, "the decoder left out a layer"
    return found


@contextmanager
def left_out(model: Any, numbers: Sequence[int]) -> Iterator[None]:
    """Within, these layers hand on what enters them."""
    layers = model.get_decoder().layers
    with layers_in_place(model, [HandOn() if n in numbers else layer for n, layer in enumerate(layers)]):
        yield


def mean_loss(model: Any, batches: Sequence[Rows]) -> float:
    """In nats, over all positions that have one."""
    with in_evaluation(model):
        return sum(float(summed_loss(model, rows)) for rows in batches) / counted(batches)


def _loss_above(model: Any, rows: Rows, states: Sequence[Tensor], start: int, gone: Sequence[int]) -> float:
    """Summed loss where what entered `start` enters the layer that follows the last one in `gone`, a block from there.

    What is below is not computed again.
    """
    first = max(gone) + 1
    layers = list(model.get_decoder().layers)
    below = [HandOn() for _ in range(first - 1)]
    with in_evaluation(model), layers_in_place(model, [*below, Hold(states[start]), *layers[first:]]):
        return float(summed_loss(model, rows))


def _losses(model: Any, batches: Sequence[Rows], span: int, tick: Tick) -> list[float]:
    """Rise of the mean loss without each block of `span` layers."""
    count = len(model.get_decoder().layers) - span + 1
    before, sums = mean_loss(model, batches), [0.0] * count
    for number, rows in enumerate(batches):
        states = states_between(model, rows)
        for layer in range(count):
            sums[layer] += _loss_above(model, rows, states, layer, range(layer, layer + span))
        tick(number + 1, len(batches))
    return [one / counted(batches) - before for one in sums]


def _one_by_one(model: Any, batches: Sequence[Rows], remove: int, tick: Tick) -> Depth:
    """The layer whose absence costs least, again and again."""
    before = mean_loss(model, batches)
    scores: dict[int, float] = {}
    gone: list[int] = []
    for number in range(remove):
        left = [layer for layer in range(len(model.get_decoder().layers)) if layer not in gone]
        sums = dict.fromkeys(left, 0.0)
        with left_out(model, gone):
            for place, rows in enumerate(batches):
                states = states_between(model, rows)
                for layer in left:
                    sums[layer] += _loss_above(model, rows, states, layer, [layer])
                tick(number * len(batches) + place + 1, remove * len(batches))
        scores |= {layer: one / counted(batches) - before for layer, one in sums.items()}
        gone.append(min(left, key=scores.__getitem__))
    return Depth(tuple(scores[layer] for layer in sorted(scores)), tuple(gone))
