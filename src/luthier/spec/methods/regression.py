"""A head with one score, which is a number."""

from typing import Literal

from pydantic import Field

from luthier.spec.plugins import MethodFacts
from luthier.spec.section import Method


class Regression(Method):
    type: Literal["regression"] = "regression"
    huber_delta: float | None = Field(
        None, gt=0, description="Misses beyond so many standard deviations count by their distance, not its square."
    )


FACTS = MethodFacts(
    name="regression",
    summary="a number, read off the prompt's last state",
    section=Regression,
    tasks=("regression",),
    learning_rates=((0.5, 1e-3), (2.0, 5e-4), (float("inf"), 2e-4)),  # those of classify
    backward_factor=2.0,
    has_head=True,
)
