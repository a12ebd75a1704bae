"""Teachers opened beside the model that learns from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import RecipeError
from luthier.models.base import import_base
from luthier.pipeline.bases import model_source
from luthier.pipeline.context import Context
from luthier.pipeline.teacher import KEY
from luthier.records import Teacher
from luthier.store.files import sha256_file
from luthier.store.runs import config_file, weights_file, weights_sha256

if TYPE_CHECKING:
    from luthier.train.inputs import Inputs


def with_teachers(inputs: Inputs, context: Context, model: Any) -> Inputs:
    """The inputs, ready to be learned: each task that is taught has its teacher, where `model` is.

    Raises:
        RecipeError: a teacher is gone or has changed since the run was made.
    """
    from luthier.train.methods.distill import Taught

    opened: dict[str, Any] = {}
    tasks = []
    for task, part in zip(inputs.tasks, context.resolved.parts, strict=True):
        if isinstance(task.method, Taught):
            assert part.teacher is not None  # resolved
            if part.teacher.sha256 not in opened:
                opened[part.teacher.sha256] = open_teacher(part.teacher, model, bf16=bool(part.recipe.train.bf16))
            task = replace(task, method=task.method.under(opened[part.teacher.sha256]))
        tasks.append(task)
    return replace(inputs, tasks=tuple(tasks))


def open_teacher(teacher: Teacher, model: Any, *, bf16: bool) -> Any:
    """The teacher in evaluation mode, in the precision and the place of `model`, which learns.

    Raises:
        RecipeError: it is gone, or has changed.
    """
    from luthier.models.base import load_base
    from luthier.models.half import halve
    from luthier.models.taught import share_weights
    from luthier.models.tuned import load_tuned

    base = import_base(model_source(teacher.shape))
    if not teacher.tuned:
        opened: Any = load_base(base)
    else:
        folder = Path(teacher.tuned)
        config = config_file(folder)
        there = weights_file(folder).is_file() and config.is_file()
        if not there or (weights_sha256(folder), sha256_file(config)) != (teacher.tuned_sha256, teacher.config_sha256):
            raise RecipeError(
                f"{KEY} {teacher.named!r}: its weights or {config.name} in {folder} are gone or have changed since "
                "this run was made",
                way_out="run the recipe again, which makes a new run",
            )
        opened = load_tuned(base, folder)
    opened.requires_grad_(False)
    if bf16:
        halve(opened)
    opened = opened.to(model.device)
    share_weights(opened, model)
    return opened
