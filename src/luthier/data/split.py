"""Which rows are learned from and which are kept back.

Chance comes from a hash of the seed and a row's own name, so that neither the order of the file nor the version of a
random generator counts.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from luthier.records import SplitName

_SPLITS: tuple[SplitName, ...] = ("train", "test", "validation")


def lot(seed: int, name: str) -> bytes:
    """A draw that depends on nothing but seed and name."""
    return hashlib.blake2b(f"{seed}:{name}".encode(errors="surrogatepass"), digest_size=16).digest()


def assign(
    groups: Sequence[str], labels: Sequence[str], *, test: float, validation: float, seed: int, stratify: bool
) -> list[SplitName]:
    """A split for each row, whole groups at a time.

    Groups are taken in a drawn order, large ones first, and each goes where its labels are missing most, measured in
    rows against the share that each split should have of each label. With `stratify`, the first group of a label goes
    to train, so that no label is left that cannot be learned.

    Args:
        groups: name of each row's group.
        labels: label of each row; ignored unless `stratify`.
        test: share of rows for the test split.
        validation: share of rows for the validation split.
        seed: of the drawn order.
        stratify: whether labels keep their shares.
    """
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    kinds = list(labels) if stratify else [""] * len(groups)
    shares: dict[SplitName, float] = {"train": 1.0 - test - validation, "test": test, "validation": validation}
    totals = Counter(kinds)
    missing = {split: {label: shares[split] * count for label, count in totals.items()} for split in _SPLITS}
    missing_rows = {split: shares[split] * len(kinds) for split in _SPLITS}
    open_splits = [split for split in _SPLITS if shares[split] > 0]
    learned: set[str] = set()
    assigned: list[SplitName] = ["train"] * len(kinds)
    for group in sorted(members, key=lambda name: (-len(members[name]), lot(seed, name))):
        counts = Counter(kinds[index] for index in members[group])

        def need(split: SplitName, counts: Counter[str] = counts) -> float:
            rows = sum(counts.values())
            by_label = sum(count * missing[split][label] for label, count in counts.items()) / rows
            return by_label + missing_rows[split] / len(totals)  # small classes alone would never fill a small split

        first_of_label = stratify and not counts.keys() <= learned
        split = "train" if first_of_label else max(open_splits, key=need)
        if split == "train":
            learned |= counts.keys()
        for index in members[group]:
            assigned[index] = split
        for label, count in counts.items():
            missing[split][label] -= count
            missing_rows[split] -= count
    return assigned


def draw(names: Sequence[str], labels: Sequence[str], *, limit: int, seed: int) -> list[bool]:
    """Which rows stay when at most `limit` may: drawn by label in proportion, at least one of each where there is room.

    Args:
        names: what distinguishes the rows, e.g. their places in the file.
        labels: label of each row; all equal for a plain draw.
        limit: rows that may stay.
        seed: of the draw.
    """
    if len(names) <= limit:
        return [True] * len(names)
    drawn: dict[str, list[int]] = {}
    for index in sorted(range(len(names)), key=lambda index: lot(seed, names[index])):
        drawn.setdefault(labels[index], []).append(index)
    turn: dict[int, tuple[float, int, str, int]] = {}
    for label, indexes in drawn.items():
        for place, index in enumerate(indexes):  # a label's first row comes before all others, the rest evenly spread
            turn[index] = ((place + 0.5) / len(indexes) if place else 0.0, -len(indexes), label, place)
    kept = set(sorted(turn, key=turn.__getitem__)[:limit])
    return [index in kept for index in range(len(names))]
