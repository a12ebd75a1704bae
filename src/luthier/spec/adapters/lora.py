"""Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685, eq. 3), trained and stored in PEFT's format."""

import math
import re
from typing import Any, Literal

from pydantic import Field, field_validator

from luthier.spec.adapter_section import PeftAdapter
from luthier.spec.plugins import ALL_LINEAR, AdapterFacts


class Lora(PeftAdapter):
    type: Literal["lora"] = "lora"
    r: int | None = Field(None, gt=0, le=512)
    alpha: float | None = Field(None, gt=0)
    dropout: float | None = Field(None, ge=0, lt=1)
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(r) instead of alpha / r.")
    use_dora: bool = Field(False, description="Learn the size of each output's weights apart from their direction.")
    init_lora_weights: bool | str = Field(
        True, description="true: B is zero at first; 'pissa', 'pissa_niter_N' or 'olora': parts of the base's weights."
    )
    bias: Literal["none", "lora_only", "all"] = Field("none", description="Which biases of the base learn too.")

    @field_validator("init_lora_weights")
    @classmethod
    def _is_a_known_start(cls, value: bool | str) -> bool | str:
        """One message for a union."""
        if value is True or value in ("pissa", "olora") or re.fullmatch(r"pissa_niter_[1-9]\d?", str(value)):
            return value
        raise ValueError("is true, 'pissa', 'pissa_niter_16' (another number is possible) or 'olora'")

    @property
    def starts_from_base(self) -> bool:
        """Whether parts of the base's weights are taken out of it as the start of the adapter."""
        return self.init_lora_weights is not True


def usual_alpha(section: dict[str, Any]) -> tuple[float, str]:
    """Scale 2, or 1 where the adapter starts as a part of the base."""
    if section["init_lora_weights"] is not True:
        scale, why = 1.0, "as in the papers of these starts"
    else:
        scale, why = 2.0, "the product counts twice"
    if section["use_rslora"]:
        return round(scale * math.sqrt(section["r"]), 6), f"{scale:g} times the root of r: {why}"
    return scale * section["r"], "twice r" if scale == 2 else f"r itself, {why}"


def parameters(section: Lora, name: str, fan_in: int, fan_out: int) -> int:
    """A is [r, fan_in], B [fan_out, r] (section 4.1); DoRA's magnitude has one number an output (Liu et al. 2024,
    arXiv 2402.09353, eq. 5).
    """
    return (section.r or 0) * (fan_in + fan_out) + (fan_out if section.use_dora else 0)


FACTS = AdapterFacts(
    name="lora",
    summary="low-rank matrices beside every linear layer, the base frozen",
    section=Lora,
    over_four_bits=True,
    usual=(
        ("r", 16, "a common middle"),
        ("alpha", usual_alpha, ""),
        ("dropout", 0.0, "off, so that runs repeat exactly"),
        ("target_modules", "all-linear", ALL_LINEAR),
    ),
    parameters=parameters,
    considered=True,
)
