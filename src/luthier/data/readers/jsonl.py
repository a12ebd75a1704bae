"""JSON lines: a faulty line is a fault of its row."""

from __future__ import annotations

from collections.abc import Iterator

from luthier.data.json_values import parse_row
from luthier.data.read import Fault, Row
from luthier.data.source import Source
from luthier.data.text_file import MOST_ROW_CHARS, short_lines


def look(source: Source, start: str) -> Source:
    """There is no header."""
    return source


def read(source: Source) -> Iterator[Row | Fault]:
    """One row a line; blank lines are none."""
    with source.open_text() as text:
        for number, (line, length) in enumerate(short_lines(text), start=1):
            if length > MOST_ROW_CHARS:
                detail = f"{length:,} characters, at most {MOST_ROW_CHARS:,} are read"
                yield Fault(number, "too_long_a_line", detail, text=line[:1000])
            elif line and not line.isspace():
                yield parse_row(number, line)
