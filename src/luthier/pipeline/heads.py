"""Classification heads within a training: whose, for how many labels, and how their scores are calibrated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from luthier.data.answers import divided
from luthier.data.shards import Example
from luthier.pipeline.context import Context
from luthier.records import RequestContract
from luthier.spec.recipe import Recipe
from luthier.train_records import Calibration


def head_labels(context: Context) -> dict[str, int]:
    """Task -> labels among which a head is to choose, of those whose labels are not words; '' for a task alone."""
    several = len(context.tasks) > 1
    return {
        task.contract.name if several else "": len(task.contract.head_rows)
        for task in context.tasks
        if task.contract.answered_by == "head"
    }


def calibrates(recipe: Recipe, contract: RequestContract) -> bool:
    """Whether the head's scores are to be calibrated on the validation rows."""
    return contract.answered_by == "head" and bool(getattr(recipe.method, "calibrate", False))


def settling(
    context: Context, examples: Mapping[str, Sequence[Example]]
) -> Callable[[Any], dict[str, Calibration]] | None:
    """What is done to the weights that are kept, before they are written; None for nothing.

    Args:
        context: of the run.
        examples: task -> its validation rows, where it has some.
    """
    asked = [
        task.contract
        for task in context.tasks
        if task.contract.name in examples and calibrates(task.resolved.recipe, task.contract)
    ]
    if not asked:
        return None

    def settle(model: Any) -> dict[str, Calibration]:
        found = {one.name: calibrate_head(model, one, examples[one.name]) for one in asked}
        return {name: calibration for name, calibration in found.items() if calibration is not None}

    return settle


def calibrate_head(model: Any, contract: RequestContract, examples: Sequence[Example]) -> Calibration | None:
    """Fit a temperature on these rows and divide the head's weights by it; None, and nothing done, with too few rows.

    Scores are linear in the weights, so every engine and every plain tool then gives the calibrated chances.
    """
    import numpy as np
    import torch

    from luthier.engines.transformers import TransformersEngine
    from luthier.evals.calibrate import MIN_ITEMS, calibrate, calibrate_each
    from luthier.models.classifier import head_of
    from luthier.train.shard import is_sharded

    head = head_of(model, contract.name)
    if len(examples) < MIN_ITEMS or head is None:
        return None
    engine = TransformersEngine(model, at_once=1) if is_sharded(model) else TransformersEngine(model)
    asked = engine.each(lambda example: engine.class_logits(example.prompt_ids, contract.name), examples)
    scores = np.stack(list(asked)).astype(np.float64)
    if contract.tags:
        sets = [set(divided(example.answer, contract.separator)) for example in examples]
        found = calibrate_each(scores, np.array([[tag in given for tag in contract.tags] for given in sets]))
    else:
        found = calibrate(scores, [contract.labels.index(example.answer) for example in examples])
    with torch.no_grad():
        head.weight.div_(found.temperature)
    return found
