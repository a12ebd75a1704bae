"""A function that an installed package offers in the entry point group `luthier.rewards`."""

from __future__ import annotations

from importlib.metadata import entry_points

import numpy as np

from luthier.errors import RecipeError
from luthier.rewards import Reward
from luthier.spec.rewards.function import Function

GROUP = "luthier.rewards"


def open_reward(section: Function) -> Reward:
    """What it says, held to be a number from 0 to 1.

    Raises:
        RecipeError: no installed package offers it, or its module does not; while it is asked, that it gave something
            else. What the function itself raises is not caught.
    """
    known = {point.name: point for point in entry_points(group=GROUP)}
    if section.name not in known:
        raise RecipeError(
            f"rewards: function: {section.name!r} is no entry point of the group {GROUP!r}",
            way_out=f"installed: {', '.join(sorted(known)) or 'none'}; docs/rewards.md shows how to offer one",
        )
    point = known[section.name]
    try:
        called = point.load()
    except (ImportError, AttributeError) as error:
        raise RecipeError(
            f"rewards: function: {section.name!r} is offered as {point.value}, which cannot be had: {error}",
            way_out="correct the entry point of its package, and install that again",
        ) from error
    if not callable(called):
        raise RecipeError(
            f"rewards: function: {section.name!r} ({point.value}) is no function, but {called!r}",
            way_out="let the entry point name a function f(answer, expected) -> 0 to 1",
        )

    def reward(answer: str, expected: str) -> float:
        found = called(answer, expected)
        if isinstance(found, int | float | np.number | np.bool_) and 0.0 <= float(found) <= 1.0:
            return float(found)
        raise RecipeError(
            f"rewards: function: {section.name!r} gave {found!r} for an answer", way_out="give a number from 0 to 1"
        )

    return reward
