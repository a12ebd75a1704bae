"""What pruning changes of the plan: the shape that is trained, the stage itself, and what is said of both."""

from __future__ import annotations

from luthier.plan import cost, memory
from luthier.plan.parameters import linear_parameters
from luthier.plan.words import millions
from luthier.plan.workload import Workload
from luthier.records import ModelShape
from luthier.spec.plugins import METHODS
from luthier.spec.prune import Prune, pruned_shape
from luthier.spec.resolve import ResolvedRecipe

ROW_TOKENS = 1024
"""Tokens of a pass of that stage, where no row is longer."""

BACKWARD_FACTOR = 2.0
"""A pass forward and backward with frozen weights over one forward, beside that one."""


def trained_shape(resolved: ResolvedRecipe, shape: ModelShape) -> ModelShape:
    """Shape of what is trained: that of the base, or what pruning leaves of it."""
    return pruned_shape(shape, resolved.recipe.prune)


def _passes(prune: Prune, shape: ModelShape) -> tuple[float, float]:
    """Passes over the rows, in whole forward passes: of the base, and of what is left of its layers.

    Without layer l only what is above it is computed again, (L - 1 - l) / L of a pass; L layers make (L - 1) / 2.
    """
    whole, left = 1.0, 1.0  # the loss before and after
    if prune.layers is not None:
        layers, remove = shape.num_layers, prune.layers.remove
        if prune.layers.by != "loss":
            whole += 1.0
        elif prune.layers.contiguous:
            whole += 2.0 + (layers - remove) * (layers - remove + 1) / (2 * layers)
        else:
            whole += 1.0 + sum((1.0 + (count - 1) / 2) * count / layers for count in range(layers, layers - remove, -1))
    units = {one.by for one in (prune.mlp, prune.heads) if one is not None}
    left += 1.0 + BACKWARD_FACTOR if "taylor" in units else 1.0 if "activation" in units else 0.0
    return whole, left


def pruned_asking_seconds(resolved: ResolvedRecipe, shape: ModelShape, work: Workload, rates: cost.Rates) -> float:
    """Time to ask the pruned model before it is healed; 0 where nothing is pruned."""
    if resolved.recipe.prune is None:
        return 0.0
    return work.test_rows * cost.answer_seconds(trained_shape(resolved, shape), work, rates)


def pruning_seconds(resolved: ResolvedRecipe, shape: ModelShape, work: Workload, rates: cost.Rates) -> float:
    """Time of the stage, from the start of its process; 0 where nothing is pruned."""
    prune = resolved.recipe.prune
    if prune is None:
        return 0.0
    own = trained_shape(resolved, shape)
    seconds = rates.start_seconds + own.num_parameters * memory.FLOAT_BYTES / cost.WRITE_BYTES_PER_SECOND
    if not prune.asks_rows:
        return seconds
    whole, left = _passes(prune, shape)
    tokens = float(min(prune.tokens or 0, round(work.train_rows * work.row_tokens)))
    heads = METHODS.get(resolved.recipe.method.type).has_head
    scored = tokens if heads or work.is_text else tokens * work.answer_tokens / work.row_tokens
    flops = [
        passes * cost.forward_flops(one, tokens=tokens, context=work.row_tokens, with_logits=scored)
        for passes, one in ((whole, shape), (left, own))
    ]
    return seconds + sum(flops) / (rates.score * 1e9)


def pruning_gib(resolved: ResolvedRecipe, shape: ModelShape) -> float:
    """Peak of the stage: the whole model beside the smaller one and what is read of it again; or beside what a pass
    keeps between the layers, or for going backward.
    """
    prune = resolved.recipe.prune
    if prune is None:
        return 0.0
    kept = 0.0
    if prune.layers is not None:
        kept = (shape.num_layers + 1) * ROW_TOKENS * shape.hidden_size * memory.FLOAT_BYTES / memory.GIB
    if any(one is not None and one.by == "taylor" for one in (prune.mlp, prune.heads)):
        kept = max(kept, memory.activations_gib(shape, r=0, tokens=ROW_TOKENS, supervised=ROW_TOKENS))
    smaller = 2 * memory.weights_gib(trained_shape(resolved, shape))
    return memory.RESIDENT_GIB + memory.weights_gib(shape) + max(smaller, kept)


def pruning_notes(resolved: ResolvedRecipe, shape: ModelShape) -> list[str]:
    """How much smaller and faster what is trained will be; what it can is measured, not promised."""
    prune = resolved.recipe.prune
    if prune is None:
        return []
    own = trained_shape(resolved, shape)
    parts = [
        f"{shape.num_layers - own.num_layers} of {shape.num_layers} layers" if prune.layers is not None else "",
        f"{_share(own.intermediate_size, shape.intermediate_size)} of the feed-forward channels" if prune.mlp else "",
        f"{_share(own.num_kv_heads, shape.num_kv_heads)} of the heads" if prune.heads else "",
    ]
    per_token = _operations(own) / _operations(shape)
    return [
        f"prune: {' and '.join(filter(None, parts))} go: {millions(own.num_parameters)} of "
        f"{millions(shape.num_parameters)} parameters stay, {memory.weights_gib(own):.2f} of "
        f"{memory.weights_gib(shape):.2f} GiB in float32, and {per_token:.0%} of the operations of a token. What the "
        "smaller model can is not predicted: it is measured before and after it is healed, beside the original."
    ]


def _share(after: int, before: int) -> str:
    return f"{1 - after / before:.0%}"


def _operations(shape: ModelShape) -> float:
    """Of a token that is answered: every linear layer, and the output head."""
    return linear_parameters(shape) + shape.hidden_size * shape.vocab_size
