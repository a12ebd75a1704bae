"""A base that is made smaller before it is trained: `prune` of the recipe, and the shape that comes out.

What goes is left out of the weights, never set to zero: whole layers, and within every layer the same number of
feed-forward channels and of key-value heads with the queries that read them. The sources of the measures stand with
the computation, luthier.compress.prune.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from luthier.records import ModelShape
from luthier.spec.section import Section

if TYPE_CHECKING:
    from luthier.spec.recipe import Recipe

LayerMeasure = Literal["block_influence", "angular", "loss"]
UnitMeasure = Literal["activation", "taylor", "magnitude"]

ROUND = 32
"""Channels that are kept are a multiple of this where the base's are: blocks of quantised formats are as long."""

USUAL_TOKENS = 16_384
FEWER_TOKENS = 4_096
"""Where the loss without each layer is measured, which takes a pass for every layer."""


@dataclass(frozen=True)
class Family:
    """What a layer holds beside its seven linear layers."""

    norms: int
    """Of the hidden size."""
    head_norms: bool = False
    """Whether queries and keys have a norm, of the size of a head."""
    qkv_bias: bool = False
    heads_divide: bool = False
    """Whether transformers refuses a config whose hidden size is no multiple of the number of heads."""


FAMILIES = {
    "gemma3_text": Family(norms=4, head_norms=True, heads_divide=True),
    "llama": Family(norms=2, heads_divide=True),
    "mistral": Family(norms=2),
    "qwen2": Family(norms=2, qkv_bias=True),
    "qwen3": Family(norms=2, head_norms=True),
}
"""model_type of transformers -> its layers. Layers of a family are all alike, and so are their modules' names."""

_IN_GGUF = {"gemma3": "gemma3_text"}
"""What GGUF files call a family, where that is another name."""


class PruneLayers(Section):
    """Whole layers."""

    remove: int = Field(gt=0, description="How many.")
    by: LayerMeasure = Field("block_influence", description="What says how little a layer does.")
    contiguous: bool | None = Field(None, description="Whether those that go stand one above the other.")


class PruneUnits(Section):
    """Channels or heads within every layer."""

    keep: float = Field(gt=0, lt=1, description="Share that stays, the same in every layer.")
    by: UnitMeasure = Field("activation", description="What says how little one does.")


class Prune(Section):
    layers: PruneLayers | None = Field(None, description="Whole layers that go.")
    mlp: PruneUnits | None = Field(None, description="Channels of the feed-forward part.")
    heads: PruneUnits | None = Field(None, description="Key-value heads, each with the queries that read it.")
    tokens: int | None = Field(None, ge=16, description="Of training rows, on which all of this is measured.")

    @property
    def asks_rows(self) -> bool:
        """Whether anything is measured on rows."""
        units = [one for one in (self.mlp, self.heads) if one is not None]
        return self.layers is not None or any(one.by != "magnitude" for one in units)

    @model_validator(mode="after")
    def _prunes_something(self) -> Prune:
        if self.layers is None and self.mlp is None and self.heads is None:
            raise ValueError(
                "names nothing that goes; give layers: {remove: 2}, mlp: {keep: 0.75} or heads: {keep: 0.5}"
            )
        if self.tokens is not None and not self.asks_rows:
            raise ValueError("tokens has no effect: magnitude looks at weights alone; leave it out")
        return self


def kept_channels(prune: Prune, shape: ModelShape) -> int:
    """Feed-forward channels of a layer that stay."""
    if prune.mlp is None:
        return shape.intermediate_size
    step = ROUND if shape.intermediate_size % ROUND == 0 else 1
    return round(prune.mlp.keep * shape.intermediate_size / step) * step


def possible_groups(shape: ModelShape) -> tuple[int, ...]:
    """Numbers of key-value heads that could stay, fewer than there are."""
    queries, family = shape.num_heads // shape.num_kv_heads, FAMILIES[family_of(shape)]
    return tuple(
        groups
        for groups in range(1, shape.num_kv_heads)
        if not family.heads_divide or shape.hidden_size % (queries * groups) == 0
    )


def kept_groups(prune: Prune, shape: ModelShape) -> int:
    """Key-value heads of a layer that stay."""
    return shape.num_kv_heads if prune.heads is None else round(prune.heads.keep * shape.num_kv_heads)


def pruned_shape(shape: ModelShape, prune: Prune | None) -> ModelShape:
    """Shape of what is left; the shape itself where nothing is pruned. Its hash stands for base and section."""
    if prune is None:
        return shape
    groups = kept_groups(prune, shape)
    changes: dict[str, Any] = {
        "num_layers": shape.num_layers - (prune.layers.remove if prune.layers is not None else 0),
        "num_heads": shape.num_heads // shape.num_kv_heads * groups,
        "num_kv_heads": groups,
        "intermediate_size": kept_channels(prune, shape),
    }
    smaller = shape.model_copy(update=changes)
    parameters = shape.num_parameters - _in_layers(shape) + _in_layers(smaller)
    said = json.dumps([shape.sha256, prune.model_dump(mode="json")])
    facts = {
        "num_parameters": parameters,
        "num_bytes": 4 * parameters,  # it is written in float32
        "quantisation": "",
        "sha256": hashlib.sha256(said.encode()).hexdigest(),
    }
    return smaller.model_copy(update=facts)


def family_of(shape: ModelShape) -> str:
    """The model_type that transformers has for it."""
    return _IN_GGUF.get(shape.architecture, shape.architecture)


def _in_layers(shape: ModelShape) -> int:
    """Parameters of all layers."""
    family = FAMILIES[family_of(shape)]
    h, i = shape.hidden_size, shape.intermediate_size
    a, g = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    linear = 2 * h * a + 2 * h * g + 3 * h * i
    beside = family.norms * h + 2 * shape.head_dim * family.head_norms + (a + 2 * g) * family.qkv_bias
    return shape.num_layers * (linear + beside)


def refuse_unfit_pruning(recipe: Recipe) -> None:
    """What does not go with a base that is made smaller first; for the recipe as it is given.

    Raises:
        ValueError: it is asked for.
    """
    if recipe.merge is not None:
        raise ValueError("prune is healed by training, and with merge nothing is trained; leave one of them out")
    if recipe.model.load_in_4bit:
        raise ValueError(
            "prune writes new weights, and model.load_in_4bit holds those of the base; prune in a run of its own, and "
            "name the folder of its export merged as model.name"
        )
    if recipe.has_own_adapters:
        raise ValueError(
            "prune is not built for multi_task.adapters: per_task, whose tasks would each heal the base in another "
            "way; leave one of them out"
        )
    if recipe.export is not None and "adapter" in recipe.export:
        raise ValueError(
            "export: an adapter beside a pruned base opens nowhere else, for that base is in the run folder alone; "
            "write export: [merged]"
        )
