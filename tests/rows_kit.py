"""Inputs of one task, as most tests of training want them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from luthier.data.shards import Example
from luthier.train.inputs import Inputs, TaskRows
from luthier.train.methods.sft import Sft


def inputs_of(rows: Sequence[Example], method: Any = None, **hashes: str) -> Inputs:
    """Of `rows`, learned by `method` (sft unless given)."""
    given = {"model_sha256": "m", "data_sha256": "d", "recipe_sha256": "r"} | hashes
    return Inputs((TaskRows("task", method or Sft(), rows),), **given)


def with_method(inputs: Inputs, method: Any) -> Inputs:
    """The same rows, learned in another way."""
    return replace(inputs, tasks=tuple(replace(task, method=method) for task in inputs.tasks))
