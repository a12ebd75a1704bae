"""Peak memory of each stage, from shapes alone, on a processor.

Symbols: h hidden size, i intermediate size, a = heads x head_dim, g = key-value heads x head_dim, r rank, L layers,
V vocabulary, M tokens computed at once, S supervised positions among them, P trainable parameters.
"""

from __future__ import annotations

from luthier.plan.parameters import linear_parameters
from luthier.records import ModelShape

GIB = 2**30
FLOAT_BYTES = 4

RESIDENT_GIB = 0.55
"""Python with torch, transformers and peft loaded, before any weight: the resident size after the imports."""

TRAINED_COPIES = 4
"""What AdamW holds a trainable parameter: weight, gradient, first and second moment (Kingma & Ba 2015, algorithm 1)."""

CHECKPOINT_COPIES = 3
"""What is copied of it while a checkpoint is written beside training: weight, first and second moment."""

WHOLE_COPIES = 1
"""What weights of the base that learn take beside that: the best ones so far, what AdamW makes of all of them at once,
less the weight itself, which is the base's and counted there."""

LOGIT_COPIES = 2
"""Logits alive at once at a position: the scores, and what is made of them."""

LOSS_POSITIONS = 256
"""Supervised positions whose logits are held at once, however many a micro-batch has."""

BACKWARD_ROWS = 3
"""Gradients of feed-forward activations alive at once while a layer goes backward: of gate, up and their product."""

GENERAL_POSITIONS = 192
"""Positions of the general text that have logits at once; in float64 for the sum, so they count twice."""

ALLOCATOR_FACTOR = 1.10
"""Activations come and go in sizes that do not fit each other's holes; what the process keeps over what is alive."""

QUESTIONS_AT_ONCE = 4
"""Items that evaluation asks at the same time at most; fewer where there are fewer threads."""

PARITY_MODELS = 2
"""Models in memory while an export is compared with what was trained."""


def weights_gib(shape: ModelShape) -> float:
    """Weights as they are computed with: float32, whatever they are stored in."""
    return shape.num_parameters * FLOAT_BYTES / GIB


def halved_gib(shape: ModelShape) -> float:
    """Weights where the frozen linear layers hold theirs in two bytes, the output head too: a copy where it is tied."""
    head = shape.vocab_size * shape.hidden_size
    fewer = 2 * linear_parameters(shape) + (-2 * head if shape.tied_embeddings else 2 * head)
    return weights_gib(shape) - fewer / GIB


def four_bits_gib(shape: ModelShape, *, double_quant: bool) -> float:
    """Weights where each of the linear layers takes half a byte, and each block of 64 its size: 4 bytes, or with
    double_quant one, and 4 for 256 of these (Dettmers et al. 2023, arXiv 2305.14314, section 3).
    """
    each = 0.5 + (1 + 4 / 256 if double_quant else 4) / 64
    embeddings = shape.vocab_size * shape.hidden_size * (1 if shape.tied_embeddings else 2)
    held = min(linear_parameters(shape), shape.num_parameters - embeddings)  # families without a gate have fewer
    return weights_gib(shape) - (FLOAT_BYTES - each) * held / GIB


def saved_floats_per_token(shape: ModelShape, *, r: int) -> int:
    """Floats a token that one layer keeps for the backward pass: 4h + 2a + 2g + 4i + 7r.

    A frozen weight needs no gradient, so a frozen linear layer keeps nothing; what stays is

        2h   inputs of the two norms (the residual stream)
        2h   outputs of the two norms: inputs of the adapters on q, k, v and on gate, up
        a+2g q, k, v as attention takes them
        a    output of attention: input of the adapter on o
        4i   gate, silu(gate), up, and their product: input of the adapter on down
        7r   inner products of the seven adapters
    """
    h, i, a = shape.hidden_size, shape.intermediate_size, shape.num_heads * shape.head_dim
    g = shape.num_kv_heads * shape.head_dim
    return 4 * h + 2 * a + 2 * g + 4 * i + 7 * r


def activations_gib(
    shape: ModelShape, *, r: int, tokens: int, supervised: float, first: int = 0, recomputed: bool = False
) -> float:
    """What a micro-batch of M tokens keeps for the backward pass and needs during it.

    (L - first) M (saved floats) + copies min(S, 256) V + backward rows M i

    Below `first`, the lowest layer with an adapter, nothing goes backward, so nothing is kept. Where activations are
    computed again going backward, every layer keeps its input, and one at a time the rest: M ((L - first) h + saved
    floats).
    """
    layers, one_layer = shape.num_layers - first, tokens * saved_floats_per_token(shape, r=r)
    saved = layers * tokens * shape.hidden_size + one_layer if recomputed else layers * one_layer
    logits = LOGIT_COPIES * min(supervised, LOSS_POSITIONS) * shape.vocab_size
    backward = BACKWARD_ROWS * tokens * shape.intermediate_size
    return ALLOCATOR_FACTOR * (saved + logits + backward) * FLOAT_BYTES / GIB


def training_gib(
    shape: ModelShape,
    *,
    adapter: int,
    r: int,
    tokens: int,
    supervised: float,
    first: int = 0,
    held: float | None = None,
    opening: float | None = None,
    recomputed: bool = False,
) -> float:
    """Peak of training: the base's weights, `adapter` parameters with optimizer state and its copy, a micro-batch.

    Where the base's own weights learn they are counted with it already, which stands for the copy of the best so far;
    of an adapter that one is next to nothing.

    Args:
        shape: of the base.
        adapter: parameters that are trained.
        r: see `activations_gib`.
        tokens: of a micro-batch.
        supervised: positions among them.
        first: the lowest layer that learns.
        held: GiB of the base's weights while it trains; those of float32 where it is None.
        opening: the most of them while it is read; the same.
        recomputed: whether activations are computed again going backward.
    """
    trained = adapter * (TRAINED_COPIES + CHECKPOINT_COPIES) * FLOAT_BYTES / GIB
    activations = activations_gib(shape, r=r, tokens=tokens, supervised=supervised, first=first, recomputed=recomputed)
    weights = weights_gib(shape) if held is None else held
    return RESIDENT_GIB + max(weights_gib(shape) if opening is None else opening, weights + trained + activations)


def whole_weights_gib(trained: int) -> float:
    """What `training_gib` leaves out where so many weights of the base itself are trained."""
    return WHOLE_COPIES * trained * FLOAT_BYTES / GIB


def evaluation_gib(shape: ModelShape, *, adapter: int, tokens: float, scored: float, threads: int) -> float:
    """Peak of evaluation: base and adapter in one model; of each item asked at once a prompt of `tokens` and `scored`
    positions with logits.
    """
    at_once = min(threads, QUESTIONS_AT_ONCE)
    layer = tokens * (4 * shape.hidden_size + 4 * shape.intermediate_size)
    logits = LOGIT_COPIES * scored * shape.vocab_size
    return (
        RESIDENT_GIB
        + weights_gib(shape)
        + (adapter + ALLOCATOR_FACTOR * at_once * (layer + logits)) * FLOAT_BYTES / GIB
    )


def export_gib(shape: ModelShape) -> float:
    """Peak of exporting: what was trained and the artifact, side by side."""
    return RESIDENT_GIB + PARITY_MODELS * weights_gib(shape)
