"""Every pair is compared; neither the size of a block nor the company of a row changes what is found."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data import meaning
from luthier.data.meaning import Floats, Like, cosines, likest, linked, repeated_by_meaning


def units(count: int, seed: int, features: int = 24) -> Floats:
    """Rows around a few centres, so that many pairs lie about any threshold."""
    draw = np.random.default_rng(seed)
    rows = draw.normal(size=(5, features))[draw.integers(0, 5, count)] + draw.normal(size=(count, features)) * 0.4
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def cosine(one: Floats, other: Floats) -> float:
    return float((one.astype(np.float64) * other.astype(np.float64)).sum())


def greedy(rows: Floats, labels: list[str], threshold: float) -> tuple[list[int | None], list[tuple[int, int]]]:
    """The same pass, pair by pair."""
    first: list[int | None] = []
    conflicts = []
    for row in range(len(rows)):
        kept = [other for other in range(row) if first[other] is None and cosine(rows[row], rows[other]) >= threshold]
        same = next((other for other in kept if labels[other] == labels[row]), None)
        first.append(same)
        different = [other for other in kept if labels[other] != labels[row]]
        conflicts += [(row, different[0])] if same is None and different else []
    return first, conflicts


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(0, 40),
    seed=st.integers(0, 999),
    threshold=st.sampled_from([0.5, 0.8, 0.9]),
    block=st.sampled_from([(1, 1), (3, 5), (7, 2), (1024, 8192)]),
)
def test_all_is_as_pair_by_pair_whatever_the_block(
    count: int, seed: int, threshold: float, block: tuple[int, int]
) -> None:
    rows, labels = units(count, seed), [("a", "b", "c")[number % 3] for number in range(count)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meaning, "_ROWS", block[0])
        patch.setattr(meaning, "_COLUMNS", block[1])
        found = repeated_by_meaning(rows, labels, threshold=threshold)
        best = likest(rows, rows[::2], threshold=threshold)
        chains = linked(rows, labels, threshold=threshold)
    first, conflicts = greedy(rows, labels, threshold)
    assert [like and like.index for like in found.first] == first
    assert [(row, like.index) for row, like in found.conflicts] == conflicts
    for row, like in enumerate(found.first):
        assert like is None or like == Like(like.index, cosine(rows[row], rows[like.index]))
    for row, like in zip(rows, best, strict=True):
        values = [cosine(row, other) for other in rows[::2]]
        reached = [value for value in values if value >= threshold]
        assert (like and like.cosine) == (min(1.0, max(reached)) if reached else None)
        assert like is None or min(1.0, values[like.index]) == like.cosine
    assert chains.tolist() == by_hand(rows, labels, threshold)


def by_hand(rows: Floats, labels: list[str], threshold: float) -> list[int]:
    """Least row that a chain of like rows of one label leads to."""
    least = list(range(len(rows)))
    for _ in rows:
        for one, other in combinations(range(len(rows)), 2):
            if labels[one] == labels[other] and cosine(rows[one], rows[other]) >= threshold:
                least[one] = least[other] = min(least[one], least[other])
    return least


def test_a_pair_at_the_threshold_is_decided_by_the_exact_product() -> None:
    """Thresholds just at and just above a pair's cosine, which 32-bit products cannot tell apart."""
    rows = units(60, seed=3)
    for one, other in ((40, 2), (55, 31)):
        value = cosine(rows[one], rows[other])
        above = float(np.nextafter(value, 2))
        pair = rows[[other, one]]
        assert repeated_by_meaning(pair, ["", ""], threshold=value).first[1] == Like(0, value)
        assert repeated_by_meaning(pair, ["", ""], threshold=above).first[1] is None
        assert likest(pair[1:], pair[:1], threshold=value) == [Like(0, value)]
        assert likest(pair[1:], pair[:1], threshold=above) == [None]
        assert linked(pair, ["", ""], threshold=value).tolist() == [0, 0]
        assert linked(pair, ["", ""], threshold=above).tolist() == [0, 1]


@pytest.mark.parametrize("features", [3, 24, 384, 1024])
def test_a_product_is_the_same_in_any_company(features: int) -> None:
    rows = units(50, seed=1, features=features)
    together = cosines(rows, rows[7])
    assert together.tolist() == [float(cosines(rows[[place]], rows[7])[0]) for place in range(50)]
    assert together[7] == pytest.approx(1, abs=1e-6)
    off = np.abs((rows @ rows[7]).astype(np.float64) - together).max()
    assert off < meaning._DOUBT / 10, "32-bit products must be well within what is doubted"


def test_a_row_without_a_vector_is_like_nothing() -> None:
    rows = np.zeros((3, 8), dtype=np.float32)
    assert repeated_by_meaning(rows, ["", "", ""], threshold=0.5).first == [None, None, None]
    assert likest(rows, rows, threshold=0.5) == [None, None, None]
    assert linked(rows, ["", "", ""], threshold=0.5).tolist() == [0, 1, 2]


def test_likeness_does_not_chain_among_duplicates_and_does_among_links() -> None:
    angles = np.array([0.0, 0.4, 0.8])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    threshold = float(np.cos(0.5))
    assert [like and like.index for like in repeated_by_meaning(rows, [""] * 3, threshold=threshold).first] == [
        None, 0, None,
    ]  # fmt: skip
    assert linked(rows, [""] * 3, threshold=threshold).tolist() == [0, 0, 0]
