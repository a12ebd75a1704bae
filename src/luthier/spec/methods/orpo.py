"""Odds-ratio preference optimisation: learns the preferred answer and the odds against the other, without a base."""

from typing import Literal

from pydantic import Field

from luthier.spec.plugins import MethodFacts
from luthier.spec.section import Method


class Orpo(Method):
    type: Literal["orpo"] = "orpo"
    beta: float = Field(0.1, gt=0, description="Weight of the odds ratio beside the preferred answer's likelihood.")


FACTS = MethodFacts(
    name="orpo",
    summary="answers and preferences at once, without a reference (ORPO)",
    section=Orpo,
    tasks=("preference",),
    # Most of its loss is that of sft on the preferred answers; tried on 135 M (docs/preference.md).
    learning_rates=((0.5, 5e-4), (2.0, 2e-4), (float("inf"), 1e-4)),
    backward_factor=2.0,
    reward="per_token",
)
