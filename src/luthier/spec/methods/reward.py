"""A reward model: a head scores an answer, so that the one that people preferred comes out above the other."""

from typing import Literal

from pydantic import Field

from luthier.spec.plugins import MethodFacts
from luthier.spec.section import Method


class RewardModel(Method):
    type: Literal["reward"] = "reward"
    center_rewards_coefficient: float = Field(
        0.0, ge=0, description="What it costs that the scores of a pair do not lie around 0; 0: nothing."
    )


FACTS = MethodFacts(
    name="reward",
    summary="one score an answer (a reward model); it writes nothing",
    section=RewardModel,
    tasks=("preference",),
    # Those of classify, whose head starts from nothing too. Tried on 135 M (docs/preference.md).
    learning_rates=((0.5, 1e-3), (2.0, 5e-4), (float("inf"), 2e-4)),
    backward_factor=2.0,
    has_head=True,
    reward="score",
)
