"""Continued pre-training: every token of a document is learned, so that the model knows the texts of a domain."""

from typing import Literal

from pydantic import Field

from luthier.spec.plugins import MethodFacts
from luthier.spec.section import Method, Section


class Replay(Section):
    """General texts among those of the domain, against forgetting (Ibrahim et al. 2024, arXiv 2403.08763)."""

    path: str = Field(min_length=1, description="File or folder of general texts, relative to the recipe.")
    share: float = Field(0.1, gt=0, lt=1, description="Of all learned tokens, those of general texts.")
    input: str = Field("{text}", min_length=1, description="Template of a text over the columns.")
    seed: int = Field(0, ge=0, lt=2**31, description="Of the draw.")


class Pretrain(Method):
    type: Literal["pretrain"] = "pretrain"
    replay: Replay | None = None


FACTS = MethodFacts(
    name="pretrain",
    summary="continued pre-training on documents",
    section=Pretrain,
    tasks=("domain",),
    # Half of sft's: every token is learned, and what the model knows beside the domain is to stay.
    learning_rates=((0.5, 5e-4), (2.0, 2e-4), (float("inf"), 1e-4)),
    # As sft: gradients of activations, none of frozen weights.
    backward_factor=2.0,
)
