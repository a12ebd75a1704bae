"""The answer is the expected one, outer white space aside."""

from typing import Literal

from luthier.spec.plugins import RewardFacts
from luthier.spec.section import RewardRule


class Exact(RewardRule):
    type: Literal["exact"] = "exact"
    ignore_case: bool = False


FACTS = RewardFacts(name="exact", summary="the answer is the expected one", section=Exact)
