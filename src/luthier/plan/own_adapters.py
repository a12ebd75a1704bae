"""What the plan says where each task has an adapter of its own: what learns at a time, and what is kept on disk."""

from __future__ import annotations

from luthier.plan.memory import FLOAT_BYTES
from luthier.plan.words import size
from luthier.plan_records import Plan
from luthier.records import ModelShape
from luthier.spec.resolve import ResolvedRecipe


def own_adapters_notes(resolved: ResolvedRecipe, shape: ModelShape, plan: Plan) -> tuple[str, ...]:
    """Sizes of what is kept; nothing where one adapter serves all tasks.

    Args:
        resolved: the recipe of all tasks.
        shape: of the base.
        plan: of all tasks.
    """
    if not resolved.recipe.has_own_adapters:
        return ()
    chosen = next(one for one in plan.candidates if one.technique == plan.chosen)
    times, whole = len(resolved.parts), shape.num_parameters * FLOAT_BYTES
    notes = [
        f"{times} adapters over one base: tasks learn one after the other, so memory is that of one training; the "
        f"adapters take {size(chosen.trainable_parameters * FLOAT_BYTES)} together."
    ]
    if whole_models := [name for name in resolved.recipe.export or () if name != "adapter"]:
        notes.append(
            f"export {', '.join(whole_models)} writes a whole model for each task, of {size(whole)} in float32: "
            f"{times * len(whole_models)} models; without it the base is kept once."
        )
    return tuple(notes)
