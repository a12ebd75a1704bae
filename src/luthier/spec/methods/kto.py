"""Kahneman-Tversky optimisation: an answer by itself is to gain or to lose, measured from where answers stand."""

from typing import Literal

from pydantic import Field

from luthier.spec.plugins import MethodFacts
from luthier.spec.section import Method


class Kto(Method):
    type: Literal["kto"] = "kto"
    beta: float = Field(0.1, gt=0, description="How strongly the model is held to the base; smaller: freer.")
    desirable_weight: float = Field(1.0, gt=0, description="What an answer that is preferred counts.")
    undesirable_weight: float = Field(1.0, gt=0, description="What the other one counts.")


FACTS = MethodFacts(
    name="kto",
    summary="each answer by itself, as good or bad, measured from the base (KTO)",
    section=Kto,
    tasks=("preference",),
    # Those of dpo, whose loss moves answers as strongly; not searched.
    learning_rates=((0.5, 2e-4), (2.0, 1e-4), (float("inf"), 5e-5)),
    # A step is read once more, forward only, with strange answers.
    backward_factor=3.0,
    reward="implicit",
    reads_steps=True,
)
