"""Simple preference optimisation: the preferred answer's mean log-probability a token leads by a margin."""

from typing import Literal

from pydantic import Field

from luthier.spec.plugins import MethodFacts
from luthier.spec.section import Method


class Simpo(Method):
    type: Literal["simpo"] = "simpo"
    beta: float = Field(2.0, gt=0, description="Scale of the mean log-probability a token.")
    gamma: float = Field(1.0, ge=0, description="By how much the preferred answer is to lead, on that scale.")


FACTS = MethodFacts(
    name="simpo",
    summary="preferences by mean log-probability a token, without a reference (SimPO)",
    section=Simpo,
    tasks=("preference",),
    # As for dpo; nothing holds the model to the base, so larger steps forget more. Tried on 135 M (docs/preference.md).
    learning_rates=((0.5, 2e-4), (2.0, 1e-4), (float("inf"), 5e-5)),
    backward_factor=2.0,
    reward="per_token",
)
