"""l o (W x), or W (l o x) in feed-forward modules, l learned factors (Liu et al. 2022, arXiv 2205.05638, 3.3)."""

from __future__ import annotations

from typing import Any

from luthier.models.wrap import common, linears_of_layers, wrap
from luthier.spec.adapters.ia3 import Ia3


def attach(model: Any, adapter: Ia3, *, base_name: str, seed: int) -> Any:
    """Factors of one, beside the modules that the section names."""
    from peft import IA3Config

    settings = common(model, adapter)
    feedforward = list(adapter.feedforward_modules or ())
    layers = settings.pop("layers_to_transform", None)
    if layers is not None:  # PEFT's (IA)^3 has no such key, so the modules are named in full
        settings["target_modules"] = _in_layers(model, settings["target_modules"], layers)
        feedforward = _in_layers(model, feedforward, layers)
    elif settings["target_modules"] == "all-linear":
        settings["target_modules"] = list(linears_of_layers(model))  # PEFT compares the two lists of names
    config = IA3Config(**settings, feedforward_modules=feedforward)
    return wrap(model, config, adapter, base_name=base_name, seed=seed)


def _in_layers(model: Any, ends: list[str], layers: list[int]) -> list[str]:
    numbers = {str(layer) for layer in layers}
    return [
        name
        for name, _ in model.named_modules()
        if name.endswith(tuple(f".{end}" for end in ends)) and numbers & {*name.split(".")}
    ]
