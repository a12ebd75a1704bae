"""The user's own annotated sample: JSON lines of a text and the spans in it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from luthier.data.privacy.features import Word
from luthier.data.privacy.spans import PLACEHOLDERS, Span
from luthier.data.privacy.tagger import Example, Tagger, train
from luthier.errors import DataError

KIND_OF_TYPE = {
    "person": "name", "per": "name", "name": "name", "street_address": "address", "gpe": "location", "loc": "location",
    "city": "location", "country": "location", "org": "organization", "company": "organization",
    "credit_card": "card", "date_time": "date", "phone_number": "phone", "nrp": "nationality",
    "email_address": "email", "zip_code": "postcode", "zip": "postcode", "domain_name": "url", "iban_code": "iban",
    "us_ssn": "ssn", "ip_address": "ipv4", "us_driver_license": "driver_license",
}  # fmt: skip
"""Usual names of types -> our kinds; the others keep their own."""

_WAY_OUT = 'give JSON lines like {"text": "...", "spans": [{"start": 0, "end": 3, "type": "PERSON"}]}'
_FEWEST = 20
_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,40}")


def read_annotations(path: Path) -> list[tuple[str, list[Span]]]:
    """Texts with the spans that are right.

    Raises:
        DataError: the file is missing, a line is not an annotated text, or there are too few to learn from.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing", way_out="correct data.privacy.annotations")
    sample = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                sample.append(_annotated(line, f"{path}:{number}"))
    if len(sample) < _FEWEST or not any(spans for _, spans in sample):
        raise DataError(
            f"{path} has {len(sample)} annotated texts with {sum(len(spans) for _, spans in sample)} spans",
            way_out=f"annotate at least {_FEWEST} texts, or take data.privacy.profile: balanced",
        )
    return sample


def learn(path: Path, look: Callable[[str], tuple[Sequence[Span], Sequence[Word]]]) -> Tagger:
    """Train a tagger on the sample beside what the other detectors find in it, see `profiles.teachers`."""
    return train([Example(text, spans, *look(text)) for text, spans in read_annotations(path)])


def _annotated(line: bytes, place: str) -> tuple[str, list[Span]]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is not JSON", way_out=_WAY_OUT) from error
    if not isinstance(row, dict) or not isinstance(row.get("text"), str) or not isinstance(row.get("spans"), list):
        raise DataError(f"{place} has no 'text' with 'spans'", way_out=_WAY_OUT)
    spans = sorted((_span(span, len(row["text"]), place) for span in row["spans"]), key=lambda span: span.start)
    for span, later in pairwise(spans):
        if later.start < span.end:
            raise DataError(
                f"{place} has overlapping spans, {span.start} to {span.end} and {later.start} to {later.end}",
                way_out="mark each character once",
            )
    return row["text"], spans


def _span(span: object, length: int, place: str) -> Span:
    values = span if isinstance(span, dict) else {}
    start, end, kind = values.get("start"), values.get("end"), values.get("type")
    if (
        not (isinstance(start, int) and isinstance(end, int) and isinstance(kind, str))
        or not 0 <= start < end <= length
        or not _TYPE.fullmatch(kind)
    ):
        raise DataError(f"{place} has a span that is not a piece of its text with a type", way_out=_WAY_OUT)
    low = kind.lower()
    return Span(start, end, low if low in PLACEHOLDERS else KIND_OF_TYPE.get(low, low), "annotation")
