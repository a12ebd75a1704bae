"""Attention over a tree of token segments that costs what is looked at, not the square of the row.

A row holds segments in depth-first order (models/packing.py), so what continues a segment stands right behind it. The
pairs of query and key that may meet are then a sum of rectangles: each segment's tokens among themselves (causal), and
everything that continues it against its tokens (no mask). Softmax over such a sum is exact: with o_i, l_i the output
and the log-sum-exp of rectangle i, l = log sum exp(l_i) and o = sum exp(l_i - l) o_i; and the gradient of each
rectangle is that of attention computed alone, given the final o and l (Dao et al. 2022, arXiv 2205.14135, appendix B;
Liu et al. 2023, arXiv 2310.01889, use the same sum between devices). Names: T tokens in the row, H query heads, G
key-value heads, d numbers a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

_WHOLE = 64  # a subtree of at most so many tokens is one masked square: its parts would cost more calls than they save
_SHORTEST = 16  # of fewer keys torch's kernel (2.13) makes 0 where a score is NaN, and a broken model would go unseen
_PADDING = 0.7  # squares computed in one call are at least so long as this share of the longest


@dataclass(frozen=True)
class Squares:
    """Subtrees looked at each for itself, in one call, filled up to the longest."""

    index: Tensor  # int64 [n, S]: places in the row; what fills a shorter subtree up repeats its first place
    real: Tensor  # bool [n, S]: False where it is filled up
    mask: Tensor | None
    """float [n, 1, S, S], 0 or -inf; None where causality is all there is (each subtree is one segment)."""

    @cached_property
    def is_one(self) -> bool:
        """Whether this is one subtree with nothing filled up, which needs no gathering."""
        return len(self.index) == 1 and bool(self.real.all())

    @cached_property
    def places(self) -> Tensor | slice:
        """Where in the row what is real stands, subtree by subtree."""
        if self.is_one:
            return slice(int(self.index[0, 0]), int(self.index[0, -1]) + 1)
        return self.index[self.real]

    @cached_property
    def inside(self) -> Tensor | slice:
        """Where among the n S places of the call what is real stands."""
        return slice(None) if bool(self.real.all()) else self.real.flatten().nonzero()[:, 0]

    def gathered(self, rows: Tensor) -> Tensor:
        """[T, heads, d] as [n, heads, S, d]."""
        if self.is_one:
            return _heads(rows[self.places])
        picked = rows.index_select(0, self.index.flatten())
        return picked.view(*self.index.shape, *rows.shape[1:]).transpose(1, 2)

    def scatter(self, parts: Tensor, rows: Tensor) -> None:
        """Put what is real of [n, heads, S(, d)] into `rows` [T, heads(, d)]."""
        rows[self.places] = parts.transpose(1, 2).flatten(0, 1)[self.inside].to(rows.dtype)


@dataclass(frozen=True)
class Rectangle:
    """All that continues a segment looks at all of the segment."""

    queries: slice
    keys: slice


@dataclass(frozen=True)
class Blocks:
    """Every pair of query and key that may meet, once."""

    squares: tuple[Squares, ...]
    rectangles: tuple[Rectangle, ...]


def cut(starts: Sequence[int], lengths: Sequence[int], parents: Sequence[int | None]) -> Blocks:
    """The blocks of segments that stand in depth-first order.

    Args:
        starts: index in the row of each segment's first token.
        lengths: tokens of each segment.
        parents: the segment that each continues, an earlier one, or None.
    """
    subtree = list(lengths)
    for child in range(len(lengths) - 1, -1, -1):
        parent = parents[child]
        if parent is not None:
            subtree[parent] += subtree[child]
    single: list[tuple[int, int]] = []  # (start, length) of what is looked at for itself
    branched: list[tuple[int, int]] = []
    rectangles = []
    segment = 0
    while segment < len(lengths):
        start, length, whole = starts[segment], lengths[segment], subtree[segment]
        if length == whole:
            single.append((start, length))
        elif whole <= _WHOLE:
            branched.append((start, whole))
            while segment + 1 < len(lengths) and starts[segment + 1] < start + whole:
                segment += 1
        else:
            single.append((start, length))
            rectangles.append(Rectangle(slice(start + length, start + whole), slice(start, start + length)))
        segment += 1
    squares = [_squares(group) for group in _alike(single)]
    for group in _alike(branched):
        found = _squares(group)
        squares.append(Squares(found.index, found.real, _mask(found, starts, lengths, parents)))
    return Blocks(tuple(squares), tuple(rectangles))


def _alike(units: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Units of about one length together, so that little is filled up."""
    groups: list[list[tuple[int, int]]] = []
    for unit in sorted(units, key=lambda unit: (-unit[1], unit[0])):
        if groups and unit[1] >= _PADDING * groups[-1][0][1]:
            groups[-1].append(unit)
        else:
            groups.append([unit])
    return groups


def _squares(units: Sequence[tuple[int, int]]) -> Squares:
    starts, lengths = (torch.tensor(column)[:, None] for column in zip(*units, strict=True))
    offsets = torch.arange(max(_SHORTEST, int(lengths.max())))[None]
    real = offsets < lengths
    return Squares(starts + offsets * real, real, None)


def _mask(squares: Squares, starts: Sequence[int], lengths: Sequence[int], parents: Sequence[int | None]) -> Tensor:
    """Who sees whom within each subtree; what fills up sees itself, so that no row is empty."""
    count, longest = squares.index.shape
    mask = torch.full((count, 1, longest, longest), float("-inf"))
    mask[:, 0].diagonal(dim1=1, dim2=2).fill_(0.0)
    place = {start: segment for segment, start in enumerate(starts)}
    for number in range(count):
        first, width = int(squares.index[number, 0]), int(squares.real[number].sum())
        segment = place[first]
        while segment < len(starts) and starts[segment] < first + width:
            own = slice(starts[segment] - first, starts[segment] - first + lengths[segment])
            mask[number, 0, own, own] = torch.full((lengths[segment],) * 2, float("-inf")).triu(1)
            above = parents[segment]
            while above is not None and starts[above] >= first:
                mask[number, 0, own, starts[above] - first : starts[above] - first + lengths[above]] = 0.0
                above = parents[above]
            segment += 1
    return mask


def attend(query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, *, scale: float) -> Tensor:
    """Softmax(scale q k') v over the pairs of `blocks`.

    Args:
        query: [T, H, d].
        key: [T, G, d], H a multiple of G.
        value: [T, G, d].
        blocks: of this row.
        scale: of the products.

    Returns:
        [T, H, d].
    """
    out: Tensor = _TreeAttention.apply(query, key, value, blocks, scale)  # type: ignore[no-untyped-call]
    return out


class _TreeAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, scale: float) -> Tensor:
        out = torch.empty_like(query, dtype=torch.float32, memory_format=torch.contiguous_format)
        norm = torch.empty(query.shape[:2], dtype=torch.float32)  # [T, H] log-sum-exp
        for squares in blocks.squares:
            q, k, v = (squares.gathered(rows) for rows in (query, key, value))
            part, its_norm = _flash(q, k, v, squares.mask, scale=scale, causal=True)
            squares.scatter(part, out)
            squares.scatter(its_norm, norm)
        for rectangle in blocks.rectangles:
            rows, keys = rectangle.queries, rectangle.keys
            part, its_norm = _flash(
                _heads(query[rows]), _heads(key[keys]), _heads(value[keys]), None, scale=scale, causal=False
            )
            more = its_norm[0].transpose(0, 1)  # [rows, H]
            total = torch.logaddexp(norm[rows], more)
            out[rows] *= (norm[rows] - total).exp_()[..., None]
            out[rows] += part[0].transpose(0, 1) * (more - total).exp_()[..., None]
            norm[rows] = total
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, norm)
        ctx.blocks, ctx.scale = blocks, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, out, norm = ctx.saved_tensors
        grad = grads[0]
        gradients = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (query, key, value)]
        for squares in ctx.blocks.squares:
            q, k, v, o, g = (squares.gathered(rows) for rows in (query, key, value, out, grad))
            # Against so large a sum the weights of what fills up are exactly 0, and so are its gradients.
            its_norm = norm[squares.index].masked_fill(~squares.real[..., None], torch.finfo(torch.float32).max)
            parts = _flash_backward(g, q, k, v, o, its_norm.transpose(1, 2), squares.mask, scale=ctx.scale, causal=True)
            for whole, part in zip(gradients, parts, strict=True):
                squares.scatter(part, whole)
        for rectangle in ctx.blocks.rectangles:
            rows, keys = rectangle.queries, rectangle.keys
            parts = _flash_backward(
                _heads(grad[rows]), _heads(query[rows]), _heads(key[keys]), _heads(value[keys]), _heads(out[rows]),
                norm[rows].transpose(0, 1)[None], None, scale=ctx.scale, causal=False,
            )  # fmt: skip
            for whole, part, where in zip(gradients, parts, (rows, keys, keys), strict=True):
                whole[where] += part[0].transpose(0, 1)
        return gradients[0], gradients[1], gradients[2], None, None


def _heads(rows: Tensor) -> Tensor:
    """[rows, heads, d] as [1, heads, rows, d], without a copy."""
    return rows.transpose(0, 1)[None]


def _flash(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """Output and natural log-sum-exp [n, heads, queries] of torch's tiled attention on this processor."""
    found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal and mask is None, attn_mask=None if mask is None else mask.to(query.dtype),
        scale=scale,
    )  # fmt: skip
    return found[0], found[1]


def _flash_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, norm: Tensor, mask: Tensor | None,
    *, scale: float, causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients by query, key and value, given the final output and log-sum-exp."""
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, query, key, value, out, norm, 0.0, causal and mask is None,
        attn_mask=None if mask is None else mask.to(query.dtype), scale=scale,
    )  # fmt: skip
    return found
