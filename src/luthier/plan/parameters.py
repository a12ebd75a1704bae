"""Parameter counts from a model's shape alone, for decoders of the Llama family (gated feed-forward, grouped queries).

Symbols: h hidden size, i intermediate size, a = heads x head_dim, g = key-value heads x head_dim, r rank.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from luthier.errors import RecipeError
from luthier.records import ModelShape
from luthier.spec.adapter_section import Adapter, PeftAdapter
from luthier.spec.plugins import ADAPTERS


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


def lowest_adapted(
    shape: ModelShape, target_modules: str | tuple[str, ...], numbers: Collection[int] | None = None
) -> int:
    """Number of the lowest decoder layer that an adapter touches; nothing goes backward below it."""
    return min(linear.layer for linear in adapted(shape, target_modules, numbers))


def trainable_parameters(shape: ModelShape, adapter: Adapter) -> int:
    """What a resolved section trains: its adapter's parameters and modules that learn whole, or weights of the base.

    Raises:
        RecipeError: a name matches nothing.
    """
    facts = ADAPTERS.get(adapter.type)
    if facts.trains_base:
        if adapter.layers_to_transform is None:
            return shape.num_parameters
        return len(adapter.layers_to_transform) * layer_parameters(shape)
    assert facts.parameters is not None
    beside = sum(
        facts.parameters(adapter, linear.name.rpartition(".")[2], linear.fan_in, linear.fan_out)
        for linear in _touched(shape, adapter)
    )
    return beside + _whole_parameters(shape, adapter)


def lowest_learning(shape: ModelShape, adapter: Adapter) -> int:
    """Number of the lowest decoder layer in which something learns; nothing goes backward below it."""
    if adapter.whole_modules:  # norms stand in every layer, embeddings below all of them; the last norm is no matter
        return 0
    if ADAPTERS.get(adapter.type).trains_base:
        return min(adapter.layers_to_transform or (0,))
    assert isinstance(adapter, PeftAdapter)
    return lowest_adapted(shape, adapter.target_modules or "all-linear", adapter.layers_to_transform)


def dense_weights(shape: ModelShape, adapter: Adapter) -> int:
    """Weights that are made anew of the adapted layers in every step and kept for its backward pass."""
    copies = ADAPTERS.get(adapter.type).dense_copies
    if not copies:
        return 0
    return round(copies * sum(linear.fan_in * linear.fan_out for linear in _touched(shape, adapter)))


def _touched(shape: ModelShape, adapter: Adapter) -> tuple[Linear, ...]:
    assert isinstance(adapter, PeftAdapter)
    assert adapter.target_modules is not None
    touched = adapted(shape, adapter.target_modules, adapter.layers_to_transform)
    return tuple(linear for linear in touched if not _is_whole(linear.name, adapter))


def layer_parameters(shape: ModelShape) -> int:
    """Weights of one layer: its linear layers and two norms."""
    return linear_parameters(shape) // shape.num_layers + 2 * shape.hidden_size


def _whole_parameters(shape: ModelShape, adapter: Adapter) -> int:
    """Of modules that learn whole."""
    h = shape.hidden_size
    modules = {linear.name: linear.fan_in * linear.fan_out for linear in linears(shape)}
    for layer in range(shape.num_layers):
        modules |= {f"model.layers.{layer}.{norm}_layernorm": h for norm in ("input", "post_attention")}
    modules["model.norm"] = h
    found = sum(size for name, size in modules.items() if _is_whole(name, adapter))
    ends = sum(_is_whole(end, adapter) for end in ("model.embed_tokens", "lm_head"))
    return found + min(ends, 1 if shape.tied_embeddings else 2) * shape.vocab_size * h


def _is_whole(name: str, adapter: Adapter) -> bool:
    """Whether a module, or one that it stands in, learns whole; by the end of its name as PEFT does it: 'norm' is every
    norm.
    """
    parts = name.split(".")
    paths = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return bool(adapter.whole_modules) and any(path.endswith(adapter.whole_modules) for path in paths)


def linear_parameters(shape: ModelShape) -> int:
    """Weights of the linear layers, the part of the model that each token is multiplied with."""
    return sum(linear.fan_in * linear.fan_out for linear in linears(shape))


def counted_parameters(shape: ModelShape) -> int:
    """All parameters of the decoder if it is of the Llama family: linear layers, embeddings, 2 norms a layer and 1."""
    embeddings = shape.vocab_size * shape.hidden_size * (1 if shape.tied_embeddings else 2)
    norms = (2 * shape.num_layers + 1) * shape.hidden_size
    return linear_parameters(shape) + embeddings + norms
