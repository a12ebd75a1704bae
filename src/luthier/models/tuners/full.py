"""The base's own weights: all of them, or those of some layers and nothing outside them."""

from __future__ import annotations

from typing import Any

from luthier.errors import ModelError
from luthier.spec.adapters.full import Full


def attach(model: Any, adapter: Full, *, base_name: str, seed: int) -> Any:
    """All weights, or those of the layers that the section names."""
    if adapter.layers_to_transform is None:
        return model.requires_grad_(True)
    layers = getattr(model.get_decoder(), "layers", None)
    if layers is None or adapter.layers_to_transform[-1] >= len(layers):
        raise ModelError(
            f"adapter.layers_to_transform {list(adapter.layers_to_transform)}: {type(model).__name__} has "
            f"{'no list of layers' if layers is None else f'{len(layers)} layers'}",
            way_out="name layers that the base has, or leave it out: all weights learn then",
        )
    for number in adapter.layers_to_transform:
        layers[number].requires_grad_(True)
    return model
