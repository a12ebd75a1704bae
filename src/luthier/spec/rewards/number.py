"""The number that an answer comes to is that of the expected one: what stands behind its last mark, else its last."""

from typing import Literal

from pydantic import Field

from luthier.spec.plugins import RewardFacts
from luthier.spec.section import RewardRule


class Number(RewardRule):
    type: Literal["number"] = "number"
    after: str = Field(
        "####", min_length=1, description="The number behind its last occurrence counts; without one the last number."
    )
    marked: bool = Field(False, description="Whether an answer without that mark is wrong, whatever it comes to.")
    tolerance: float = Field(0.0, ge=0, description="By how much it may differ.")


FACTS = RewardFacts(name="number", summary="the number that it comes to is right", section=Number)
