"""`luthier init DATA`: a recipe for a file that nobody prepared."""

from __future__ import annotations

import os
import re
from pathlib import Path

from luthier.data.profile import profile
from luthier.errors import RecipeError
from luthier.records import DataProfile
from luthier.spec.load import dump_recipe, without_environment
from luthier.spec.resolve import UNBUILT_SHAPES, entry_name
from luthier.store.files import write_atomic

_HEAD = """\
# Written by `luthier init` from what was found in {file}. Look at it, then: luthier run {recipe}
# `luthier check {recipe} --explain` shows every value that is not said here, and why it is what it is.
"""


def init(data: Path, *, output: Path | None) -> tuple[Path, DataProfile]:
    """Write a recipe for `data`.

    Returns:
        Path of the recipe and what was found.

    Raises:
        DataError: the file cannot be read.
        RecipeError: no task can be told from the columns, or the recipe exists already.
    """
    found = profile(data)
    target = output or default_target(data)
    if target.exists():
        raise RecipeError(f"{target} exists already", way_out="give another place with --output")
    columns = ", ".join(f"{column.name} ({column.kind})" for column in found.columns)
    if found.task is None:
        unclear = (
            f"cannot tell input and answer among the columns {columns}",
            "copy a recipe with `luthier recipes cp` and set data.train[0].input and .label",
        )
        what, way_out = UNBUILT_SHAPES.get(found.shape, unclear)
        raise RecipeError(f"{data}: {what if what == unclear[0] else f'its rows {what}'}", way_out=way_out)
    write_atomic(target, _HEAD.format(file=data.name, recipe=target.name) + recipe_text(data, target, found))
    return target, found


def default_target(data: Path) -> Path:
    """Where the recipe for `data` goes: beside it."""
    return data.with_name(f"{_name(data)}.yaml")


def recipe_text(data: Path, target: Path, found: DataProfile) -> str:
    """The recipe for what was found in `data`, to be written to `target`."""
    return dump_recipe(_tree(data, target, found))


def _tree(data: Path, target: Path, found: DataProfile) -> dict[str, object]:
    path = os.path.relpath(data.resolve(), target.parent.resolve())
    entry: dict[str, object] = {"path": without_environment(path), "task": found.task}
    if not found.is_chat:
        entry = {
            "name": entry_name(found.label, found.task or "task"),
            **entry,
            "input": without_environment(found.input),
            "label": without_environment(found.label),
        }
    split: dict[str, object] = {"test": 0.25, "validation": 0.05}
    if found.group_by:
        split["group_by"] = without_environment(found.group_by)
    return {
        "name": _name(data),
        "objective": {"non_regression": {"general.perplexity": "<= 2.5x"}, "budget": {"hours": 1}},
        "model": {"name": "smollm2-135m-instruct"},
        "data": {"train": [entry], "split": split, "privacy": {"action": "redact", "secrets": "redact"}},
        "train": {"max_tokens": 60000},
        "export": ["adapter", "merged"],
    }


def _name(data: Path) -> str:
    stem = data.name.split(".")[0]
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")
    return name or "recipe"
