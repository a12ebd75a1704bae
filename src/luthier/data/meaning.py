"""Rows that mean the same: the cosine of their vectors, of every pair, in blocks of bounded memory.

The products of all pairs are taken in 32-bit floats, whose last bits depend on how the processor cuts the work up. They
only choose candidates, a little below the threshold; what counts and what is reported is the product of the two rows in
64 bits, summed in one order. So neither the size of a block nor what else is compared changes a result. No index is
asked that might miss a pair; the time grows with the square of the rows.

Shapes: N rows, D features of a unit vector, C candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Places = NDArray[np.int64]

_ROWS, _COLUMNS = 1024, 8192
"""Rows and columns of a block: 34 MB of products, and as much again while they are looked through."""
_DOUBT = 1e-4
"""What 32-bit products may be off by: rounding adds up to D / 2^24 at worst, 6e-5 at D = 1024."""


@dataclass(frozen=True, slots=True)
class Like:
    """A row that means the same."""

    index: int
    cosine: float


@dataclass(frozen=True)
class MeaningRepeats:
    """What was found among N rows."""

    first: list[Like | None]
    """For each row, the first kept row of the same label that means the same; None where it is kept."""
    conflicts: list[tuple[int, Like]]
    """Kept rows, and the first kept row that means the same under another label; both stay."""


def cosines(units_ND: Floats, row: Floats) -> NDArray[np.float64]:
    """The product of each of N rows with one row, in 64 bits; the same bits whatever N is."""
    products_ND = units_ND.astype(np.float64) * row.astype(np.float64)
    return np.asarray(np.minimum(1.0, products_ND.sum(axis=1)), dtype=np.float64)


def repeated_by_meaning(units_ND: Floats, labels: Sequence[str], *, threshold: float) -> MeaningRepeats:
    """Rows that mean what a kept row of the same label means, in one pass from the first row to the last.

    As with texts that are nearly equal, a row is compared with kept rows only, so likeness does not chain, and a row of
    another label is never a repetition.

    Args:
        units_ND: rows of length 1, or of length 0, which are like nothing.
        labels: of each; equal for all where there is no closed set.
        threshold: cosine from which on a row is a repetition.
    """
    first: list[Like | None] = [None] * len(units_ND)
    conflicts: list[tuple[int, Like]] = []
    codes = _codes(labels)
    is_kept = np.ones(len(units_ND), dtype=np.bool_)
    for start in range(0, len(units_ND), _ROWS):
        stop = min(start + _ROWS, len(units_ND))
        kept = np.flatnonzero(is_kept[:start])
        # Of its own block nothing is decided yet; of those before it, the rows that were dropped are not looked at.
        own = np.arange(start, stop)
        parts = list(_alike(units_ND, own, np.concatenate([kept, own]), threshold))
        rows, others = (np.concatenate(side) for side in zip(*parts, strict=True))
        order = np.lexsort((others, rows))
        for row, earlier in _by_row(rows[order], others[order]):
            earlier = earlier[is_kept[earlier]]
            is_same = codes[earlier] == codes[row]
            same = _first_like(units_ND, row, earlier[is_same], threshold)
            first[row] = same
            is_kept[row] = same is None
            if same is None and (other := _first_like(units_ND, row, earlier[~is_same], threshold)):
                conflicts.append((row, other))
    return MeaningRepeats(first, conflicts)


def likest(asked_ND: Floats, known_MD: Floats, *, threshold: float) -> list[Like | None]:
    """For each asked row the known row that is likest, or None where no cosine reaches the threshold."""
    found: list[Like | None] = []
    for start in range(0, len(asked_ND), _ROWS):
        block = asked_ND[start : start + _ROWS]
        best = np.full(len(block), threshold, dtype=np.float32)
        parts: list[tuple[Places, Places, Floats]] = []
        for column in range(0, len(known_MD), _COLUMNS):
            products = block @ known_MD[column : column + _COLUMNS].T
            np.maximum(best, products.max(axis=1), out=best)
            rows, columns = np.nonzero(products >= best[:, None] - 2 * _DOUBT)
            parts.append((rows, columns + column, products[rows, columns]))
        own: list[Like | None] = [None] * len(block)
        if parts:
            rows, others, values = (np.concatenate(side) for side in zip(*parts, strict=True))
            near_best = values >= best[rows] - 2 * _DOUBT
            rows, others = rows[near_best], others[near_best]
            order = np.lexsort((others, rows))
            for row, known in _by_row(rows[order], others[order]):
                exact = cosines(known_MD[known], block[row])
                place = int(exact.argmax())
                if exact[place] >= threshold:
                    own[row] = Like(int(known[place]), float(exact[place]))
        found += own
    return found


def linked(units_ND: Floats, labels: Sequence[str], *, threshold: float) -> Places:
    """[N] a number for each row that is equal for rows of one label that a chain of like rows links."""
    codes, roots = _codes(labels), np.arange(len(units_ND))
    for code in range(int(codes.max(initial=-1)) + 1):
        own = np.flatnonzero(codes == code)
        for start in range(0, len(own), _ROWS):
            stop = start + _ROWS
            for rows, others in _alike(units_ND, own[start:stop], own[:stop], threshold):
                rows, others = _certain(units_ND, rows, others, threshold)
                roots = _joined(roots, roots[rows], roots[others])
    return roots


def _joined(roots: Places, ones: Places, others: Places) -> Places:
    """[N] the roots after those of each pair, and whatever they are linked with, became the least among them."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes, places = np.unique(np.concatenate([ones, others]), return_inverse=True)
    if not nodes.size:
        return roots
    ends = places.reshape(2, -1)
    graph = coo_array((np.ones(ends.shape[1], dtype=np.bool_), (ends[0], ends[1])), shape=(nodes.size, nodes.size))
    parts = connected_components(graph, directed=False)[1]
    _, first = np.unique(parts, return_index=True)  # nodes rise, so the first of a part is its least
    renamed = np.arange(len(roots))
    renamed[nodes] = nodes[first[parts]]
    return np.asarray(renamed[roots], dtype=np.int64)


def _certain(units: Floats, rows: Places, others: Places, threshold: float) -> tuple[Places, Places]:
    """The pairs whose exact cosine reaches the threshold."""
    keep = np.zeros(len(rows), dtype=np.bool_)
    for start in range(0, len(rows), _COLUMNS):
        part = slice(start, start + _COLUMNS)
        products = units[rows[part]].astype(np.float64) * units[others[part]].astype(np.float64)
        keep[part] = products.sum(axis=1) >= threshold
    return rows[keep], others[keep]


def _alike(units_ND: Floats, rows: Places, others: Places, threshold: float) -> Iterator[tuple[Places, Places]]:
    """[C] of `rows` and [C] of `others` before them whose product is at the threshold, or so little below it that it
    may be.
    """
    asked = units_ND[rows]
    for start in range(0, len(others), _COLUMNS):
        part = others[start : start + _COLUMNS]
        near, columns = np.nonzero(asked @ units_ND[part].T >= threshold - _DOUBT)
        is_before = part[columns] < rows[near]
        yield rows[near[is_before]], part[columns[is_before]]


def _by_row(rows: Places, others: Places) -> Iterator[tuple[int, Places]]:
    """Each row that has candidates, with these; `rows` are sorted."""
    found, starts = np.unique(rows, return_index=True)
    yield from zip(found.tolist(), np.split(others, starts[1:]), strict=False)


def _first_like(units_ND: Floats, row: int, others: Places, threshold: float) -> Like | None:
    exact = cosines(units_ND[others], units_ND[row])
    reached = np.flatnonzero(exact >= threshold)
    return Like(int(others[reached[0]]), float(exact[reached[0]])) if reached.size else None


def _codes(labels: Sequence[str]) -> Places:
    """[N] a number for each label, in the order in which they come."""
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return np.fromiter((numbers[label] for label in labels), dtype=np.int64, count=len(labels))
