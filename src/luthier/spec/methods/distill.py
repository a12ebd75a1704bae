"""Distillation: the answers are learned, and what a teacher of the same vocabulary finds likely in their place."""

from typing import Literal

from pydantic import Field, model_validator

from luthier.spec.plugins import MethodFacts
from luthier.spec.section import Method


class Distill(Method):
    type: Literal["distill"] = "distill"
    teacher: str = Field(
        min_length=1, description="A finished run (NAME@1, NAME/ID or its folder), or a model as model.name takes it."
    )
    alpha: float = Field(0.5, gt=0, le=1, description="What the teacher counts; the rest is the answer as it stands.")
    temperature: float = Field(1.0, gt=0, le=100, description="Above 1, what the teacher finds unlikely counts more.")
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = Field(
        "forward_kl", description="From the teacher: 'forward_kl' covers what it says, 'reverse_kl' keeps to it."
    )
    beta: float | None = Field(None, gt=0, lt=1, description="Of 'jsd': the nearer 0, the more like forward_kl.")

    on_policy: float = Field(
        0.0, ge=0, le=1, description="Share of a step's rows whose answers the model writes, for the teacher to judge."
    )

    @model_validator(mode="after")
    def _mixes_for_jsd(self) -> "Distill":
        if self.beta is not None and self.divergence != "jsd":
            raise ValueError("beta belongs to divergence: jsd; leave one of them out")
        return self


FACTS = MethodFacts(
    name="distill",
    summary="answers, and what a teacher finds likely (distillation by logits)",
    section=Distill,
    tasks=("classification", "sentiment", "translation", "generation", "extraction", "domain"),
    # Those of sft: the same tokens are learned, and the teacher's part of the gradient is of the same size.
    learning_rates=((0.5, 1e-3), (2.0, 5e-4), (float("inf"), 2e-4)),
    # Of the model that learns; the teacher's forward pass is counted beside it (plan/teaching.py).
    backward_factor=2.0,
    is_taught=True,
)
