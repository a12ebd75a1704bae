"""Label hygiene against planted faults."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.labels import FEWEST_ROWS, rare_labels, refuse_unknown, similar_names, suspected
from luthier.errors import DataError


@pytest.mark.parametrize(
    "alike",
    [
        ("Refund", "refund"), ("card_arrival", "card arrival"), ("order-status", "order_status", "Order Statuss"),
        ("réclamation", "reclamation"), ("refunds", "refund"), ("cancellation", "cancelation"),
    ],
)  # fmt: skip
def test_names_that_a_reader_takes_for_the_same(alike: tuple[str, ...]) -> None:
    assert similar_names([*alike, "something_else", "x"]) == [tuple(sorted(alike))]


@pytest.mark.parametrize(
    "different", [("buy", "bug"), ("level_1", "level_2"), ("sent", "send"), ("positive", "negative"), ("", " ")]
)
def test_names_that_are_different_on_purpose(different: tuple[str, ...]) -> None:
    assert similar_names(different) == []


@given(st.lists(st.text(max_size=12), max_size=8))
def test_groups_are_disjoint_and_hold_given_names(names: list[str]) -> None:
    groups = similar_names(names)
    flat = [name for group in groups for name in group]
    assert len(flat) == len(set(flat))
    assert set(flat) <= set(names)


def test_a_label_to_rename_that_is_not_there() -> None:
    refuse_unknown(["a"], {"a", "b"}, key="data.labels.rename")
    with pytest.raises(DataError, match=r"data\.labels\.rename: no row has the label 'z'\n  -> .*: a, b"):
        refuse_unknown(["z"], {"a", "b"}, key="data.labels.rename")


def test_rare_labels_come_rarest_first() -> None:
    assert rare_labels({"a": 9, "b": 2, "c": 1}, fewer_than=5) == {"c": 1, "b": 2}


def planted(rows: int, wrong: int) -> tuple[list[str], list[str], list[str], set[int]]:
    """Texts of four vocabularies that overlap, with some labels exchanged."""
    rng = random.Random(1)
    names = ["red", "green", "blue", "gray"]
    common = [f"c{number}" for number in range(30)]
    own = {name: [f"{name}{number}" for number in range(25)] for name in names}
    texts, labels = [], []
    for _ in range(rows):
        name = rng.choice(names)
        texts.append(" ".join(rng.choices(own[name], k=4) + rng.choices(common, k=6)))
        labels.append(name)
    flipped = set(rng.sample(range(rows), wrong))
    for row in flipped:
        labels[row] = rng.choice([name for name in names if name != labels[row]])
    return texts, labels, [str(row) for row in range(rows)], flipped


def test_planted_wrong_labels_are_found_and_few_right_ones_suspected() -> None:
    texts, labels, groups, flipped = planted(600, 30)
    review = suspected(texts, labels, groups, seed=0)
    assert review is not None
    assert 0.9 < review.agreement < 1.0
    found = review.suspects
    hits = {suspect.index for suspect in found} & flipped
    assert len(hits) >= 27
    assert len(found) - len(hits) <= 6
    assert all(suspect.suggested != labels[suspect.index] for suspect in found)
    margins = [suspect.suggested_probability - suspect.given_probability for suspect in found]
    assert margins == sorted(margins, reverse=True)
    assert review == suspected(texts, labels, groups, seed=0)


def test_a_group_cannot_vouch_for_itself() -> None:
    texts, labels, groups, _ = planted(400, 0)
    texts += ["red1 red2 red3 red4"] * 12
    labels += ["blue"] * 12
    apart = suspected(texts, labels, [*groups, *["one"] * 12], seed=0)
    assert apart is not None
    assert {suspect.index for suspect in apart.suspects} >= set(range(400, 412)), "copies with the same wrong label"


def test_few_rows_or_one_label_are_not_judged() -> None:
    texts, labels, groups, _ = planted(FEWEST_ROWS - 1, 9)
    assert suspected(texts, labels, groups, seed=0) is None
    assert suspected(["a"] * 200, ["x"] * 200, [str(row) for row in range(200)], seed=0) is None
