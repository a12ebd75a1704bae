"""W R x, R a block-diagonal rotation by Cayley's map (Qiu et al. 2023, arXiv 2306.07280, section 3.2)."""

from __future__ import annotations

from typing import Any

from luthier.models.wrap import common, wrap
from luthier.spec.adapters.oft import Oft


def attach(model: Any, adapter: Oft, *, base_name: str, seed: int) -> Any:
    """Rotations by nothing."""
    from peft import OFTConfig

    config = OFTConfig(**common(model, adapter), oft_block_size=adapter.oft_block_size)
    return wrap(model, config, adapter, base_name=base_name, seed=seed)
