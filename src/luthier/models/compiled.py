"""Decoder layers compiled into few kernels, for accelerators, where a small layer costs more to start than to compute.

torch.compile traces a layer once for rows of any length and lets Inductor put what is element-wise into the same
kernels (Ansel et al. 2024, ASPLOS, doi 10.1145/3620665.3640366). What a layer says stays the same up to the order of
its sums.
"""

from __future__ import annotations

from typing import Any

from luthier.models.adapters import bare
from luthier.models.forward import check_packing
from luthier.models.head import has_plain_head


def compile_layers(model: Any) -> int:
    """Compile the decoder's layers but the first, in place, at their first call; how many.

    The first layer's input has no gradient where the embeddings are frozen, which would be a second program: as much
    work again for the compiler, for one layer.
    """
    check_packing(bare(model))  # both ask once, in ways that training never does
    has_plain_head(bare(model))
    layers = bare(model).get_decoder().layers[1:]
    for layer in layers:
        layer.compile(dynamic=True, fullgraph=True)
    return len(layers)
