"""W + s C (x) D, (x) the Kronecker product, D of low rank where that is smaller (Yeh et al. 2023, arXiv 2309.14859)."""

from __future__ import annotations

from typing import Any

from luthier.models.wrap import common, wrap
from luthier.spec.adapters.lokr import Lokr


def attach(model: Any, adapter: Lokr, *, base_name: str, seed: int) -> Any:
    """A Kronecker product, one factor of it zero."""
    from peft import LoKrConfig

    config = LoKrConfig(**common(model, adapter), r=adapter.r, alpha=adapter.alpha)
    return wrap(model, config, adapter, base_name=base_name, seed=seed)
