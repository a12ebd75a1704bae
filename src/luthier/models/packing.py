"""Several token sequences in one forward pass, laid out so that none sees another.

A layout is a list of segments. A segment continues its parent (a shared prompt, say) and sees it, its parent's parents
and its own past: nothing else. Positions restart at each root. Names: T tokens in the row, S segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """Tokens that follow `parent` (an earlier index), or begin a sequence of their own where it is None."""

    ids: Sequence[int]
    parent: int | None = None


@dataclass(frozen=True)
class Layout:
    """One packed row: what a model is called with."""

    input_ids: Tensor  # [1, T]
    position_ids: Tensor  # [1, T]
    mask: Tensor  # bool [1, 1, T, T], True where a query (row) may look at a key (column)
    starts: tuple[int, ...]
    """Index in the row of each segment's first token."""


def lay_out(segments: Sequence[Segment]) -> Layout:
    """Lay out segments in one row.

    Raises:
        ValueError: no token at all, an empty segment, or a parent that does not come before its child.
    """
    if not segments:
        raise ValueError("nothing to lay out")
    starts: list[int] = []
    begins: list[int] = []
    sees = torch.zeros(len(segments), len(segments), dtype=torch.bool)  # [S, S]
    total = 0
    for index, segment in enumerate(segments):
        if not segment.ids:
            raise ValueError(f"segment {index} is empty")
        parent = segment.parent
        if parent is not None:
            if not 0 <= parent < index:
                raise ValueError(f"segment {index} has parent {parent}, which does not come before it")
            sees[index] = sees[parent]
        sees[index, index] = True
        starts.append(total)
        begins.append(0 if parent is None else begins[parent] + len(segments[parent].ids))
        total += len(segment.ids)
    lengths = torch.tensor([len(segment.ids) for segment in segments])
    owner = torch.repeat_interleave(torch.arange(len(segments)), lengths)  # [T]
    positions = torch.arange(total) - torch.tensor(starts)[owner] + torch.tensor(begins)[owner]  # [T]
    # In a shared past every key with a smaller or equal position is the past; within a segment that is causality.
    mask = sees[owner][:, owner] & (positions[:, None] >= positions[None, :])  # [T, T]
    ids = torch.tensor([token for segment in segments for token in segment.ids])
    return Layout(ids[None], positions[None], mask[None, None], tuple(starts))


def forward_logits(model: Any, layout: Layout, keep: Tensor) -> Tensor:
    """Next-token scores of the packed row at the indices `keep` [K]; shape [K, vocabulary].

    Only the kept positions pass through the output head.
    """
    output = model(
        input_ids=layout.input_ids,
        position_ids=layout.position_ids,
        attention_mask=_masks(model, layout),
        logits_to_keep=keep,
        use_cache=False,
    )
    return output.logits[0]  # type: ignore[no-any-return]


def _masks(model: Any, layout: Layout) -> Tensor | dict[str, Tensor]:
    """One mask, or one a layer type where some layers look back only through a window (Gemma 3)."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds <= {"full_attention"}:
        return layout.mask
    if not kinds <= {"full_attention", "sliding_attention"}:
        raise ValueError(f"layer types {sorted(kinds)} are not known here")
    positions = layout.position_ids[0]
    near = positions[:, None] - positions[None, :] < config.sliding_window
    return {"full_attention": layout.mask, "sliding_attention": layout.mask & near}
