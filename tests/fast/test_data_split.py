"""Groups stay whole, labels keep their shares, and neither the order of rows nor anything else unseen counts."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.dedupe import conflicting, repeated, text_key
from luthier.data.split import assign, draw

ROWS = st.lists(st.tuples(st.sampled_from("abcdefghij"), st.sampled_from(["x", "y", "z"])), min_size=1, max_size=60)
SHARE = st.sampled_from([0.0, 0.1, 0.25, 0.4])


@given(rows=ROWS, test=SHARE, validation=SHARE, seed=st.integers(0, 9), stratify=st.booleans())
def test_groups_are_never_split_and_order_does_not_count(
    rows: list[tuple[str, str]], test: float, validation: float, seed: int, stratify: bool
) -> None:
    def split(rows: list[tuple[str, str]]) -> list[str]:
        groups, labels = zip(*rows, strict=True)
        return list(assign(groups, labels, test=test, validation=validation, seed=seed, stratify=stratify))

    splits = split(rows)
    by_group: dict[str, set[str]] = {}
    for (group, _), name in zip(rows, splits, strict=True):
        by_group.setdefault(group, set()).add(name)
    assert all(len(names) == 1 for names in by_group.values())
    assert split(rows[::-1]) == splits[::-1]
    if stratify:
        assert {label for (_, label), name in zip(rows, splits, strict=True) if name == "train"} == {b for _, b in rows}
    assert test > 0 or "test" not in splits
    assert validation > 0 or "validation" not in splits


@given(sizes=st.lists(st.integers(1, 80), min_size=1, max_size=6), seed=st.integers(0, 9))
def test_labels_keep_their_shares_to_the_row(sizes: list[int], seed: int) -> None:
    labels = [str(label) for label, size in enumerate(sizes) for _ in range(size)]
    groups = [str(index) for index in range(len(labels))]
    splits = assign(groups, labels, test=0.25, validation=0.05, seed=seed, stratify=True)
    counts = Counter(zip(labels, splits, strict=True))
    for label, size in enumerate(sizes):
        assert abs(counts[str(label), "test"] - 0.25 * size) <= 2
        assert abs(counts[str(label), "validation"] - 0.05 * size) <= 2
    assert abs(splits.count("test") - 0.25 * len(labels)) <= len(sizes)


SHARES = {"train": 0.7, "test": 0.25, "validation": 0.05}


@pytest.mark.parametrize("stratify", [False, True])
def test_no_split_prefers_groups_of_a_size(stratify: bool) -> None:
    sizes = [1] * 60 + [4] * 30 + [12] * 10
    groups = [f"g{number}" for number, size in enumerate(sizes) for _ in range(size)]
    labels = ["ab"[int(group[1:]) % 2] for group in groups]
    size_of = Counter(groups)
    seen: Counter[tuple[int, str]] = Counter()
    rows: Counter[str] = Counter()
    seeds = 400
    for seed in range(seeds):
        splits = assign(groups, labels, test=0.25, validation=0.05, seed=seed, stratify=stratify)
        seen.update((size_of[group], split) for group, split in dict(zip(groups, splits, strict=True)).items())
        rows.update(splits)
    for size in (1, 4, 12):
        drawn = sum(seen[size, split] for split in SHARES)
        for split, share in SHARES.items():
            assert abs(seen[size, split] / drawn - share) <= 0.03, (size, split)
    for split, share in SHARES.items():
        assert abs(rows[split] / len(groups) / seeds - share) <= 0.01


@given(sizes=st.lists(st.integers(1, 9), min_size=10, max_size=60), seed=st.integers(0, 99))
def test_shares_are_missed_by_no_more_than_a_group(sizes: list[int], seed: int) -> None:
    groups = [str(number) for number, size in enumerate(sizes) for _ in range(size)]
    splits = assign(groups, ["a"] * len(groups), test=0.25, validation=0.25, seed=seed, stratify=True)
    for split in ("test", "validation"):
        assert abs(splits.count(split) - 0.25 * len(groups)) <= max(sizes)


@given(rows=ROWS, seed=st.integers(0, 9))
def test_a_split_with_a_share_is_empty_only_where_train_can_spare_nothing(
    rows: list[tuple[str, str]], seed: int
) -> None:
    groups, labels = zip(*rows, strict=True)
    splits = assign(groups, labels, test=0.25, validation=0.05, seed=seed, stratify=True)
    if {"test", "validation"} <= set(splits):
        return
    held: dict[str, set[str]] = {}
    for group, label, split in zip(groups, labels, splits, strict=True):
        if split == "train":
            held.setdefault(label, set()).add(group)
    assert all(any(held[label] == {group} for label in held) for group in set().union(*held.values()))


def test_a_group_above_the_share_of_a_split_may_come_into_any() -> None:
    groups = ["large"] * 60 + [f"g{number}" for number in range(60)]
    drawn = (assign(groups, ["x"] * 120, test=0.25, validation=0.1, seed=seed, stratify=True) for seed in range(200))
    share = Counter(splits[0] for splits in drawn)
    assert abs(share["test"] / 200 - 0.25) < 0.1
    assert 0.02 < share["validation"] / 200 < 0.2


def test_the_first_group_of_a_label_may_be_tested() -> None:
    drawn = [assign(["a", "b"], ["x", "x"], test=0.5, validation=0, seed=seed, stratify=True) for seed in range(40)]
    assert {tuple(splits) for splits in drawn} == {("train", "test"), ("test", "train")}


def test_another_seed_gives_another_split() -> None:
    names = [str(index) for index in range(100)]
    one, two = (assign(names, ["a"] * 100, test=0.5, validation=0, seed=seed, stratify=True) for seed in (0, 1))
    assert one != two


LABELS = st.lists(st.sampled_from("abcd"), min_size=1, max_size=80)


@given(labels=LABELS, limit=st.integers(1, 90), seed=st.integers(0, 5))
def test_a_draw_keeps_every_label_and_its_share(labels: list[str], limit: int, seed: int) -> None:
    names = [str(index) for index in range(len(labels))]
    kept = draw(names, labels, limit=limit, seed=seed)
    assert sum(kept) == min(limit, len(labels))
    counts, stays = Counter(labels), Counter(label for label, stay in zip(labels, kept, strict=True) if stay)
    if limit >= len(counts):
        assert stays.keys() == counts.keys()
        for label, count in counts.items():
            assert abs(stays[label] - min(1, limit / len(labels)) * count) <= len(counts)
    assert draw(names, labels, limit=limit, seed=seed) == kept


def test_conflicts_and_repetitions() -> None:
    keys = [text_key(text) for text in ("Where IS it?", "where  is it?", "Hello", "hello ", "Straße", "STRASSE")]
    answers = ["a", "b", "a", "a", "a", "a"]
    assert conflicting(keys, answers) == [True, True, False, False, False, False]
    assert repeated(keys, answers) == [None, None, None, 2, None, 4]
