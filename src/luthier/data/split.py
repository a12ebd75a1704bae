"""Which rows are learned from and which are kept back.

Chance comes from a hash of the seed and a row's own name, so that neither the order of the file nor the version of a
random generator counts.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime

from luthier.records import SplitName


def lot(seed: int, name: str) -> bytes:
    """A draw that depends on nothing but seed and name."""
    return hashlib.blake2b(f"{seed}:{name}".encode(errors="surrogatepass"), digest_size=16).digest()


def assign(
    groups: Sequence[str], labels: Sequence[str], *, test: float, validation: float, seed: int, stratify: bool
) -> list[SplitName]:
    """A split for each row, whole groups at a time; every group has the same chance, whatever its size.

    The groups of a label (of most of their rows) are laid around a circle in a drawn order, each as wide as its rows
    are many, and the circle is turned by a draw. A group goes to the split in whose arc its middle lies, so a split
    misses its share by no more than the groups at the ends of its arc. What cannot be is corrected, by lot too: with
    `stratify` every label keeps a group in train, and no split that has a share stays empty if train can spare a group.

    Args:
        groups: name of each row's group.
        labels: label of each row; ignored unless `stratify`.
        test: share of rows for the test split.
        validation: share of rows for the validation split.
        seed: of all draws.
        stratify: whether labels keep their shares.
    """
    kinds = list(labels) if stratify else [""] * len(groups)
    contents: dict[str, dict[str, int]] = {}  # group -> label -> rows
    for group, label in zip(groups, kinds, strict=True):
        counts = contents.setdefault(group, {})
        counts[label] = counts.get(label, 0) + 1
    sizes = Counter(groups)
    order = sorted(contents, key=lambda group: lot(seed, group))
    circles: dict[str, list[str]] = {}
    for group in order:
        label = _most_frequent(contents[group], group, seed)
        circles.setdefault(label, []).append(group)
    chosen: dict[str, SplitName] = {}
    for label, circle in circles.items():
        whole = sum(sizes[group] for group in circle)
        start = whole * int.from_bytes(lot(seed, f"turn:{label}")[:6]) / 2**48
        for group in circle:
            place = (start + sizes[group] / 2) % whole / whole
            chosen[group] = "test" if place < test else "validation" if place < test + validation else "train"
            start += sizes[group]
    _correct(chosen, order, contents, wanted={"test": test > 0, "validation": validation > 0})
    return [chosen[group] for group in groups]


def _most_frequent(counts: Mapping[str, int], group: str, seed: int) -> str:
    """The label of most of a group's rows; a lot decides between equals."""
    if len(counts) == 1:
        return next(iter(counts))
    most = max(counts.values())
    return max(
        (label for label, count in counts.items() if count == most), key=lambda label: lot(seed, f"{group}:{label}")
    )


def _correct(
    chosen: dict[str, SplitName],
    order: Sequence[str],
    contents: Mapping[str, Mapping[str, int]],
    *,
    wanted: dict[SplitName, bool],
) -> None:
    """Give train a group of every label, then each wanted split a group that train can spare; first come in `order`."""
    learned = Counter(label for group in order if chosen[group] == "train" for label in contents[group])
    lacking = {label for counts in contents.values() for label in counts} - learned.keys()
    for group in order if lacking else ():
        if any(not learned[label] for label in contents[group]):
            chosen[group] = "train"
            learned.update(contents[group].keys())
    for split in (name for name, is_wanted in wanted.items() if is_wanted and name not in chosen.values()):
        spare = (g for g in order if chosen[g] == "train" and all(learned[label] > 1 for label in contents[g]))
        for group in itertools.islice(spare, 1):
            chosen[group] = split
            learned.subtract(contents[group].keys())


def assign_stable(groups: Sequence[str], *, test: float, validation: float, seed: int) -> list[SplitName]:
    """A split for each row by the lot of its group alone, so that rows that are added later move no other row.

    Shares are those of the expectation; nothing is corrected, because a correction would look at other rows.
    """
    chosen: dict[str, SplitName] = {}
    for group in groups:
        place = int.from_bytes(lot(seed, f"stable:{group}")[:6]) / 2**48
        chosen[group] = "test" if place < test else "validation" if place < test + validation else "train"
    return [chosen[group] for group in groups]


def assign_by_time(times: Sequence[datetime], *, test: float, validation: float) -> list[SplitName]:
    """A split for each row: the newest are tested, those before them validate, the oldest are learned.

    Rows of one time stay together, so each border is the one between two times that misses its share least; train keeps
    the oldest time, and a split that has a share gets a time where there are enough of them.
    """
    counts = sorted(Counter(times).items())
    older = list(itertools.accumulate((count for _, count in counts), initial=0))  # rows before each time

    def border(share: float, first: int, last: int) -> int:
        return min(range(first, last + 1), key=lambda place: abs(older[place] - share * len(times)))

    tested = validated = len(counts)
    if test and tested > 1:
        tested = border(1 - test, 2 if validation and tested > 2 else 1, tested - 1)
    if validation and tested > 1:
        validated = border(1 - test - validation, 1, tested - 1)
    names: dict[datetime, SplitName] = {}
    for place, (time, _) in enumerate(counts):
        names[time] = "test" if place >= tested else "validation" if place >= validated else "train"
    return [names[time] for time in times]


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
