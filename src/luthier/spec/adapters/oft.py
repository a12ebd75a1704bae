"""OFT: inputs are turned by learned block-diagonal rotations (Qiu et al. 2023, arXiv 2306.07280, section 3.2)."""

from typing import Literal

from pydantic import Field

from luthier.spec.adapter_section import PeftAdapter
from luthier.spec.plugins import ALL_LINEAR, AdapterFacts


class Oft(PeftAdapter):
    type: Literal["oft"] = "oft"
    oft_block_size: int | None = Field(None, gt=1, description="Inputs that are turned together; divides their number.")


def parameters(section: Oft, name: str, fan_in: int, fan_out: int) -> int:
    """A rotation of b inputs has b (b - 1) / 2 angles; there are fan_in / b of them."""
    block = section.oft_block_size or 0
    return fan_in // block * (block * (block - 1) // 2) if block else 0


FACTS = AdapterFacts(
    name="oft",
    summary="learned rotations of what enters every linear layer, the base frozen",
    section=Oft,
    usual=(
        ("oft_block_size", 32, "PEFT's"),
        ("target_modules", "all-linear", ALL_LINEAR),
    ),
    parameters=parameters,
)
