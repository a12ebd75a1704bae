"""W + s (B1 A1) o (B2 A2), o the elementwise product (Hyeon-Woo et al. 2022, arXiv 2108.06098, proposition 2)."""

from __future__ import annotations

from typing import Any

from luthier.models.wrap import common, wrap
from luthier.spec.adapters.loha import Loha


def attach(model: Any, adapter: Loha, *, base_name: str, seed: int) -> Any:
    """Two products of rank r, one of them zero."""
    from peft import LoHaConfig

    config = LoHaConfig(**common(model, adapter), r=adapter.r, alpha=adapter.alpha)
    return wrap(model, config, adapter, base_name=base_name, seed=seed)
