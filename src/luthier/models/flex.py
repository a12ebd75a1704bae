"""Attention over a tree of token segments on an accelerator: one kernel that skips what nobody looks at.

torch's FlexAttention (Dong et al. 2024, arXiv 2412.05496) computes blocks of 128 queries by 128 keys and leaves out
those in which no query may look at a key; on a tree these are most of what a square would be. Names: T tokens in the
row, H query heads, G key-value heads, d numbers a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from luthier.models.packing import Layout


def attend(query: Tensor, key: Tensor, value: Tensor, layout: Layout, *, scale: float, window: int | None) -> Tensor:
    """Softmax(scale q k') v over the pairs of `layout` that may meet.

    Args:
        query: [1, H, T, d], on an accelerator; on a processor torch computes it forward alone, and slowly.
        key: [1, G, T, d], H a multiple of G.
        value: [1, G, T, d].
        layout: of this row.
        scale: of the products.
        window: tokens that a layer looks back; None for all.

    Returns:
        [1, H, T, d].
    """
    blocks = layout.kept(("blocks", window, query.device), lambda: block_mask(layout, window, query.device))
    found: Tensor = _kernel(query.device.type)(query, key, value, block_mask=blocks, scale=scale, enable_gqa=True)
    return found


def block_mask(layout: Layout, window: int | None, device: torch.device) -> BlockMask:
    """Which blocks of queries and keys hold a pair that may meet, and which pairs of these do."""
    until, positions = layout.until.to(device), layout.position_ids[0].to(device)

    def may_look(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (key <= query) & (query < until[key])
        return seen if window is None else seen & (positions[query] - positions[key] < window)

    return create_block_mask(may_look, None, None, len(until), len(until), device=device)


@cache
def _kernel(device: str) -> Callable[..., Any]:
    """Compiled once for rows of any length; on a processor there is no such kernel with a gradient."""
    kernel: Callable[..., Any] = flex_attention
    return kernel if device == "cpu" else torch.compile(kernel, dynamic=True)
