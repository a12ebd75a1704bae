"""Verifiable rewards: what a free answer is worth, from 0 to 1, by a rule and not by a person or a model.

One module a type, of the same name as its section in `luthier.spec.rewards`. Each has `open_reward(section) -> Reward`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import cast

from luthier.errors import MissingExtra
from luthier.records import RequestContract
from luthier.spec.plugins import REWARDS
from luthier.spec.section import RewardRule

Reward = Callable[[str, str], float]
"""(answer, expected answer) -> 0 to 1."""


def load_rewards(sections: Sequence[RewardRule]) -> Reward:
    """The weighted mean of some rewards.

    Raises:
        MissingExtra: a library is missing.
        RecipeError: a section says what cannot be.
    """
    refuse_missing_packages(sections)
    opened = [_open(section) for section in sections]
    whole = sum(section.weight for section in sections)

    def mean(answer: str, expected: str) -> float:
        pairs = zip(sections, opened, strict=True)
        return sum(section.weight * reward(answer, expected) for section, reward in pairs) / whole

    return mean


def rewards_of(contract: RequestContract) -> Reward | None:
    """What verifies the answers of a task; None where nothing does.

    Raises:
        MissingExtra, RecipeError: see `load_rewards`.
    """
    sections = [REWARDS.get(one["type"]).section.model_validate(one) for one in contract.rewards]
    return load_rewards(sections) if sections else None


def refuse_missing_packages(sections: Sequence[RewardRule]) -> None:
    """Raises MissingExtra where what one of them needs is not installed."""
    for section in sections:
        package = REWARDS.get(section.type).package
        if package and importlib.util.find_spec(package) is None:
            raise MissingExtra(package, extra="rewards", purpose=f"a reward of type {section.type}")


def _open(section: RewardRule) -> Reward:
    module = importlib.import_module(f"luthier.rewards.{section.type}")
    return cast(Reward, module.open_reward(section))
