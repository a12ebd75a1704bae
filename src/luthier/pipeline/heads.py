"""A classification head within a training: for how many labels, and how its scores are calibrated at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from luthier.data.shards import Example
from luthier.pipeline.context import Context
from luthier.records import Calibration, RequestContract
from luthier.spec.recipe import Recipe


def head_labels(context: Context) -> int:
    """Labels among which a head is to choose; 0 where answers are words. A head trains alone (see `joined`)."""
    contracts = [task.contract for task in context.tasks if task.contract.answered_by == "head"]
    assert len(contracts) <= 1, "a head is refused beside other tasks"
    return len(contracts[0].labels) if contracts else 0


def calibrates(recipe: Recipe, contract: RequestContract) -> bool:
    """Whether the head's scores are to be calibrated on the validation rows."""
    return contract.answered_by == "head" and bool(getattr(recipe.method, "calibrate", False))


def settling(context: Context, examples: Sequence[Example]) -> Callable[[Any], Calibration | None] | None:
    """What is done to the weights that are kept, before they are written; None for nothing."""
    if not calibrates(context.resolved.recipe, context.contract):
        return None
    return lambda model: calibrate_head(model, context.contract, examples)


def calibrate_head(model: Any, contract: RequestContract, examples: Sequence[Example]) -> Calibration | None:
    """Fit a temperature on these rows and divide the head's weights by it; None, and nothing done, with too few rows.

    Scores are linear in the weights, so every engine and every plain tool then gives the calibrated chances.
    """
    import numpy as np
    import torch

    from luthier.engines.transformers import TransformersEngine
    from luthier.evals.calibrate import MIN_ITEMS, calibrate
    from luthier.models.classifier import head_of
    from luthier.train.shard import is_sharded

    head = head_of(model)
    if len(examples) < MIN_ITEMS or head is None:
        return None
    engine = TransformersEngine(model, at_once=1) if is_sharded(model) else TransformersEngine(model)
    scores = np.stack(list(engine.each(lambda example: engine.class_logits(example.prompt_ids), examples)))
    found = calibrate(scores.astype(np.float64), [contract.labels.index(example.answer) for example in examples])
    with torch.no_grad():
        head.weight.div_(found.temperature)
    return found
