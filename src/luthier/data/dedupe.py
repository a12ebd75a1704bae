"""Rows that say the same thing twice, and rows that contradict each other."""

from __future__ import annotations

from collections.abc import Sequence


def text_key(text: str) -> str:
    """What two texts are compared by: letter case and white space do not count."""
    return " ".join(text.split()).casefold()


def conflicting(keys: Sequence[str], answers: Sequence[str]) -> list[bool]:
    """For each row, whether another row has the same text and another answer; neither can be trusted."""
    seen: dict[str, set[str]] = {}
    for key, answer in zip(keys, answers, strict=True):
        seen.setdefault(key, set()).add(answer)
    return [len(seen[key]) > 1 for key in keys]


def repeated(keys: Sequence[str], answers: Sequence[str]) -> list[int | None]:
    """For each row, the index of the first row with the same text and answer, or None where it is the first."""
    first: dict[tuple[str, str], int] = {}
    found: list[int | None] = []
    for index, pair in enumerate(zip(keys, answers, strict=True)):
        earlier = first.setdefault(pair, index)
        found.append(None if earlier == index else earlier)
    return found
