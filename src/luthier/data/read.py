"""Rows of a data file, each with the line where it starts; a faulty row becomes a `Fault`. Formats: `data.readers`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from luthier.data.source import Source, open_source, reader_of
from luthier.errors import DataError


@dataclass(frozen=True, slots=True)
class Row:
    """One row."""

    line: int
    """1-based line of the file where the row starts; row number where there are no lines (Parquet, databases)."""
    values: dict[str, object]
    """Column -> cell; text from CSV, what JSON or Arrow hold otherwise."""
    file: str = ""
    """Of a folder, the file in it; '' otherwise."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that cannot be read."""

    line: int
    reason: str
    """A short word that counts are kept under, e.g. 'wrong_cell_count'."""
    detail: str
    """What was found, without any content of the row."""
    file: str = ""
    """Of a folder, the file in it; '' otherwise."""
    text: str = field(default="", compare=False, repr=False)
    """The row itself, bytes that are no UTF-8 as lone surrogates; for the quarantine only, never to be shown."""


def rows(path: Path, *, format: str | None = None) -> Iterator[Row | Fault]:
    """All rows of `path`, in order.

    Raises:
        DataError: the file as a whole cannot be used: see `open_source`; or a quote is never closed, or every row is
            faulty.
    """
    return read_source(open_source(path, format=format))


def read_source(source: Source) -> Iterator[Row | Fault]:
    """All rows of a source, in order; see `rows`."""
    first_fault: Fault | None = None
    good = False
    for item in reader_of(source.format).read(source):
        if isinstance(item, Row):
            good = True
        elif first_fault is None:
            first_fault = item
        yield item
    if first_fault is not None and not good:
        raise DataError(
            f"{source.path}: no row can be read as {source.format}; "
            f"line {first_fault.line}: {first_fault.reason}, {first_fault.detail}",
            way_out="check the file, or set data.train[0].format to what it is",
        )


def bad_text(parts: Iterable[str]) -> tuple[str, str] | None:
    """Why one of the texts is none: reason and detail; None where all are fine."""
    for part in parts:
        if "\0" in part:
            return "nul_character", "the row holds a NUL character"
        if not part.isascii() and (stray := next((char for char in part if "\ud800" <= char <= "\udfff"), None)):
            byte = f"byte 0x{ord(stray) - 0xDC00:02X}" if "\udc80" <= stray <= "\udcff" else "a lone surrogate"
            return "undecodable", f"{byte} is not UTF-8"
    return None
