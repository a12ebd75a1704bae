"""VeRA: one frozen random pair of matrices for all layers, learned factors of each (Kopiczko et al. 2024, arXiv
2310.11454, eq. 2).
"""

from typing import Literal

from pydantic import Field

from luthier.spec.adapter_section import PeftAdapter
from luthier.spec.plugins import ALL_LINEAR, AdapterFacts


class Vera(PeftAdapter):
    type: Literal["vera"] = "vera"
    r: int | None = Field(None, gt=0, le=4096)
    dropout: float | None = Field(None, ge=0, lt=1)
    d_initial: float | None = Field(None, gt=0, description="Start of the factors between the two matrices.")


def parameters(section: Vera, name: str, fan_in: int, fan_out: int) -> int:
    """The factors d of r numbers and b of as many as there are outputs (section 3.2)."""
    return (section.r or 0) + fan_out


FACTS = AdapterFacts(
    name="vera",
    summary="learned factors of one frozen random pair of matrices, the base frozen",
    section=Vera,
    usual=(
        ("r", 256, "the paper's; it costs little, the matrices are shared and frozen"),
        ("dropout", 0.0, "off, so that runs repeat exactly"),
        ("d_initial", 0.1, "the paper's"),
        ("target_modules", "all-linear", ALL_LINEAR),
    ),
    parameters=parameters,
    rate_factor=5.0,
)
