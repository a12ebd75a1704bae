"""Several token sequences in one forward pass, laid out so that none sees another and what they share is there once.

A layout is a list of segments. A segment continues its parent (a shared prompt, say) and sees it, its parent's parents
and its own past: nothing else. Positions restart at each root. Names: T tokens in the row, S segments.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from luthier.models.tree_attention import Blocks, cut

Kept = TypeVar("Kept")

SHARED = 8
"""Tokens that rows must have in common for them to be computed once: a shorter start saves less than it costs."""


@dataclass(frozen=True)
class Segment:
    """Tokens that follow `parent` (an earlier index), or begin a sequence of their own where it is None."""

    ids: Sequence[int]
    parent: int | None = None


@dataclass(frozen=True)
class Layout:
    """One packed row: what a model is called with. Segments stand depth first, in the order of `order`."""

    input_ids: Tensor  # [1, T]
    position_ids: Tensor  # [1, T]
    starts: tuple[int, ...]
    """Index in the row of each segment's first token."""
    lengths: tuple[int, ...]
    parents: tuple[int | None, ...]
    order: tuple[int, ...]
    """The segments from left to right."""
    _kept: dict[Hashable, Any] = field(default_factory=dict)

    @cached_property
    def blocks(self) -> Blocks:
        """Which queries look at which keys, for attention that pays for nothing else."""
        rank = {segment: place for place, segment in enumerate(self.order)}
        parents = [self.parents[segment] for segment in self.order]
        return cut(
            [self.starts[segment] for segment in self.order],
            [self.lengths[segment] for segment in self.order],
            [None if parent is None else rank[parent] for parent in parents],
        )

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest line from a root."""
        return int(self.position_ids.max()) + 1

    @cached_property
    def until(self) -> Tensor:
        """Int64 [T]: for each token of the row, the index after the last one that continues it.

        What continues a segment stands right behind it, so query i may look at key j exactly where j <= i < until[j].
        """
        ends = [start + length for start, length in zip(self.starts, self.lengths, strict=True)]
        for segment in reversed(self.order):
            parent = self.parents[segment]
            if parent is not None:
                ends[parent] = max(ends[parent], ends[segment])
        order = torch.tensor(self.order)
        return torch.repeat_interleave(torch.tensor(ends)[order], torch.tensor(self.lengths)[order])

    @cached_property
    def mask(self) -> Tensor:
        """Bool [1, 1, T, T], True where a query (row) may look at a key (column)."""
        place = torch.arange(len(self.until))
        return ((place[None] <= place[:, None]) & (place[:, None] < self.until[None]))[None, None]

    def window(self, width: int) -> Tensor:
        """`mask` for a layer that looks back `width` tokens only (Gemma 3)."""
        positions = self.position_ids[0]
        return self.kept(("window", width), lambda: self.mask & (positions[:, None] - positions[None, :] < width))

    def kept(self, key: Hashable, make: Callable[[], Kept]) -> Kept:
        """What `make` makes of this layout, made once for all layers that ask for it by this key."""
        if key not in self._kept:
            self._kept[key] = make()
        return cast(Kept, self._kept[key])


def lay_out(segments: Sequence[Segment]) -> Layout:
    """Lay out segments in one row.

    Raises:
        ValueError: no token at all, an empty segment, or a parent that does not come before its child.
    """
    if not segments:
        raise ValueError("nothing to lay out")
    children: dict[int | None, list[int]] = {}
    begins: list[int] = []
    for index, segment in enumerate(segments):
        if not segment.ids:
            raise ValueError(f"segment {index} is empty")
        parent = segment.parent
        if parent is not None and not 0 <= parent < index:
            raise ValueError(f"segment {index} has parent {parent}, which does not come before it")
        children.setdefault(parent, []).append(index)
        begins.append(0 if parent is None else begins[parent] + len(segments[parent].ids))
    order: list[int] = []
    waiting = children[None][::-1]
    while waiting:
        order.append(waiting.pop())
        waiting.extend(children.get(order[-1], [])[::-1])
    starts, total = [0] * len(segments), 0
    ids: list[int] = []
    positions = []
    for index in order:
        starts[index] = total
        total += len(segments[index].ids)
        ids.extend(segments[index].ids)
        positions.append(torch.arange(begins[index], begins[index] + len(segments[index].ids)))
    return Layout(
        torch.tensor([ids]),
        torch.cat(positions)[None],
        tuple(starts),
        tuple(len(segment.ids) for segment in segments),
        tuple(segment.parent for segment in segments),
        tuple(order),
    )


def lay_out_rows(rows: Sequence[Sequence[int]], *, shared: int = SHARED) -> tuple[Layout, list[Tensor]]:
    """Lay out rows so that what some begin with is there once.

    Args:
        rows: tokens, none of them empty.
        shared: tokens that must be common beyond what is common already, for a start of its own.

    Returns:
        The layout, and for each row the index in the packed row of each of its tokens, int64 [tokens].
    """
    segments, lines = share(rows, shared)
    layout = lay_out(segments)
    places = [
        torch.cat([torch.arange(layout.starts[s], layout.starts[s] + layout.lengths[s]) for s in line])
        for line in lines
    ]
    return layout, places


def num_laid_out(rows: Sequence[Sequence[int]], *, shared: int = SHARED) -> int:
    """Tokens of the packed row that `lay_out_rows` would make."""
    return sum(len(segment.ids) for segment in share(rows, shared)[0])


def share(rows: Sequence[Sequence[int]], shared: int = SHARED) -> tuple[list[Segment], list[list[int]]]:
    """Segments, each after its parent, and for each row those that it is made of, from its first token on."""
    segments: list[Segment] = []
    lines: list[list[int]] = [[] for _ in rows]
    order = sorted(range(len(rows)), key=lambda row: list(rows[row]))
    common = [common_start(rows[a], rows[b]) for a, b in pairwise(order)]
    waiting: list[tuple[int, int, int, int | None]] = [(0, len(order), 0, None)]  # rows order[low:high] share `depth`
    while waiting:
        low, high, depth, parent = waiting.pop()
        first = low
        for place in range(low + 1, high + 1):
            if place < high and common[place - 1] >= depth + shared:
                continue
            alike, first = range(first, place), place
            until = min((common[other] for other in alike[:-1]), default=len(rows[order[alike[0]]]))
            if until > depth:
                for other in alike:
                    lines[order[other]].append(len(segments))
                segments.append(Segment(rows[order[alike[0]]][depth:until], parent))
            if len(alike) > 1:
                longer = [other for other in alike if len(rows[order[other]]) > until]
                if longer:
                    waiting.append((longer[0], longer[-1] + 1, until, len(segments) - 1))
    return segments, lines


def common_start(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both begin with."""
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter
    low, high = 0, shorter  # one[:low] is common, one[:high] is not
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
