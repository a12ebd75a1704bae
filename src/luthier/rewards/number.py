"""The number that a text comes to, as gsm8k marks it: '#### 72' (Cobbe et al. 2021, arXiv 2110.14168, section 2)."""

from __future__ import annotations

import math
import re
import sys
from fractions import Fraction

from luthier.errors import DataError
from luthier.rewards import Reward
from luthier.spec.rewards.number import Number

_NUMBER = re.compile(r"(?:(?<![\d.])[-\u2212])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])\.\d+)")
"""A sign behind a digit is the dash of '70-72'."""
_LONGEST = 100
"""Characters of a number; what is longer is a loop of digits, and comes to nothing."""


def open_reward(section: Number) -> Reward:
    """1 where the answer comes to the number that the expected one comes to, else 0; exact, not in floating point.

    Raises:
        DataError: while it is asked, the expected answer comes to none.
    """

    def reward(answer: str, expected: str) -> float:
        wanted = number_in(expected, after=section.after)
        found = number_in(answer, after=section.after, marked=section.marked)
        if wanted is None:
            raise DataError(
                f"rewards: number: the expected answer has no number: {expected[:200]!r}",
                way_out="correct the row, or leave it out",
            )
        if found is None:
            return 0.0
        return float(abs(found - wanted) <= Fraction(str(section.tolerance)))

    return reward


def number_in(text: str, *, after: str, marked: bool = False) -> Fraction | None:
    """The first number behind the last mark; without a mark the last number, or, where it has to be marked, none."""
    _, mark, behind = text.rpartition(after)
    if mark:
        found = _NUMBER.search(behind)
        return _value(found[0]) if found else None
    numbers = [] if marked else _NUMBER.findall(text)
    return _value(numbers[-1]) if numbers else None


def said_number(text: str) -> float | None:
    """The finite number that a text is, or else the last one that it says; None where it says none."""
    try:
        value = float(text)  # with an exponent, if there is one
    except ValueError:
        found = number_in(text, after=Number().after)
        if found is None:
            return None
        value = float(found) if abs(found) < sys.float_info.max else math.inf
    return value if math.isfinite(value) and "_" not in text else None


def _value(digits: str) -> Fraction | None:
    return Fraction(digits.replace(",", "").replace("\u2212", "-")) if len(digits) <= _LONGEST else None
