"""(IA)^3: learned factors of keys, values and what enters down_proj (Liu et al. 2022, arXiv 2205.05638, 3.3)."""

from typing import Any, Literal

from pydantic import Field, model_validator

from luthier.spec.adapter_section import ModuleName, PeftAdapter
from luthier.spec.plugins import AdapterFacts


class Ia3(PeftAdapter):
    type: Literal["ia3"] = "ia3"
    feedforward_modules: tuple[ModuleName, ...] | None = Field(
        None, description="Of target_modules, those whose input is scaled instead of their output."
    )

    @model_validator(mode="after")
    def _scales_what_is_named(self) -> "Ia3":
        given, targets = self.feedforward_modules, self.target_modules
        if given is not None and isinstance(targets, tuple) and (odd := sorted({*given} - {*targets})):
            raise ValueError(f"feedforward_modules: {odd[0]!r} is not among target_modules; name it there too")
        if isinstance(targets, str) and targets != "all-linear":
            raise ValueError("target_modules of ia3 are 'all-linear' or a list of names, not an expression")
        return self


def feedforward(section: dict[str, Any]) -> tuple[list[str], str]:
    """Of the usual names, those that are targets."""
    targets = section["target_modules"]
    usual = [] if isinstance(targets, list) and "down_proj" not in targets else ["down_proj"]
    return usual, "the product of gate and up is scaled, as in the paper" if usual else "no target reads that product"


def parameters(section: Ia3, name: str, fan_in: int, fan_out: int) -> int:
    """One factor an output, or an input of a feed-forward module."""
    return fan_in if name in (section.feedforward_modules or ()) else fan_out


FACTS = AdapterFacts(
    name="ia3",
    summary="learned factors of keys, values and feed-forward activations, the base frozen",
    section=Ia3,
    over_four_bits=True,
    usual=(
        ("target_modules", ["k_proj", "v_proj", "down_proj"], "keys, values and feed-forward, as in the paper"),
        ("feedforward_modules", feedforward, ""),
    ),
    parameters=parameters,
    rate_factor=5.0,
)
