"""LoHa: the elementwise product of two low-rank products (Hyeon-Woo et al. 2022, arXiv 2108.06098, proposition 2)."""

from typing import Literal

from pydantic import Field

from luthier.spec.adapter_section import PeftAdapter
from luthier.spec.plugins import ALL_LINEAR, AdapterFacts


class Loha(PeftAdapter):
    type: Literal["loha"] = "loha"
    r: int | None = Field(None, gt=0, le=512)
    alpha: float | None = Field(None, gt=0)


def parameters(section: Loha, name: str, fan_in: int, fan_out: int) -> int:
    """Two products of rank r."""
    return 2 * (section.r or 0) * (fan_in + fan_out)


FACTS = AdapterFacts(
    name="loha",
    summary="elementwise product of two low-rank products beside every linear layer, the base frozen",
    section=Loha,
    usual=(
        ("r", 8, "as many parameters as LoRA of rank 16, of rank up to 64"),
        ("alpha", lambda section: (2.0 * section["r"], "twice r"), ""),
        ("target_modules", "all-linear", ALL_LINEAR),
    ),
    parameters=parameters,
    dense_copies=1.0,
)
