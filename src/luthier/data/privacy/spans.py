"""What a detector finds, and what is put in its place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """A find at `text[start:end]`."""

    start: int
    end: int
    kind: str
    """A key of `PLACEHOLDERS`, 'secret.' and the sort of secret, or a kind that only the user's annotations know."""
    detector: str = "patterns/3"
    """Which detector found it, and its version."""

    @property
    def is_secret(self) -> bool:
        return self.kind.startswith("secret.")


PLACEHOLDERS = {
    "email": "[EMAIL]",
    "phone": "[PHONE]",
    "card": "[CARD]",
    "iban": "[IBAN]",
    "ipv4": "[IP]",
    "ipv6": "[IP]",
    "url": "[URL]",
    "ssn": "[SSN]",
    "driver_license": "[ID]",
    "medical_record": "[ID]",
    "passport": "[ID]",
    "national_id": "[ID]",
    "date": "[DATE]",
    "date_of_birth": "[DATE]",
    "age": "[AGE]",
    "postcode": "[POSTCODE]",
    "address": "[ADDRESS]",
    "location": "[LOCATION]",
    "name": "[NAME]",
    "title": "[TITLE]",
    "organization": "[ORGANIZATION]",
    "nationality": "[NATIONALITY]",
}
SECRET_PLACEHOLDER = "[SECRET]"
OTHER_PLACEHOLDER = "[PERSONAL]"
"""Of kinds that only the user's annotations know."""

EVERY_PLACEHOLDER = frozenset({*PLACEHOLDERS.values(), SECRET_PLACEHOLDER, OTHER_PLACEHOLDER})
_PLACEHOLDER = re.compile("|".join(map(re.escape, sorted(EVERY_PLACEHOLDER))))


def placeholder(span: Span) -> str:
    """What is written where `span` stood."""
    return SECRET_PLACEHOLDER if span.is_secret else PLACEHOLDERS.get(span.kind, OTHER_PLACEHOLDER)


def redact(text: str, spans: Iterable[Span]) -> str:
    """`text` with each span replaced by its placeholder."""
    for span in sorted(spans, key=lambda span: span.start, reverse=True):
        text = text[: span.start] + placeholder(span) + text[span.end :]
    return text


def placeholders(text: str) -> list[tuple[int, int]]:
    """Where redaction has been: no detector of free text looks there again, so that redacting comes to an end."""
    return [match.span() for match in _PLACEHOLDER.finditer(text)] if "[" in text else []


def add_free(taken: list[Span], found: Iterable[Span]) -> None:
    """Append what overlaps nothing that is `taken` already: the earlier detector wins."""
    for span in found:
        if all(span.end <= other.start or other.end <= span.start for other in taken):
            taken.append(span)


def add_cut(taken: list[Span], found: Iterable[Span], closed: Iterable[tuple[int, int]], text: str) -> None:
    """Append what `found` has outside `taken` and `closed` places: finds are cut to what is still free."""
    for span in found:
        walls = sorted([(one.start, one.end) for one in taken] + list(closed))
        for start, end in _gaps(span, walls):
            piece = text[start:end]
            start += len(piece) - len(piece.lstrip())
            end -= len(piece) - len(piece.rstrip())
            if any(char.isalnum() for char in text[start:end]):
                taken.append(Span(start, end, span.kind, span.detector))


def _gaps(span: Span, walls: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    start = span.start
    for low, high in walls:
        if high <= start or low >= span.end:
            continue
        if low > start:
            yield start, low
        start = max(start, high)
    if start < span.end:
        yield start, span.end


_BETWEEN = re.compile(r",?[ \n]?\s?,?\s?")


def joined(spans: Iterable[Span], text: str) -> list[Span]:
    """In order, with a town that follows a street made part of the address."""
    whole: list[Span] = []
    for span in sorted(spans, key=lambda span: span.start):
        last = whole[-1] if whole else None
        if last and last.kind == "address" and span.kind in ("location", "address"):
            between = text[last.end : span.start]
            if between != "\n\n" and _BETWEEN.fullmatch(between):
                whole[-1] = Span(last.start, span.end, "address", last.detector)
                continue
        whole.append(span)
    return whole


OPEN_ENDED = frozenset(("name", "address", "location", "organization", "title", "nationality"))
"""Kinds whose ends no pattern or checksum knows."""


def add_extended(taken: list[Span], found: Iterable[Span], closed: Iterable[tuple[int, int]], text: str) -> None:
    """As `add_cut`, but a find of the same kind is made longer rather than left in two pieces; nothing gets shorter."""
    walls = list(closed)
    for span in found:
        touching = [one for one in taken if one.start < span.end and span.start < one.end]
        start, end = min(one.start for one in [*touching, span]), max(one.end for one in [*touching, span])
        shut = any(low < end and start < high for low, high in walls)
        if any(one.start <= span.start and span.end <= one.end for one in touching):
            continue  # all of it is found already
        if touching and not shut and all(one.kind == span.kind and one.kind in OPEN_ENDED for one in touching):
            taken[:] = [one for one in taken if one not in touching]
            taken.append(Span(start, end, span.kind, span.detector))
        else:
            add_cut(taken, [span], walls, text)
