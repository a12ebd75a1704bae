"""`luthier init DATA`: a recipe for a file that nobody prepared."""

from __future__ import annotations

import os
import re
from pathlib import Path

from luthier.errors import RecipeError
from luthier.pipeline.named import Named, opened
from luthier.records import DataProfile, is_text
from luthier.spec.load import dump_recipe, without_environment
from luthier.spec.resolve import entry_name
from luthier.store.files import write_atomic

_HEAD = """\
# Written by `luthier init` from what was found in {file}. Look at it, then: luthier run {recipe}
# `luthier check {recipe} --explain` shows every value that is not said here, and why it is what it is.
"""


def init(data: Named, *, output: Path | None, offline: bool = False) -> tuple[Path, DataProfile]:
    """Write a recipe for `data`.

    Args:
        data: a file or folder, or a URL.
        output: where the recipe goes; None puts it beside the file, or here for a URL.
        offline: whether other machines may be reached.

    Returns:
        Path of the recipe and what was found.

    Raises:
        DataError: the file cannot be read.
        RecipeError: no task can be told from the columns, or the recipe exists already.
    """
    target = output or default_target(data)
    if target.exists():
        raise RecipeError(f"{target} exists already", way_out="give another place with --output")
    found = opened(data, offline=offline).profile()
    if found.task is None:
        what, way_out = no_recipe(found)
        raise RecipeError(f"{data.text}: {what}", way_out=way_out)
    write_atomic(target, _HEAD.format(file=data.name, recipe=target.name) + recipe_text(data, target, found))
    return target, found


def no_recipe(found: DataProfile) -> tuple[str, str]:
    """Why no recipe is written for this data, and what to do about it."""
    columns = ", ".join(f"{column.name} ({column.kind})" for column in found.columns)
    return (
        f"cannot tell input and answer among the columns {columns}",
        "copy a recipe with `luthier recipes cp` and set data.train[0].input (e.g. '{text}'), .label and .task",
    )


def default_target(data: Named) -> Path:
    """Where the recipe for `data` goes: beside it, or here where it is a URL."""
    return data.folder / f"{_name(data)}.yaml"


def recipe_text(data: Named, target: Path, found: DataProfile) -> str:
    """The recipe for what was found in `data`, to be written to `target`."""
    return dump_recipe(_tree(data, target, found))


def _tree(data: Named, target: Path, found: DataProfile) -> dict[str, object]:
    path = data.text if data.is_url else _relative(Path(data.text), target)
    options = {key: without_environment(value) for key, value in data.given().items()}
    entry: dict[str, object] = {"path": path, **options, "task": found.task}
    if not found.is_chat:
        entry = {
            "name": entry_name("" if found.rejected else found.label, found.task or "task"),
            **entry,
            "input": without_environment(found.input),
            **({"label": without_environment(found.label)} if found.label else {}),
        }
    if found.rejected:
        entry |= {"label": without_environment(found.label), "rejected": without_environment(found.rejected)}
    split: dict[str, object] = {"test": 0.25, "validation": 0.05}
    if found.group_by:
        split["group_by"] = without_environment(found.group_by)
    return {
        "name": _name(data),
        "objective": {"non_regression": {"general.perplexity": "<= 2.5x"}, "budget": {"hours": 1}},
        "model": {"name": "smollm2-135m-instruct"},
        "data": {"train": [entry], "split": split, "privacy": {"action": "redact", "secrets": "redact"}},
        "train": {"max_tokens": 60000, **({"max_length": 512} if is_text(found.task) else {})},
        "export": ["adapter", "merged"],
    }


def _relative(data: Path, target: Path) -> str:
    return without_environment(os.path.relpath(data.resolve(), target.parent.resolve()))


def _name(data: Named) -> str:
    stem = data.name.split(".")[0]
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")
    return name or "recipe"
