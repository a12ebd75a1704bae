"""Parameter counts from a model's shape alone, for decoders of the Llama family (gated feed-forward, grouped queries).

Symbols: h hidden size, i intermediate size, a = heads x head_dim, g = key-value heads x head_dim, r rank.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from luthier.errors import RecipeError
from luthier.records import ModelShape
from luthier.spec.plugins import ADAPTERS
from luthier.spec.recipe import Adapter


@dataclass(frozen=True)
class Linear:
    """One linear layer, under its name in transformers."""

    name: str
    layer: int
    """Number of the decoder's layer that it stands in."""
    fan_in: int
    fan_out: int


def linears(shape: ModelShape) -> tuple[Linear, ...]:
    """Every linear layer of the decoder but the output head, layer by layer."""
    h, i = shape.hidden_size, shape.intermediate_size
    a, g = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    of_a_layer = (
        ("self_attn.q_proj", h, a),
        ("self_attn.k_proj", h, g),
        ("self_attn.v_proj", h, g),
        ("self_attn.o_proj", a, h),
        ("mlp.gate_proj", h, i),
        ("mlp.up_proj", h, i),
        ("mlp.down_proj", i, h),
    )
    return tuple(
        Linear(f"model.layers.{layer}.{name}", layer, fan_in, fan_out)
        for layer in range(shape.num_layers)
        for name, fan_in, fan_out in of_a_layer
    )


def adapted(
    shape: ModelShape, target_modules: str | tuple[str, ...], numbers: Collection[int] | None = None
) -> tuple[Linear, ...]:
    """The linear layers that an adapter touches, matched as PEFT does it.

    'all-linear' is all of them, another text is a regular expression over whole names, a tuple holds ends of names.

    Args:
        shape: of the base.
        target_modules: see above.
        numbers: of the decoder's layers that have an adapter; None for all of them.

    Raises:
        RecipeError: a name or the expression matches nothing, or is no expression.
    """
    layers = tuple(linear for linear in linears(shape) if numbers is None or linear.layer in numbers)
    known = ", ".join(dict.fromkeys(linear.name.rpartition(".")[2] for linear in layers))
    if target_modules == "all-linear":
        return layers
    if isinstance(target_modules, str):
        try:
            pattern = re.compile(target_modules)
        except re.error as error:
            raise RecipeError(
                f"adapter.target_modules: {target_modules!r} is not a regular expression: {error}",
                way_out=f"write 'all-linear' or a list of {known}",
            ) from error
        chosen = tuple(linear for linear in layers if pattern.fullmatch(linear.name))
        missing = [] if chosen else [target_modules]
    else:
        ends = {name: "." + name for name in target_modules}
        chosen = tuple(linear for linear in layers if linear.name.endswith(tuple(ends.values())))
        missing = [name for name, end in ends.items() if not any(linear.name.endswith(end) for linear in layers)]
    if missing:
        raise RecipeError(
            f"adapter.target_modules: {missing[0]!r} matches no linear layer of {shape.name}",
            way_out=f"write 'all-linear' or a list of {known}",
        )
    return chosen


def adapter_parameters(
    shape: ModelShape,
    *,
    r: int,
    target_modules: str | tuple[str, ...] = "all-linear",
    numbers: Collection[int] | None = None,
) -> int:
    """Trainable parameters of a LoRA adapter: r (fan_in + fan_out) a linear layer (Hu et al. 2021, section 4.1)."""
    return sum(r * (linear.fan_in + linear.fan_out) for linear in adapted(shape, target_modules, numbers))


def trainable_parameters(shape: ModelShape, adapter: Adapter) -> int:
    """What a resolved section trains: its adapter's parameters, or weights of the base.

    Raises:
        RecipeError: a name matches nothing.
    """
    facts = ADAPTERS.get(adapter.type or "")
    if facts.trains_base:
        layers = adapter.layers_to_transform
        linear = sum(linear.fan_in * linear.fan_out for linear in linears(shape) if linear.layer in (layers or ()))
        return shape.num_parameters if layers is None else linear
    assert facts.parameters is not None
    return sum(
        facts.parameters(adapter, linear.name.rpartition(".")[2], linear.fan_in, linear.fan_out)
        for linear in adapted(shape, adapter.target_modules or "all-linear", adapter.layers_to_transform)
    )


def lowest_learning(shape: ModelShape, adapter: Adapter) -> int:
    """Number of the lowest decoder layer in which something learns; nothing goes backward below it."""
    if ADAPTERS.get(adapter.type or "").trains_base:
        return min(adapter.layers_to_transform or (0,))
    return lowest_adapted(shape, adapter.target_modules or "all-linear", adapter.layers_to_transform)


def lowest_adapted(
    shape: ModelShape, target_modules: str | tuple[str, ...], numbers: Collection[int] | None = None
) -> int:
    """Number of the lowest decoder layer that an adapter touches; nothing goes backward below it."""
    return min(linear.layer for linear in adapted(shape, target_modules, numbers))


def linear_parameters(shape: ModelShape) -> int:
    """Weights of the linear layers, the part of the model that each token is multiplied with."""
    return sum(linear.fan_in * linear.fan_out for linear in linears(shape))


def counted_parameters(shape: ModelShape) -> int:
    """All parameters of the decoder if it is of the Llama family: linear layers, embeddings, 2 norms a layer and 1."""
    embeddings = shape.vocab_size * shape.hidden_size * (1 if shape.tied_embeddings else 2)
    norms = (2 * shape.num_layers + 1) * shape.hidden_size
    return linear_parameters(shape) + embeddings + norms
