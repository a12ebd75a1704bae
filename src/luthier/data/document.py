"""Documents as rows: one a part of the text, with the heading that it stands under. Column `text` is what is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from luthier.data.read import Fault, Row, bad_text
from luthier.data.source import Source
from luthier.errors import DataError

COLUMNS = ("text", "heading")

Part = tuple[int, str, str]
"""Line (or paragraph, or page) where it starts, heading, text."""


def part_rows(parts: Iterable[Part]) -> Iterator[Row | Fault]:
    """The parts that hold a text, as rows."""
    for line, heading, text in parts:
        if text.strip():
            bad = bad_text((heading, text))
            yield Fault(line, *bad, text=text) if bad else Row(line, {"text": text.strip(), "heading": heading})


def looked(source: Source, rows: Iterator[Row | Fault]) -> Source:
    """The source with its columns.

    Raises:
        DataError: there is no text in it.
    """
    if next(rows, None) is None:
        raise DataError(f"{source.path} holds no text", way_out="give a document with text; scans need OCR first")
    return replace(source, columns=COLUMNS)


MOST_CHARS = 1 << 20
"""Of a part; what goes on beyond, a file without blank lines for instance, is the next part."""


def paragraphs(lines: Iterable[str], *, heading_of: bool) -> Iterator[Part]:
    """Runs of lines between blank ones.

    Args:
        lines: of a text.
        heading_of: whether lines such as '## Returns' are headings (outside of fenced code) rather than text.
    """
    heading, start, held, chars, fenced = "", 0, list[str](), 0, False
    for number, line in enumerate(lines, start=1):
        text = line.rstrip("\r\n")
        fenced ^= heading_of and text.lstrip().startswith(("```", "~~~"))
        level = len(text) - len(text.lstrip("#"))
        is_heading = heading_of and not fenced and 1 <= level <= 6 and text[level : level + 1] in (" ", "\t")
        ends = is_heading or (not text.strip() and not fenced)
        if held and (ends or chars > MOST_CHARS):
            yield start, heading, "\n".join(held)
            held, chars = [], 0
        if ends:
            heading = text.strip("# \t") if is_heading else heading
            continue
        start = start if held else number
        held.append(text)
        chars += len(text)
    if held:
        yield start, heading, "\n".join(held)
