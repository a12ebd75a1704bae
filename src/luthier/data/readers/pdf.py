"""PDF: a row is a page, with the text that the file itself holds; a scan holds none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from luthier.data.document import Part, looked, part_rows
from luthier.data.read import Fault, Row
from luthier.data.source import Source
from luthier.errors import DataError, MissingExtra


def look(source: Source, start: str) -> Source:
    """Find the first page with text."""
    return looked(source, read(source))


def read(source: Source) -> Iterator[Row | Fault]:
    """All pages with text, by their numbers."""
    yield from part_rows(_pages(source))


def _pages(source: Source) -> Iterator[Part]:
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError as error:
        raise MissingExtra("pypdf", extra="documents", purpose="reading PDF files") from error
    number = 0
    try:
        with closing(PdfReader(source.path)) as reader:
            if reader.is_encrypted and not reader.decrypt(""):
                raise DataError(f"{source.path} is protected by a password", way_out="save it without one")
            for number, page in enumerate(reader.pages, start=1):
                yield number, "", page.extract_text()
    except (
        PyPdfError, ValueError, KeyError, IndexError, TypeError, AttributeError, OSError, RecursionError,
        ArithmeticError, AssertionError,
    ) as error:  # fmt: skip
        # A damaged file makes the parser fall over its own values.
        raise DataError(
            f"{source.path}: cannot be read as a PDF after page {number}: {type(error).__name__}",
            way_out="save it again, or export its text",
        ) from error
