"""A classification head: one linear layer on the last hidden state of the prompt chooses among the labels."""

from typing import Literal

from pydantic import Field

from luthier.spec.plugins import MethodFacts
from luthier.spec.section import Method


class Classify(Method):
    type: Literal["classify"] = "classify"
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the target that all labels have alike.")
    focal_gamma: float = Field(0.0, ge=0, le=10, description="The higher, the less rows count that are right already.")
    logit_adjustment: float = Field(
        0.0,
        ge=0,
        le=10,
        description="Of the log of a label's share, added to its score while learning; 1 is usual.",
    )
    ordered: bool = Field(False, description="Learn how far off a label is, by data.labels.order.")
    calibrate: bool = Field(True, description="Fit one temperature on the validation rows, so that scores are chances.")
    abstain_below: float | None = Field(None, gt=0, lt=1, description="A label less likely than this is not given.")


FACTS = MethodFacts(
    name="classify",
    summary="a classification head on the prompt's last state",
    section=Classify,
    tasks=("classification", "sentiment"),
    learning_rates=((0.5, 1e-3), (2.0, 5e-4), (float("inf"), 2e-4)),
    # Forward 1, gradient with respect to activations 1; the head is one position of C scores, whatever the vocabulary.
    backward_factor=2.0,
    has_head=True,
)
