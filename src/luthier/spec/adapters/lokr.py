"""LoKr: a Kronecker product, one factor of low rank (Yeh et al. 2023, arXiv 2309.14859, section 3.2.2)."""

from typing import Literal

from pydantic import Field

from luthier.spec.adapter_section import PeftAdapter
from luthier.spec.plugins import ALL_LINEAR, AdapterFacts


class Lokr(PeftAdapter):
    type: Literal["lokr"] = "lokr"
    r: int | None = Field(None, gt=0, le=512)
    alpha: float | None = Field(None, gt=0)


def halves(size: int) -> tuple[int, int]:
    """The two factors of `size` that are nearest each other, the smaller first."""
    small = next(number for number in range(int(size**0.5), 0, -1) if size % number == 0)
    return small, size // small


def parameters(section: Lokr, name: str, fan_in: int, fan_out: int) -> int:
    """W1 is [o1, i1] whole; W2 [o2, i2] is a product of rank r where r is less than half its longer side (PEFT)."""
    (o1, o2), (i1, i2), r = halves(fan_out), halves(fan_in), section.r or 0
    return o1 * i1 + (r * (o2 + i2) if r < max(o2, i2) / 2 else o2 * i2)


FACTS = AdapterFacts(
    name="lokr",
    summary="a Kronecker product beside every linear layer, the base frozen",
    section=Lokr,
    usual=(
        ("r", 8, "a common middle"),
        ("alpha", lambda section: (2.0 * section["r"], "twice r"), ""),
        ("target_modules", "all-linear", ALL_LINEAR),
    ),
    parameters=parameters,
    dense_copies=1.0,
)
