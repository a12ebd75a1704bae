"""A function that an installed package offers in the entry point group `luthier.rewards`."""

from __future__ import annotations

from importlib.metadata import entry_points

from luthier.errors import RecipeError
from luthier.rewards import Reward
from luthier.spec.rewards.function import Function

GROUP = "luthier.rewards"


def open_reward(section: Function) -> Reward:
    """What it says, held to be a number from 0 to 1.

    Raises:
        RecipeError: no installed package offers it; while it is asked, that it gave something else.
    """
    known = {point.name: point for point in entry_points(group=GROUP)}
    if section.name not in known:
        raise RecipeError(
            f"rewards: function: {section.name!r} is no entry point of the group {GROUP!r}",
            way_out=f"installed: {', '.join(sorted(known)) or 'none'}; docs/rewards.md shows how to offer one",
        )
    called = known[section.name].load()

    def reward(answer: str, expected: str) -> float:
        found = called(answer, expected)
        if isinstance(found, bool):
            return float(found)
        if not isinstance(found, int | float) or not 0 <= found <= 1:
            raise RecipeError(
                f"rewards: function: {section.name!r} gave {found!r} for an answer", way_out="give a number from 0 to 1"
            )
        return float(found)

    return reward
