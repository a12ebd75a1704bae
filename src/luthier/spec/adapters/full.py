"""No adapter: the weights of the base themselves learn, all of them or those of some layers."""

from typing import Literal

from luthier.spec.adapter_section import Adapter
from luthier.spec.plugins import AdapterFacts


class Full(Adapter):
    type: Literal["full"] = "full"


FACTS = AdapterFacts(
    name="full",
    summary="the weights of the base themselves learn",
    section=Full,
    trains_base=True,
    considered=True,
    # A weight of its own moves the product directly; LoRA's best rates are about ten times as high (Schulman and
    # others 2025, "LoRA without regret"; measured here too, docs/transfer-learning.md).
    rate_factor=0.1,
)
