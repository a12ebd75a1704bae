"""A recipe of several tasks is one recipe a task; they share base, adapter and training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from luthier.errors import RecipeError
from luthier.spec.load import LoadedRecipe, translate
from luthier.spec.multi_task import MultiTask
from luthier.spec.objective import Objective
from luthier.spec.plugins import METHODS
from luthier.spec.recipe import Evaluate, Recipe
from luthier.spec.resolve import ResolvedRecipe
from luthier.spec.section import Section

AnySection = TypeVar("AnySection", bound=Section)

OWN_KEYS = ("validation", "test", "split", "limit", "labels", "filter", "augment", "features", "columns")
"""Keys of a data entry that stand in the place of `data.KEY` for its task."""

OWN_PLACES = {"method": "method", "glossary": "evaluate.glossary"}
"""Keys of a data entry that stand in the place of another one for its task."""

_SHARED = ("adapter", "train", "merge", "prune", "launch", "export")
"""Sections that the tasks of one training have in common."""


def task_recipe(recipe: Recipe, place: int) -> Recipe:
    """The recipe of one task alone: what its entry says stands in the place of what is said for all.

    Targets of other tasks are left out. Of one entry it is the same recipe, what the entry says in its usual place.
    """
    entry = recipe.data.train[place]
    own: dict[str, Any] = {key: getattr(entry, key) for key in OWN_KEYS if getattr(entry, key) is not None}
    alone = _without(entry, *OWN_KEYS, *OWN_PLACES)
    changes: dict[str, Any] = {"data": recipe.data.model_copy(update={**own, "train": (alone,)})}
    if len(recipe.data.train) > 1:
        changes["objective"] = _objective_of(recipe, [entry.name])
    if entry.method is not None:
        changes["method"] = entry.method
    if entry.glossary is not None:
        given = {name: getattr(recipe.evaluate, name) for name in recipe.evaluate.model_fields_set}
        changes["evaluate"] = Evaluate(**{**given, "glossary": entry.glossary})
    return _without(recipe.model_copy(update=changes), "multi_task")


def _objective_of(recipe: Recipe, names: Sequence[str | None]) -> Objective:
    """Without the lines of other tasks than these; what is asked of the model itself stays."""
    objective = recipe.objective
    targets = {key: text for key, text in objective.targets.items() if key.rpartition(".")[0] in names}
    limits = objective.non_regression
    kept = {key: text for key, text in limits.items() if key.rpartition(".")[0] in ("general", *names)}
    return objective.model_copy(update={"targets": targets, "non_regression": kept})


def task_loaded(loaded: LoadedRecipe, place: int) -> LoadedRecipe:
    """The same of a recipe with its places, so that an error names the line where its key stands.

    Raises:
        RecipeError: what the entry says for itself does not go with the rest.
    """
    places: dict[str, str] = {}
    for key, where in loaded.places.items():
        match = re.fullmatch(r"data\.train\.(\d+)(?:\.(.*))?", key)
        if match is None:
            places.setdefault(key, where)
        elif int(match[1]) == place:
            own = match[2] or ""
            section = own.partition(".")[0]
            rest = own.removeprefix(section)
            moved = OWN_PLACES.get(section, f"data.{section}" if section in OWN_KEYS else f"data.train.0.{section}")
            places[f"{moved}{rest}".rstrip(".")] = where
    recipe = task_recipe(loaded.recipe, place)
    try:  # what an entry says for itself has to fit what is said for all
        Recipe.model_validate(recipe.model_dump(mode="json", exclude_unset=True))
    except ValidationError as error:
        raise translate(error, {"": str(loaded.path), **places}) from error
    return LoadedRecipe(recipe, loaded.path, loaded.text, loaded.notes, places)


def of_tasks(loaded: LoadedRecipe, names: Sequence[str]) -> LoadedRecipe:
    """The recipe of some of its tasks, in its own order; targets and shares of the others are left out."""
    recipe = loaded.recipe
    places = [place for place, entry in enumerate(recipe.data.train) if entry.name in names]
    kept = tuple(recipe.data.train[place] for place in places)
    mix = recipe.multi_task
    if mix is not None and isinstance(mix.sampling, dict):
        mix = mix.model_copy(update={"sampling": {name: mix.sampling[name] for name in names}})
    changes: dict[str, Any] = {
        "data": recipe.data.model_copy(update={"train": kept}),
        "objective": _objective_of(recipe, names),
        "multi_task": mix if len(kept) > 1 else None,
    }
    moved: dict[str, str] = {}
    for key, where in loaded.places.items():
        match = re.fullmatch(r"data\.train\.(\d+)(.*)", key)
        if match is None:
            moved[key] = where
        elif int(match[1]) in places:
            moved[f"data.train.{places.index(int(match[1]))}{match[2]}"] = where
    return LoadedRecipe(recipe.model_copy(update=changes), loaded.path, loaded.text, loaded.notes, moved)


def refuse_strange_targets(loaded: LoadedRecipe) -> None:
    """Every target is of some task.

    Raises:
        RecipeError: one names no entry of several; of one entry that is said when it is resolved.
    """
    names = [entry.name for entry in loaded.recipe.data.train]
    objective = loaded.recipe.objective
    lines = [f"targets.{key}" for key in objective.targets]
    lines += [f"non_regression.{key}" for key in objective.non_regression if not key.startswith("general.")]
    for line in lines if len(names) > 1 else ():
        if line.partition(".")[2].rpartition(".")[0] not in names:
            raise RecipeError(
                f"{loaded.where(f'objective.{line}')}: objective.{line} names no data entry",
                way_out=f"entries: {', '.join(map(str, names))}",
            )


def joined(loaded: LoadedRecipe, tasks: Sequence[ResolvedRecipe]) -> ResolvedRecipe:
    """One resolved recipe of those of its tasks; what they share is the first one's.

    Where the recipe leaves settings of the loop open that the tasks would have differently, one serves all of them,
    unless each has an adapter of its own: then each has the settings that it would have alone.

    Raises:
        RecipeError: runs are merged, and a task has a classification head; or weights of tasks are learned from losses,
            and that of one says nothing.
    """
    for place, task in enumerate(tasks if loaded.recipe.merge is not None else ()):
        if METHODS.get(task.recipe.method.type).has_head:
            raise RecipeError(
                f"{loaded.where(f'data.train.{place}')}: data.train.{place}: heads of several tasks are not merged",
                way_out="merge the runs of one task at a time, or runs that learned labels as words (method: sft)",
            )
    mix = loaded.recipe.multi_task or MultiTask()
    for place, task in enumerate(tasks if mix.loss == "uncertainty" else ()):
        if METHODS.get(task.recipe.method.type).by_rewards:
            raise RecipeError(
                f"{loaded.where('multi_task.loss')}: multi_task.loss uncertainty weighs tasks by the size of their "
                f"losses, and data.train.{place} learns from rewards, whose loss is about 0 however well it does",
                way_out="set multi_task.loss: static with data.train[].weight, or pcgrad",
            )
    first = tasks[0]
    shared: dict[str, Any] = {name: getattr(first.recipe, name) for name in _SHARED}
    reasons = {
        key: why for key, why in first.reasons.items() if key.partition(".")[0] in (*_SHARED, "objective", "model")
    }
    own = loaded.recipe.has_own_adapters
    settings, why_settings = ({}, {}) if own else _shared_settings(loaded, tasks)
    shared["train"] = first.recipe.train.model_copy(update=settings)
    reasons |= why_settings
    entries = []
    for place, task in enumerate(tasks):
        entries.append(task.recipe.entry.model_copy(update={"method": task.recipe.method}))
        reasons |= {
            key.replace("data.train.0", f"data.train.{place}", 1): why
            for key, why in task.reasons.items()
            if key.startswith("data.train.0")
        }
        reasons |= {f"data.train.{place}.{key}": why for key, why in task.reasons.items() if key.startswith("method")}
    data = loaded.recipe.data.model_copy(update={"train": tuple(entries)})
    recipe = loaded.recipe.model_copy(update={**shared, "data": data, "multi_task": mix})
    return ResolvedRecipe(
        recipe=recipe,
        reasons=reasons,
        notes=loaded.notes,
        folder=first.folder,
        data_sha256={
            key.replace("data.train.0", f"data.train.{place}", 1): found
            for place, task in enumerate(tasks)
            for key, found in task.data_sha256.items()
        },
        model_sha256=first.model_sha256,
        luthier_version=first.luthier_version,
        parents=first.parents,
        tasks=tuple(
            task
            if own
            else task.model_copy(
                update={
                    "recipe": task.recipe.model_copy(update=shared),
                    "reasons": {**task.reasons, **why_settings},
                }
            )
            for task in tasks
        ),
    )


def _shared_settings(loaded: LoadedRecipe, tasks: Sequence[ResolvedRecipe]) -> tuple[dict[str, object], dict[str, str]]:
    """Where tasks would have different settings of the one loop: what serves all of them, and why."""
    given, values, reasons = loaded.recipe.train.model_fields_set, dict[str, object](), dict[str, str]()
    for key in ("learning_rate", "batch_size"):
        found = [getattr(task.recipe.train, key) for task in tasks]
        if key not in given and len(set(found)) > 1:
            values[key], reasons[f"train.{key}"] = min(found), "the smallest of those that the tasks would have"
    found = [task.recipe.train.gradient_checkpointing for task in tasks]
    if "gradient_checkpointing" not in given and len(set(found)) > 1:
        values["gradient_checkpointing"] = True
        reasons["train.gradient_checkpointing"] = "a task needs it to fit objective.budget.ram_gib"
    return values, reasons


def _without(section: AnySection, *names: str) -> AnySection:
    """A copy in which these fields are open."""
    kept = {name: getattr(section, name) for name in section.model_fields_set if name not in names}
    return type(section).model_construct(_fields_set=set(kept), **kept)  # type: ignore[return-value]
