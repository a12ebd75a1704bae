"""Which feed-forward channels and attention heads may go: the same number in every layer, by what they do there.

A unit is what one part of a layer writes to the residual stream: channel j adds W_down[:, j] a_j, where a_j is what
enters the down projection; key-value head g adds W_o[:, g] z_g, where z_g is what its queries bring to the output
projection. Their weights W_down[:, j] and W_o[:, g] are called W_u here, their activations a_u.

    activation   sqrt(mean_t |W_u a_u,t|^2)        the size of what it adds: activations as in Minitron (Muralidharan et
                                                   al. 2024, arXiv 2407.14679, section 2.2), with the weights that read
                                                   them as in Wanda (Sun et al. 2024, arXiv 2306.11695, equation 1)
    taylor       mean over rows of |sum_t a_u,t . dL/da_u,t|        the change of the row's summed loss without it, to
                                                   first order (Molchanov et al. 2017, arXiv 1611.06440, section 2.2)
    magnitude    the product of the norms of its weights: |W_gate[j]| |W_up[j]| |W_down[:, j]|, and |W_v[g]| |W_o[:, g]|

Names: T tokens in a packed row, U units of a layer, w values that enter a projection for a unit (1 of a channel), h the
hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from luthier.compress.prune.rows import Rows, summed_loss
from luthier.models.forward import hidden_states, in_evaluation
from luthier.models.head import has_plain_head
from luthier.spec.prune import UnitMeasure

Tick = Callable[[int, int], None]
Part = Literal["mlp", "heads"]
Scores = dict[int, Tensor]
"""Layer -> float64 [U]."""

_READS = {"mlp": ("mlp", "down_proj"), "heads": ("self_attn", "o_proj")}
"""Module of a layer that reads what its units make."""


def unit_scores(
    model: Any,
    batches: Sequence[Rows],
    *,
    by: Mapping[Part, UnitMeasure],
    layers: Sequence[int],
    tick: Tick,
) -> dict[Part, Scores]:
    """Score the units of some layers of a model on packed rows.

    Args:
        model: in evaluation mode, its parameters frozen; unchanged afterwards.
        batches: the rows.
        by: part -> its measure.
        layers: numbers of the layers.
        tick: told of (passes done, all).
    """
    found: dict[Part, Scores] = {}
    for part, measure in by.items():
        if measure == "magnitude":
            found[part] = {n: _magnitudes(model.get_decoder().layers[n], part, model) for n in layers}
    measured: dict[Part, UnitMeasure] = {part: measure for part, measure in by.items() if measure != "magnitude"}
    if not measured:
        return found
    sums = {part: {n: torch.zeros(units_of(model, part), dtype=torch.float64) for n in layers} for part in measured}
    squares = {
        (part, n): _squares(model, part, n)
        for part, measure in measured.items()
        for n in layers
        if measure == "activation"
    }
    slopes = "taylor" in measured.values()
    has_plain_head(model)  # found by a pass of its own, once a model: before the hooks, which would keep that one's
    rows_seen = tokens_seen = 0
    for number, rows in enumerate(batches):
        for part, layer, made in _reading(model, rows, list(measured), layers, slopes=slopes):
            of_sizes = squares.get((part, layer))
            sums[part][layer] += (_changes(made, rows) if of_sizes is None else _sizes(of_sizes, made)).cpu()
        rows_seen += len(rows.spans)
        tokens_seen += rows.tokens
        tick(number + 1, len(batches))
    for part, measure in measured.items():
        whole = {n: one / (tokens_seen if measure == "activation" else rows_seen) for n, one in sums[part].items()}
        found[part] = {n: one.sqrt() for n, one in whole.items()} if measure == "activation" else whole
    return found


def units_of(model: Any, part: Part) -> int:
    """Units of a layer."""
    config = model.config.get_text_config()
    return int(config.intermediate_size if part == "mlp" else config.num_key_value_heads)


def kept_units(scores: Tensor, count: int) -> tuple[int, ...]:
    """The `count` units with the highest scores, ascending; of equal ones the highest numbers stay."""
    order = torch.argsort(scores, stable=True)
    return tuple(sorted(order[len(scores) - count :].tolist()))


def _reader(model: Any, part: Part, layer: int) -> Any:
    block, name = _READS[part]
    return getattr(getattr(model.get_decoder().layers[layer], block), name)


@contextmanager
def _kept_inputs(
    model: Any, parts: Sequence[Part], layers: Sequence[int], *, slopes: bool
) -> Iterator[dict[tuple[Part, int], Tensor]]:
    """What enters the projections that read units: [T, U w], with its gradient kept where that is asked for."""
    found: dict[tuple[Part, int], Tensor] = {}

    def keep(key: tuple[Part, int]) -> Callable[[Any, tuple[Tensor, ...]], None]:
        def hook(module: Any, given: tuple[Tensor, ...]) -> None:
            found[key] = given[0]
            if slopes:
                given[0].retain_grad()

        return hook

    hooks = [_reader(model, part, n).register_forward_pre_hook(keep((part, n))) for part in parts for n in layers]
    if slopes:  # nothing learns, so gradients would begin nowhere
        hooks.append(model.get_input_embeddings().register_forward_hook(lambda module, given, out: _require(out)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _require(states: Tensor) -> Tensor:
    return states.requires_grad_()


def _reading(
    model: Any, rows: Rows, parts: Sequence[Part], layers: Sequence[int], *, slopes: bool
) -> Iterator[tuple[Part, int, Tensor]]:
    """One pass, and backward where slopes are asked for: what the units of each layer made, [T, U, w]."""
    with _kept_inputs(model, parts, layers, slopes=slopes) as found:
        if slopes:
            with torch.enable_grad():
                summed_loss(model, rows).backward()  # type: ignore[no-untyped-call]
        else:
            with in_evaluation(model):
                hidden_states(model, rows.layout)
    for (part, layer), made in found.items():
        each = (made.shape[1], units_of(model, part), -1)
        shaped = made.detach().reshape(each)
        yield part, layer, shaped if made.grad is None else torch.stack([shaped, made.grad.reshape(each)])


def _squares(model: Any, part: Part, layer: int) -> Tensor:
    """W_u^T W_u of each unit; float64 [U, w, w]."""
    weight = _reader(model, part, layer).weight.detach().double()
    weight = weight.reshape(len(weight), units_of(model, part), -1)
    return torch.einsum("huw,huv->uwv", weight, weight)


def _sizes(squares: Tensor, made: Tensor) -> Tensor:
    """sum_t |W_u a_u,t|^2 of each unit; float64 [U]. Of `made` [2, T, U, w] the first half are the activations."""
    made = (made[0] if made.dim() == 4 else made).double()
    return (torch.einsum("tuw,uwv->tuv", made, squares) * made).sum(dim=(0, 2))


def _changes(made: Tensor, rows: Rows) -> Tensor:
    """Sum over rows of |sum_t a_u,t . dL/da_u,t|; float64 [U]. `made` are activations and slopes, [2, T, U, w]."""
    products = (made[0].double() * made[1].double()).sum(dim=-1)  # [T, U]
    return torch.stack([products[start:end].sum(dim=0).abs() for start, end in rows.spans]).sum(dim=0)


def _magnitudes(layer: Any, part: Part, model: Any) -> Tensor:
    """Product of the norms of a unit's weights; float64 [U]."""
    units = units_of(model, part)

    def rows_of(linear: Any) -> Tensor:
        norms: Tensor = linear.weight.double().reshape(units, -1).norm(dim=1)
        return norms

    def columns_of(linear: Any) -> Tensor:
        norms: Tensor = linear.weight.double().T.reshape(units, -1).norm(dim=1)
        return norms

    if part == "mlp":
        block = layer.mlp
        return (rows_of(block.gate_proj) * rows_of(block.up_proj) * columns_of(block.down_proj)).cpu()
    return (rows_of(layer.self_attn.v_proj) * columns_of(layer.self_attn.o_proj)).cpu()
