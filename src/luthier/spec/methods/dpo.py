"""Direct preference optimisation: the preferred answer gains over the other, measured from where the base stands."""

from typing import Literal

from pydantic import Field, model_validator

from luthier.spec.plugins import MethodFacts
from luthier.spec.section import Method


class Dpo(Method):
    type: Literal["dpo"] = "dpo"
    loss: Literal["sigmoid", "ipo"] = Field("sigmoid", description="'sigmoid': DPO; 'ipo': a squared distance.")
    beta: float = Field(0.1, gt=0, description="How strongly the model is held to the base; smaller: freer.")
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Share of the pairs that may stand the wrong way round (cDPO)."
    )

    @model_validator(mode="after")
    def _smooths_a_sigmoid(self) -> "Dpo":
        if self.label_smoothing and self.loss == "ipo":
            raise ValueError("label_smoothing belongs to loss: sigmoid; leave one of them out")
        return self


FACTS = MethodFacts(
    name="dpo",
    summary="preferences, measured from the base (DPO, IPO, cDPO)",
    section=Dpo,
    tasks=("preference",),
    # Smaller than those of sft: the loss moves whole answers. Tried on 135 M (docs/preference.md).
    learning_rates=((0.5, 2e-4), (2.0, 1e-4), (float("inf"), 5e-5)),
    backward_factor=2.0,
    reward="implicit",
)
