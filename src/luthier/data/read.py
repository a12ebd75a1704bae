"""Rows of a CSV, JSON lines or Parquet file, each with the line where it starts; a faulty row becomes a `Fault`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.data.source import Source, cell_too_long, next_cells, open_source
from luthier.errors import DataError

_MANY_ROWS = 8192


@dataclass(frozen=True, slots=True)
class Row:
    """One row."""

    line: int
    """1-based line of the file where the row starts; row number for Parquet."""
    values: dict[str, object]
    """Column -> cell; text from CSV, what JSON or Arrow hold otherwise."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that cannot be read."""

    line: int
    reason: str
    """A short word that counts are kept under, e.g. 'wrong_cell_count'."""
    detail: str
    """What was found, without any content of the row."""


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
    for item in _READERS[source.format](source):
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


class _Lines:
    """The lines of a text, remembering those of the current row and whether the end was reached."""

    def __init__(self, text: Iterator[str]) -> None:
        self._text = text
        self.row: list[str] = []
        self.ended = False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        try:
            line = next(self._text)
        except StopIteration:
            self.ended = True
            raise
        self.row.append(line)
        return line


def _csv(source: Source) -> Iterator[Row | Fault]:
    width = len(source.columns)
    with source.open_text() as text:
        lines = _Lines(iter(text))
        reader = csv.reader(lines, delimiter=source.delimiter)
        header_seen = False
        while True:
            lines.row.clear()
            start = reader.line_num + 1
            try:
                cells = next_cells(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise cell_too_long(source.path, start) from error
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
                yield Fault(start, "wrong_cell_count", f"{len(cells)} cells, the header has {width}")
            elif (bad := _bad_text(lines.row)) is not None:
                yield Fault(start, *bad)
            else:
                yield Row(start, dict(zip(source.columns, cells, strict=True)))


def _bad_text(parts: list[str]) -> tuple[str, str] | None:
    for part in parts:
        if "\0" in part:
            return "nul_character", "the row holds a NUL character"
        if not part.isascii() and (stray := next((char for char in part if "\ud800" <= char <= "\udfff"), None)):
            byte = f"byte 0x{ord(stray) - 0xDC00:02X}" if "\udc80" <= stray <= "\udcff" else "a lone surrogate"
            return "undecodable", f"{byte} is not UTF-8"
    return None


def _jsonl(source: Source) -> Iterator[Row | Fault]:
    with source.open_text() as text:
        for number, line in enumerate(text, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                bad = _bad_text([line])
                yield Fault(number, *bad) if bad else Fault(number, "invalid_json", _json_fault(error))
                continue
            except RecursionError:
                yield Fault(number, "invalid_json", "nested too deeply")
                continue
            if not isinstance(value, dict):
                yield Fault(number, "not_an_object", f"found {type(value).__name__}")
                continue
            bad = _bad_text([line]) or (_bad_text(list(_texts(value))) if "\\u" in line else None)
            yield Fault(number, *bad) if bad else Row(number, value)


def _json_fault(error: ValueError) -> str:
    """What is wrong, without the text: JSON's own message, or the limit on the digits of an integer."""
    return f"{error.msg} at character {error.colno}" if isinstance(error, json.JSONDecodeError) else "too long a number"


def _texts(value: object) -> Iterator[str]:
    """Every text inside a JSON value."""
    stack = [value]
    while stack:
        one = stack.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            stack += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            stack += one


def _parquet(source: Source) -> Iterator[Row | Fault]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(source.path) as file:
            for batch in file.iter_batches(batch_size=_MANY_ROWS):
                values: list[dict[str, Any]] = batch.to_pylist()
                for row in values:
                    number += 1
                    bad = _bad_text([text for text in row.values() if isinstance(text, str)])
                    yield Fault(number, *bad) if bad else Row(number, row)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{source.path}: damaged after row {number}: {error}", way_out="fetch or write it again"
        ) from error


_READERS = {"csv": _csv, "jsonl": _jsonl, "parquet": _parquet}
