"""The base model of a recipe: which one, and how it is held while an adapter learns beside it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from luthier.spec.new_tokens import NewTokens
from luthier.spec.section import Section


class Model(Section):
    name: str = Field(min_length=1, description="A bundled name, a folder, a .gguf file, or a hub id.")
    revision: str | None = Field(None, description="Commit, tag or branch of a hub model; None means its main branch.")
    load_in_4bit: bool = Field(False, description="Its linear layers in four bits, beside an adapter (QLoRA).")
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field("nf4", description="The sixteen steps that weights become.")
    bnb_4bit_use_double_quant: bool = Field(False, description="Hold the sizes of blocks in eight bits, not 32.")
    new_tokens: NewTokens | None = Field(None, description="Words of the training rows that become tokens.")

    @property
    def held(self) -> tuple[str, ...]:
        """How the base is held while an adapter learns, where that is not as it is."""
        if not self.load_in_4bit:
            return ()
        return (self.bnb_4bit_quant_type, *(["double_quant"] if self.bnb_4bit_use_double_quant else []))

    @model_validator(mode="after")
    def _of_four_bits(self) -> Model:
        if not self.load_in_4bit and (self.bnb_4bit_quant_type != "nf4" or self.bnb_4bit_use_double_quant):
            raise ValueError("bnb_4bit_* are of a base in four bits; add load_in_4bit: true")
        return self
