"""Fill what a recipe leaves open about pruning, and refuse what cannot be pruned so."""

from __future__ import annotations

from luthier.errors import RecipeError
from luthier.records import ModelShape
from luthier.spec.filler import Filler
from luthier.spec.prune import (
    FAMILIES,
    FEWER_TOKENS,
    ROUND,
    USUAL_TOKENS,
    Prune,
    PruneLayers,
    PruneUnits,
    family_of,
    kept_channels,
    kept_groups,
    possible_groups,
    pruned_shape,
)


def fill_prune(filler: Filler, shape: ModelShape) -> ModelShape:
    """Resolve `prune`; returns the shape of what is trained.

    Raises:
        RecipeError: the family is not known, nothing would be left, or nothing would go.
    """
    section = filler.tree["prune"]
    if section is None:
        filler.reasons["prune"] = "open on purpose: the base is trained as it is"
        return shape
    prune = Prune.model_validate(section)
    _refuse_family(shape)
    if prune.layers is not None:
        _refuse_depth(prune.layers, shape)
        block = prune.layers.by == "angular"
        why = "that measure is of a block of layers" if block else "each layer is chosen by what it does itself"
        filler.fill("prune.layers.contiguous", block, why)
    if prune.mlp is not None:
        _refuse_channels(prune.mlp, shape, kept_channels(prune, shape))
    if prune.heads is not None:
        _refuse_heads(prune.heads, shape, kept_groups(prune, shape))
    for name in ("layers", "mlp", "heads"):
        if section[name] is None:
            filler.reasons[f"prune.{name}"] = "open on purpose: all of them stay"
    if not prune.asks_rows:
        filler.reasons["prune.tokens"] = "open on purpose: magnitude looks at weights alone"
    elif prune.layers is not None and prune.layers.by == "loss":
        filler.fill("prune.tokens", FEWER_TOKENS, "the loss is measured again for every layer that could go")
    else:
        filler.fill("prune.tokens", USUAL_TOKENS, "some hundred rows, read once or twice")
    return pruned_shape(shape, Prune.model_validate(section))


def _refuse_family(shape: ModelShape) -> None:
    if family_of(shape) not in FAMILIES:
        raise RecipeError(
            f"prune: {shape.name} is a {shape.architecture!r} model, and which weights belong together is not known of "
            "that family",
            way_out=f"known families: {', '.join(FAMILIES)}; leave prune out for any other",
            key="prune",
        )


def _refuse_depth(layers: PruneLayers, shape: ModelShape) -> None:
    if layers.remove >= shape.num_layers:
        raise RecipeError(
            f"prune.layers.remove: {layers.remove} of the {shape.num_layers} layers of {shape.name} leaves none",
            way_out=f"remove fewer than {shape.num_layers}; a quarter is much already",
            key="prune.layers.remove",
        )


def _refuse_channels(units: PruneUnits, shape: ModelShape, kept: int) -> None:
    there = shape.intermediate_size
    if 0 < kept < there:
        return
    step = ROUND if there % ROUND == 0 else 1
    at_a_time = f" ({step} go at a time)" if step > 1 else ""
    raise RecipeError(
        f"prune.mlp.keep: {units.keep:g} of {there} channels are {kept}{at_a_time}, which leaves "
        f"{'all of them' if kept else 'none'}",
        way_out=f"give a share from {step / there:.3g} to {1 - step / there:.3g}"
        if there > step
        else "leave prune.mlp out",
        key="prune.mlp.keep",
    )


def _refuse_heads(units: PruneUnits, shape: ModelShape, kept: int) -> None:
    possible = possible_groups(shape)
    if kept in possible:
        return
    shares = ", ".join(f"{groups / shape.num_kv_heads:.3g} ({groups})" for groups in possible)
    queries = shape.num_heads // shape.num_kv_heads
    why = f"which leaves {'all of them' if kept else 'none'}"
    if 0 < kept < shape.num_kv_heads:
        why = f"and transformers opens no {shape.architecture} of hidden size {shape.hidden_size} with {kept * queries}"
        why += " heads, of which it is no multiple"
    raise RecipeError(
        f"prune.heads.keep: {units.keep:g} of {shape.num_kv_heads} key-value heads are {kept}, {why}",
        way_out=f"possible shares: {shares}" if possible else "leave prune.heads out",
        key="prune.heads.keep",
    )
