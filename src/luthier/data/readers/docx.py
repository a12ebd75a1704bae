"""Word documents: a row is a paragraph or a row of a table, under the heading that it stands under."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree

from luthier.data.document import Part, looked, part_rows
from luthier.data.office import elements, local_name, opened
from luthier.data.read import Fault, Row
from luthier.data.source import Source

_PART = "word/document.xml"
_HEADING_STYLE = re.compile(r"heading\s*\d*|title|berschrift\s*\d*|titre\s*\d*", re.IGNORECASE)


def look(source: Source, start: str) -> Source:
    """Find the first paragraph."""
    return looked(source, read(source))


def read(source: Source) -> Iterator[Row | Fault]:
    """All paragraphs, numbered from 1; empty ones count."""
    yield from part_rows(_paragraphs(source))


def _paragraphs(source: Source) -> Iterator[Part]:
    heading = ""
    with opened(source.path, "a Word document") as archive, archive.open(_PART) as file:
        for number, element in enumerate(elements(file, "p", inside="body"), start=1):
            text = _text(element)
            if any(_HEADING_STYLE.search(style) for style in _styles(element)) and text.strip():
                heading = text.strip()
            else:
                yield number, heading, text


def _styles(element: ElementTree.Element) -> list[str]:
    return [
        value
        for part in element.iter()
        if local_name(part) == "pStyle"
        for key, value in part.items()
        if key.endswith("val")
    ]


def _text(element: ElementTree.Element) -> str:
    """Text as it stands after all tracked changes: what was deleted is `delText`."""
    pieces = []
    for part in element.iter():
        name = local_name(part)
        if name == "t":
            pieces.append(part.text or "")
        elif name in ("br", "cr"):
            pieces.append("\n")
        elif name == "tab":
            pieces.append("\t")
    return "".join(pieces)
