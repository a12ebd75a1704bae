"""W x + s B A x, B zero at the start (Hu et al. 2021, arXiv 2106.09685, section 4.1), s = alpha / r.

rsLoRA: s = alpha / sqrt(r) (Kalajdzievski 2023, arXiv 2312.03732, eq. 4). DoRA: the sum of weights has its columns'
sizes learned apart (Liu et al. 2024, arXiv 2402.09353, eq. 5). PiSSA and OLoRA begin with parts of W itself, taken out
of it (Meng et al. 2024, arXiv 2404.02948, eq. 2 to 4; Büyükakyüz 2024, arXiv 2406.01775, algorithm 1); what is saved is
for the unchanged base, see `models/converted.py`.
"""

from __future__ import annotations

from typing import Any

from luthier.models.vocabulary import learning_rows
from luthier.models.wrap import common, tied_ends, wrap
from luthier.spec.adapters.lora import Lora


def attach(model: Any, adapter: Lora, *, base_name: str, seed: int) -> Any:
    """B A of rank r, see above; its layers are computed by our own code where that says the same."""
    from peft import LoraConfig

    from luthier.models.converted import remember_start
    from luthier.models.fused import fuse
    from luthier.models.new_rows import fuse_rows

    config = LoraConfig(
        **common(model, adapter),
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        use_rslora=adapter.use_rslora,
        use_dora=adapter.use_dora,
        init_lora_weights=adapter.init_lora_weights,
        bias=adapter.bias,
        ensure_weight_tying=tied_ends(model, adapter.whole_modules),
        **learning_rows(model),
    )
    tuned = wrap(model, config, adapter, base_name=base_name, seed=seed)
    if adapter.starts_from_base:
        remember_start(tuned)
    fuse(tuned)
    fuse_rows(tuned)
    return tuned
