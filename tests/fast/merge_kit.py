"""Runs to be merged, as the resolution finds them."""

from __future__ import annotations

from typing import Any

from luthier.spec.merge import Parent


def parent(name: str = "a", **changes: Any) -> Parent:
    """A LoRA of rank 4 that learned labels as words."""
    values: dict[str, Any] = {
        "run": f"{name}/0123",
        "path": f"/runs/{name}/0123",
        "kind": "adapter",
        "adapter": {"type": "lora", "r": 4, "target_modules": "all-linear", "layers_to_transform": None},
        "rank": 4,
        "why_no_rank": "",
        "methods": {"intent": {"type": "sft"}},
        "tasks": {"intent": "classification"},
        "weights_sha256": name * 64,
        "config_sha256": "c" * 64,
        "recipe_sha256": "d" * 64,
        "data_sha256": "e" * 64,
    }
    return Parent.model_validate(values | changes)


WHOLE = {"kind": "model", "adapter": {"type": "full"}, "rank": None, "why_no_rank": "its own weights learned"}
"""Of a run that trained the base's own weights."""
