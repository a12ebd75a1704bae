"""Attention over a tree of token segments on an accelerator: one kernel that skips what nobody looks at.

torch's FlexAttention (Dong et al. 2024, arXiv 2412.05496) computes blocks of 128 queries by 128 keys and leaves out
those in which no query may look at a key; on a tree these are most of what a square would be. Names: T tokens in the
row, H query heads, G key-value heads, d numbers a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, FlexKernelOptions, flex_attention

from luthier.errors import ModelError
from luthier.models.packing import Layout

BLOCK = 128
"""Queries, and keys, that the kernel computes together."""
SMALLEST = 16
"""Numbers a head that the kernel needs; smaller ones get zeros behind theirs, which change no product."""

KERNEL: FlexKernelOptions = {"FORCE_USE_FLEX_ATTENTION": True}
"""One kernel for rows of any length: torch's other one, for fewer than 128 queries without gradients, finds no
configuration for rows whose length may change."""


@dataclass(frozen=True)
class Looks:
    """Who may look at whom in one packed row, as the kernel wants it; made before the layers, which only read it."""

    whole: BlockMask
    window: int | None
    """Tokens that layers with a window look back; of one width in a model."""
    windowed: BlockMask | None
    """For these layers, where the row has a line that is longer."""
    dtype: torch.dtype | None
    """Of queries, keys and values within the kernel, which sums in float32; None leaves them as they are."""


def looks_of(layout: Layout, *, window: int | None, dtype: torch.dtype | None, device: torch.device) -> Looks:
    """What the kernel needs of `layout`, for a model some of whose layers look back `window` tokens only."""
    matters = window is not None and layout.longest > window
    windowed = block_mask(layout, window, device) if matters else None
    return Looks(block_mask(layout, None, device), window, windowed, dtype)


def attend(
    query: Tensor, key: Tensor, value: Tensor, looks: Looks, *, scale: float, window: int | None = None
) -> Tensor:
    """Softmax(scale q k') v over the pairs that may meet.

    Args:
        query: [1, H, T, d], on an accelerator; on a processor torch computes it forward alone, and slowly.
        key: [1, G, T, d], H a multiple of G.
        value: [1, G, T, d].
        looks: of this row.
        scale: of the products.
        window: tokens that this layer looks back; None where it looks at all of them.

    Returns:
        [1, H, T, d], of the type of `query`.

    Raises:
        ModelError: the layer has a window of another width than the model's settings say.
    """
    if window is not None and window != looks.window:
        raise ModelError(
            f"a layer looks back {window} tokens, and sliding_window of the model's config.json is {looks.window}",
            way_out="choose a base whose layers have one window, or train with train.device: cpu",
        )
    blocks = looks.whole if window is None or looks.windowed is None else looks.windowed
    given = (query, key, value) if looks.dtype is None else tuple(one.to(looks.dtype) for one in (query, key, value))
    size = query.shape[-1]
    if size < SMALLEST:
        given = tuple(functional.pad(one, (0, SMALLEST - size)) for one in given)
    found: Tensor = _kernel(query.device.type)(
        *given, block_mask=blocks, scale=scale, enable_gqa=True, kernel_options=KERNEL
    )
    return found[..., :size].to(query.dtype)


def block_mask(layout: Layout, window: int | None, device: torch.device) -> BlockMask:
    """Which blocks of queries and keys hold a pair that may meet, and which hold no other.

    Query i may look at key j where j <= i < until[j], so a block of earlier keys is looked at where its largest `until`
    lies behind the first query, and whole where its smallest lies behind the last. That takes (T / 128)^2 numbers, made
    beside the accelerator while it computes; torch's own function would write out all T^2 pairs on it. With a window a
    block may be kept in which nobody looks; the kernel then finds so pair by pair.
    """
    until, positions = layout.until, layout.position_ids[0]
    length = len(until)
    count = -(-length // BLOCK)
    last_key, first_key = _over_blocks(until, "max"), _over_blocks(until, "min")
    first = torch.arange(count) * BLOCK
    ends = (first + BLOCK).clamp(max=length)
    earlier = first[:, None] > first[None, :]
    whole_blocks = first + BLOCK <= length
    kept = earlier & (last_key[None, :] > first[:, None])
    full = earlier & (first_key[None, :] >= ends[:, None]) & whole_blocks[:, None] & whole_blocks[None, :]
    if window is not None:
        low, high = _over_blocks(positions, "min"), _over_blocks(positions, "max")
        kept &= low[:, None] - high[None, :] < window
        full &= high[:, None] - low[None, :] < window
    partial = (kept & ~full) | torch.eye(count, dtype=torch.bool)
    there_until, there_positions = until.to(device), positions.to(device)

    def may_look(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (key <= query) & (query < there_until[key])
        return seen if window is None else seen & (there_positions[query] - there_positions[key] < window)

    counts, places, full_counts, full_places = (
        one.to(device)[None, None] for one in (*_listed(partial), *_listed(full))
    )
    return BlockMask.from_kv_blocks(
        counts,
        places,
        full_counts,
        full_places,
        BLOCK_SIZE=BLOCK,
        mask_mod=may_look,
        seq_lengths=(length, length),
    )


def _over_blocks(numbers: Tensor, by: str) -> Tensor:
    """The smallest or the largest number of each block of tokens; [T] to [blocks]."""
    short = -len(numbers) % BLOCK
    whole = torch.cat([numbers, numbers[-1:].expand(short)]).view(-1, BLOCK)
    return whole.amin(dim=1) if by == "min" else whole.amax(dim=1)


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row, how many columns are chosen, and which, these first; bool [n, m] to int32 [n] and [n, m]."""
    order = torch.argsort((~chosen).to(torch.int8), dim=1, stable=True)
    return chosen.sum(dim=1, dtype=torch.int32), order.to(torch.int32)


@cache
def _kernel(device: str) -> Callable[..., Any]:
    """Compiled once for rows of any length; on a processor there is no such kernel with a gradient."""
    kernel: Callable[..., Any] = flex_attention
    return kernel if device == "cpu" else torch.compile(kernel, dynamic=True)
