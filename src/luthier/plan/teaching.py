"""What a teacher takes beside the model that learns: it reads the same tokens forward only, and stays in memory."""

from __future__ import annotations

from luthier.plan import memory
from luthier.plan.cost import Rates, forward_flops, greedy_seconds, prompt_seconds
from luthier.plan.workload import Workload
from luthier.records import ModelShape
from luthier.spec.plugins import ADAPTERS
from luthier.spec.resolve import ResolvedRecipe

SCORE_COPIES = 5
"""Tensors of scores alive at once at a position: of model and teacher, their chances, and the gradient."""

POSITIONS = 128
"""Supervised positions whose scores are held at once."""


def teacher_flops(resolved: ResolvedRecipe, *, tokens: float, supervised: float, context: float) -> float:
    """Its forward pass over all tokens that training computes, with scores where the model has some; 0 without one."""
    if resolved.teacher is None:
        return 0.0
    return forward_flops(resolved.teacher.shape, tokens=tokens, context=context, with_logits=supervised)


def writing_seconds(resolved: ResolvedRecipe, shape: ModelShape, work: Workload, rates: Rates) -> float:
    """Answers that the model writes itself while it learns, one row after another; several to a row together.

    A token of one answer takes reading all weights; of several at once it takes that, or making their products where
    these are more.
    """
    rows = work.trained_tokens / work.row_tokens
    if work.answers_written > 1:
        tokens = work.answers_written * work.written_tokens
        flops = forward_flops(shape, tokens=tokens, context=work.row_tokens, with_logits=tokens)
        alone = forward_flops(
            shape, tokens=work.written_tokens, context=work.row_tokens, with_logits=work.written_tokens
        )
        together = max(alone / (rates.greedy * 1e9), flops / (rates.score * 1e9))
        return rows * (prompt_seconds(shape, work, rates) + together)
    share = getattr(resolved.recipe.method, "on_policy", 0.0)
    return share * rows * (prompt_seconds(shape, work, rates) + greedy_seconds(shape, work, rates)) if share else 0.0


def teacher_gib(resolved: ResolvedRecipe, shape: ModelShape, *, supervised: float) -> float:
    """What a process of training takes more with it.

    Its activations are gone before the model's are made, so they count nothing. Weights that it has from the same
    frozen base as the model are held once.
    """
    if resolved.teacher is None:
        return 0.0
    theirs, recipe = resolved.teacher.shape, resolved.recipe
    positions = SCORE_COPIES * min(supervised, POSITIONS) - memory.LOGIT_COPIES * min(supervised, memory.LOSS_POSITIONS)
    scores = memory.ALLOCATOR_FACTOR * max(0.0, positions) * theirs.vocab_size * memory.FLOAT_BYTES / memory.GIB
    alike = theirs.sha256 == shape.sha256 and not recipe.model.load_in_4bit  # the teacher's are not in four bits
    if alike and not ADAPTERS.get(recipe.adapter.type or "").trains_base:
        return scores
    return scores + (memory.halved_gib(theirs) if recipe.train.bf16 else memory.weights_gib(theirs))


def opening_gib(resolved: ResolvedRecipe, shape: ModelShape) -> float:
    """Of a process that reads the teacher's weights beside the model's, before what both have alike is held once."""
    if resolved.teacher is None:
        return 0.0
    return memory.RESIDENT_GIB + memory.weights_gib(shape) + memory.weights_gib(resolved.teacher.shape)
