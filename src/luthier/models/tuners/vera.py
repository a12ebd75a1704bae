"""W x + b o (B (d o (A x))), A and B random, frozen and of all layers, b and d learned (Kopiczko et al. 2024, arXiv
2310.11454, eq. 2). A and B are saved with it, so that no other generator can draw others.
"""

from __future__ import annotations

from typing import Any

from luthier.models.wrap import common, wrap
from luthier.spec.adapters.vera import Vera


def attach(model: Any, adapter: Vera, *, base_name: str, seed: int) -> Any:
    """Factors of a pair of matrices drawn from the seed; b is zero."""
    from peft import VeraConfig

    config = VeraConfig(
        **common(model, adapter),
        r=adapter.r,
        vera_dropout=adapter.dropout,
        d_initial=adapter.d_initial,
        projection_prng_key=seed,
        save_projection=True,
    )
    return wrap(model, config, adapter, base_name=base_name, seed=seed)
