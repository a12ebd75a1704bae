"""CSV and its relatives: the delimiter is detected, quoted cells may hold line breaks."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from luthier.data.read import Fault, Row, bad_text
from luthier.data.source import HEAD_CHARS, Source, named_columns
from luthier.data.text_file import MOST_ROW_CHARS
from luthier.errors import DataError

DELIMITERS = (",", ";", "\t", "|")

MOST_CELL_CHARS = 10_000_000
"""A cell that is longer is taken for a quote that nobody closed."""


class _Lines:
    """The lines of a text, remembering those of the current row and whether the end was reached."""

    def __init__(self, text: io.TextIOBase) -> None:
        self._read = text.readline
        self._chars = 0
        self.row: list[str] = []
        self.ended = False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._read(MOST_ROW_CHARS)
        if not line:
            self.ended = True
            raise StopIteration
        self._chars += len(line)
        if self._chars >= MOST_ROW_CHARS:
            raise csv.Error("the row is too long")
        self.row.append(line)
        return line

    def next_row(self) -> None:
        self.row.clear()
        self._chars = 0


def look(source: Source, start: str) -> Source:
    """Find the delimiter and read the header."""
    delimiter = _delimiter(start)
    with source.open_text() as text:
        lines = _Lines(text)
        reader = csv.reader(lines, delimiter=delimiter)
        header: list[str] = []
        first = 1
        try:
            while not header:
                first = reader.line_num + 1
                header = _next_cells(reader)
                lines.next_row()
            has_rows = any(line.strip() for line in iter(lambda: text.readline(HEAD_CHARS), ""))
        except StopIteration:
            header, has_rows = [], False
        except csv.Error as error:
            raise _cell_too_long(source.path, first) from error
    columns = named_columns(source, header)
    if not has_rows:
        raise DataError(f"{source.path} holds a header and no rows", way_out="give a file with rows")
    return replace(source, delimiter=delimiter, columns=columns)


def read(source: Source) -> Iterator[Row | Fault]:
    """All rows after the header."""
    width = len(source.columns)
    with source.open_text() as text:
        lines = _Lines(text)
        reader = csv.reader(lines, delimiter=source.delimiter)
        header_seen = False
        while True:
            lines.next_row()
            start = reader.line_num + 1
            try:
                cells = _next_cells(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise _cell_too_long(source.path, start) from error
            if lines.ended:  # only a row inside quotes asks for more; it has swallowed every row after it
                raise DataError(
                    f"{source.path}:{start}: a quote opens in this row and is never closed",
                    way_out="close the quote, or double the quotes inside the cell",
                )
            if not cells:
                continue
            if not header_seen:
                header_seen = True
            elif len(cells) != width:
                detail = f"{len(cells)} cells, the header has {width}"
                yield Fault(start, "wrong_cell_count", detail, text="".join(lines.row))
            elif (bad := bad_text(lines.row)) is not None:
                yield Fault(start, *bad, text="".join(lines.row))
            else:
                yield Row(start, dict(zip(source.columns, cells, strict=True)))


def _cell_too_long(path: Path, line: int) -> DataError:
    """Going on would read the rest of the cell as rows."""
    return DataError(
        f"{path}:{line}: a cell in the row that starts here has more than {MOST_CELL_CHARS:,} characters",
        way_out="close the quote that opens in this row, or shorten the cell",
    )


def _next_cells(reader: Iterator[list[str]]) -> list[str]:
    """The next row, with cells of up to `MOST_CELL_CHARS`; the module's own limit stays as it was."""
    before = csv.field_size_limit(MOST_CELL_CHARS)
    try:
        return next(reader)
    finally:
        csv.field_size_limit(before)


def looks_like_table(start: str) -> bool:
    """Whether nearly all rows have as many cells as the first, and more than one; and no blank line stands between."""
    lines = start.replace("\r", "").strip("\n")
    return (
        "\n" in lines
        and "\n\n" not in lines
        and max(_agreement(start, delimiter) for delimiter in DELIMITERS) >= (0.9, 2)
    )


def _delimiter(start: str) -> str:
    """The delimiter under which most rows have as many cells as the header; ',' where the header is one cell."""
    return max(DELIMITERS, key=lambda delimiter: _agreement(start, delimiter))


def _agreement(start: str, delimiter: str) -> tuple[float, int]:
    """Share of rows that have as many cells as the first, and how many those are; zeros where it is one cell."""
    rows = [cells for cells in _parse(start, delimiter) if cells]
    if not rows or len(rows[0]) < 2:
        return 0.0, 0
    rest = rows[1:-1] if len(start) >= HEAD_CHARS else rows[1:]  # the last row may be cut off
    same = sum(len(cells) == len(rows[0]) for cells in rest) / len(rest) if rest else 1.0
    return same, len(rows[0])


def _parse(start: str, delimiter: str) -> list[list[str]]:
    rows: list[list[str]] = []
    try:
        rows.extend(csv.reader(io.StringIO(start, newline=""), delimiter=delimiter))
    except csv.Error:
        return rows  # what was read so far is enough to choose; the fault itself is found again, with its line
    return rows
