"""A function of the user's own, by the name of its entry point in the group `luthier.rewards`."""

from typing import Literal

from pydantic import Field

from luthier.spec.plugins import RewardFacts
from luthier.spec.section import RewardRule


class Function(RewardRule):
    type: Literal["function"] = "function"
    name: str = Field(min_length=1, description="Of the entry point; called as f(answer, expected) -> 0 to 1.")


FACTS = RewardFacts(name="function", summary="a function of your own, by entry point", section=Function)
