"""What sections of adapters are: what all of them say, and what those that PEFT computes have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from luthier.spec.section import Section

LayerNumber = Annotated[int, Field(ge=0, strict=True)]
ModuleName = Annotated[str, Field(min_length=1)]

EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "embed_out")
"""Ends of names of modules with a vector for each token, at the model's start or end."""

OUTPUT_HEADS = ("lm_head", "embed_out")
"""Those at its end."""


class Adapter(Section):
    """What is trained. Each type of the table has a section of its own, which its `type` chooses."""

    type: str
    layers_to_transform: tuple[LayerNumber, ...] | None = Field(
        None, min_length=1, description="Numbers of the layers that learn, from 0; all of them where it is open."
    )

    @field_validator("layers_to_transform")
    @classmethod
    def _names_each_layer_once(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """In one order, so that the same layers are the same recipe."""
        if value is not None and len(set(value)) < len(value):
            twice = next(layer for layer in value if value.count(layer) > 1)
            raise ValueError(f"layer {twice} stands twice; name each once")
        return value if value is None else tuple(sorted(value))

    @property
    def noise(self) -> float:
        """Share of what the adapter reads that dropout takes away; 0 where it has none."""
        return float(getattr(self, "dropout", None) or 0.0)

    @property
    def whole_modules(self) -> tuple[str, ...]:
        """Names of modules that learn as they are, beside the adapter."""
        return getattr(self, "modules_to_save", None) or ()


class PeftAdapter(Adapter):
    """Parameters beside modules of the frozen base."""

    target_modules: str | tuple[str, ...] | None = Field(None, description="'all-linear' or names of modules.")
    modules_to_save: tuple[ModuleName, ...] | None = Field(
        None, min_length=1, description="Modules that learn whole beside it: norms, embed_tokens, lm_head."
    )

    @field_validator("target_modules")
    @classmethod
    def _names_a_module(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if value is not None and not all([value, *value]):
            raise ValueError("no module is named, write 'all-linear' or a list of names")
        return value

    @model_validator(mode="after")
    def _chooses_layers_once(self) -> PeftAdapter:
        expression = isinstance(self.target_modules, str) and self.target_modules != "all-linear"
        if self.layers_to_transform is not None and expression:
            raise ValueError(
                "layers_to_transform goes with target_modules: all-linear or a list of names; "
                "a regular expression names its layers itself"
            )
        return self
