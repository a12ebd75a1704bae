"""A head with a score for each label, of which a text may have several, or none."""

from typing import Literal

from pydantic import Field

from luthier.spec.plugins import MethodFacts
from luthier.spec.section import Method


class MultiLabel(Method):
    type: Literal["multi_label"] = "multi_label"
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Half of it goes from right labels to wrong ones.")
    focal_gamma: float = Field(0.0, ge=0, le=10, description="The higher, the less right ones count.")
    positive_weight: float = Field(1.0, gt=0, le=1000, description="What a label that a text has counts.")
    threshold: float = Field(0.5, gt=0, lt=1, description="A label is given from this probability on.")
    calibrate: bool = Field(True, description="Fit one temperature on the validation rows, so that scores are chances.")


FACTS = MethodFacts(
    name="multi_label",
    summary="a head on the prompt's last state, each label yes or no",
    section=MultiLabel,
    tasks=("multi_label",),
    learning_rates=((0.5, 1e-3), (2.0, 5e-4), (float("inf"), 2e-4)),  # those of classify
    backward_factor=2.0,
    has_head=True,
)
