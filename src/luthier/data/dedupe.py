"""Rows that say the same thing twice, and rows that contradict each other."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from luthier.data.near import Match, NearPairs
from luthier.spec.template import parse


def text_key(text: str) -> str:
    """What two texts are compared by: letter case and white space do not count."""
    return " ".join(text.split()).casefold()


def conflicting(keys: Sequence[Hashable], answers: Sequence[str]) -> list[bool]:
    """For each row, whether another row has the same text and another answer; neither can be trusted."""
    first: dict[Hashable, str] = {}
    differ: set[Hashable] = set()
    for key, answer in zip(keys, answers, strict=True):
        if first.setdefault(key, answer) != answer:
            differ.add(key)
    return [key in differ for key in keys] if differ else [False] * len(keys)


def repeated(keys: Sequence[Hashable], answers: Sequence[str]) -> list[int | None]:
    """For each row, the index of the first row with the same text and answer, or None where it is the first."""
    first: dict[tuple[Hashable, str], int] = {}
    found: list[int | None] = []
    for index, pair in enumerate(zip(keys, answers, strict=True)):
        earlier = first.setdefault(pair, index)
        found.append(None if earlier == index else earlier)
    return found


@dataclass(frozen=True)
class NearRepeats:
    """What was found among N rows that nearly say the same."""

    first: list[Match | None]
    """For each row, the first kept row that it nearly repeats with the same label; None where it is kept."""
    conflicts: list[tuple[int, Match]]
    """Kept rows, and the first kept row that nearly says the same under another label; both stay."""


def near_repeated(pairs: NearPairs, labels: Sequence[str]) -> NearRepeats:
    """Rows that nearly repeat a kept row of the same label, in one pass from the first row to the last.

    A row is compared with kept rows only; where it is like a dropped one, with the kept row that this one repeats. So
    every dropped row is as like as the threshold to the row that it is said to repeat, and a row that is like a dropped
    one but not like the kept one stays: likeness does not chain. A changed word may be what makes the label, so a row
    of another label is never a repetition.

    Args:
        pairs: of N texts that are alike.
        labels: of each; equal for all where there is no closed set.
    """
    before = pairs.before()
    first: list[Match | None] = [None] * len(labels)
    conflicts: list[tuple[int, Match]] = []
    for row in sorted(before):
        kept: dict[int, Match] = {}
        for match in before[row]:
            repeats = first[match.index]
            if repeats is None:
                kept[match.index] = match
            elif repeats.index not in kept:
                value = pairs.compare(row, repeats.index)
                if value >= pairs.threshold:
                    kept[repeats.index] = Match(repeats.index, value)
        matches = sorted(kept.values(), key=lambda match: match.index)
        first[row] = next((match for match in matches if labels[match.index] == labels[row]), None)
        if first[row] is None:
            conflicts += [(row, match) for match in matches[:1]]
    return NearRepeats(first, conflicts)


def without_wording(key: str, template: str) -> str:
    """A key without what the input template says itself; wording that all rows share would make them alike."""
    for part in parse(template) if template else ():
        wording = text_key(part) if isinstance(part, str) else ""
        key = key.replace(wording, " ", 1) if wording else key
    return key
