"""Markdown: a row is a paragraph, list, table or block of code, under the heading that it stands under."""

from __future__ import annotations

from collections.abc import Iterator

from luthier.data.document import looked, paragraphs, part_rows
from luthier.data.read import Fault, Row
from luthier.data.source import Source
from luthier.data.text_file import bounded_lines


def look(source: Source, start: str) -> Source:
    """Find the first paragraph."""
    return looked(source, read(source))


def read(source: Source) -> Iterator[Row | Fault]:
    """All paragraphs."""
    with source.open_text() as text:
        yield from part_rows(paragraphs(bounded_lines(source.path, text), heading_of=True))
