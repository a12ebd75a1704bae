"""The expected answer, outer white space aside."""

from __future__ import annotations

from luthier.rewards import Reward
from luthier.spec.rewards.exact import Exact


def open_reward(section: Exact) -> Reward:
    """1 or 0."""

    def as_compared(text: str) -> str:
        return text.strip().casefold() if section.ignore_case else text.strip()

    return lambda answer, expected: float(as_compared(answer) == as_compared(expected))
