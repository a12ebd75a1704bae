"""Recipes and their small data, shipped in the wheel and found by name."""

from __future__ import annotations

import shutil
from pathlib import Path

_HERE = Path(__file__).parent


def names() -> tuple[str, ...]:
    """Names of the shipped recipes, sorted."""
    return tuple(sorted(path.parent.name for path in _HERE.glob("*/recipe.yaml")))


def find(name: str) -> Path:
    """Path of the recipe called `name`.

    Raises:
        KeyError: there is none of that name.
    """
    if name not in names():
        raise KeyError(name)
    return _HERE / name / "recipe.yaml"


def copy(name: str, destination: Path) -> Path:
    """Copy a shipped recipe and its data into a new folder; returns the copied recipe.

    Raises:
        KeyError: there is none of that name.
        FileExistsError: the folder exists already.
    """
    source = find(name)
    shutil.copytree(source.parent, destination)
    return destination / source.name


def general_text() -> str:
    """A plain English text on many subjects, written for this project: what a model should not forget."""
    return (_HERE / "general-english.txt").read_text(encoding="utf-8")
