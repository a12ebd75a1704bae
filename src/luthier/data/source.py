"""What kind of file this is: format, compression, encoding, delimiter, header. File faults are found before any row.

A text file is read once to its end, in pieces, so that a truncated archive or a wrong encoding is known at the start.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from luthier.data.privacy import find
from luthier.errors import DataError

Format = Literal["csv", "jsonl", "parquet"]
DELIMITERS = (",", ";", "\t", "|")

MOST_CELL_CHARS = 10_000_000
"""A CSV cell that is longer is taken for a quote that nobody closed."""

_MOST_NAME_CHARS = 100
_CHUNK = 1 << 20
_HEAD_CHARS = 1 << 16
_AS_TEXT = "export it as CSV (UTF-8), JSON lines or Parquet"
_MAGIC = {
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"\xd0\xcf\x11\xe0": "an old Office file (.xls, .doc)",
    b"%PDF": "a PDF",
    b"SQLite format 3": "an SQLite database",
    b"ARROW1": "an Arrow file",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstandard archive",
    b"\x7fELF": "a program",
    b"\x89PNG": "an image",
    b"GGUF": "a GGUF model",
}
_SUFFIXES: dict[str, Format] = {
    ".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A file that can be read, and how."""

    path: Path
    format: Format
    compressed: bool
    encoding: str
    """'utf-8', 'utf-8-sig', 'utf-16' or 'cp1252'; '' for Parquet."""
    delimiter: str
    """'' unless CSV."""
    columns: tuple[str, ...]
    """The header; empty for JSON lines, whose rows name their own."""

    def open_text(self) -> io.TextIOWrapper:
        """The decoded file; bytes that are no UTF-8 become lone surrogates, which the row reader sets aside."""
        errors = "surrogateescape" if self.encoding.startswith("utf-8") else "strict"
        if self.compressed:
            return gzip.open(self.path, "rt", encoding=self.encoding, errors=errors, newline="")
        return self.path.open(encoding=self.encoding, errors=errors, newline="")


def open_source(path: Path, *, format: str | None = None) -> Source:
    """Find out how `path` is to be read.

    Args:
        path: a CSV, JSON lines or Parquet file; the first two may be gzipped.
        format: 'csv', 'jsonl' or 'parquet'; None detects it.

    Raises:
        DataError: missing, a folder, empty, binary, truncated, neither UTF-8 nor UTF-16 nor Windows-1252, or a header
            that is alone, empty or ambiguous.
    """
    if format is not None and format not in get_args(Format):
        raise DataError(f"format {format!r} is unknown", way_out=f"known: {', '.join(get_args(Format))}")
    if path.is_dir():
        raise DataError(f"{path} is a folder", way_out="give one file; join several with `cat`")
    if not path.exists():
        raise DataError(f"{path} does not exist", way_out=_nearby(path))
    try:
        with path.open("rb") as file:
            head = file.read(16)
        if head[:4] == b"PAR1" or format == "parquet":
            return _parquet(path)
        compressed = head[:2] == b"\x1f\x8b"
        source = Source(path, "csv", compressed, _encoding(path, compressed), "", ())
        with source.open_text() as text:
            start = text.read(_HEAD_CHARS)
    except PermissionError as error:
        raise DataError(f"{path} may not be read", way_out="change its permissions") from error
    if not start.strip("\ufeff \t\r\n"):
        raise DataError(f"{path} is empty", way_out="give a file with rows")
    if (format or _text_format(path, start)) == "jsonl":
        return replace(source, format="jsonl")
    return _with_header(source, start)


def _nearby(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist either; paths in a recipe are relative to the recipe"
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))[:8]
    return f"there is: {', '.join(names)}" if names else "the folder is empty"


def _text_format(path: Path, start: str) -> Format:
    name = path.name.lower().removesuffix(".gz")
    suffix = Path(name).suffix
    text = start.lstrip("\ufeff \t\r\n")
    if suffix in _SUFFIXES and _SUFFIXES[suffix] != "parquet":
        return _SUFFIXES[suffix]
    if text.startswith("[") and suffix == ".json":
        raise DataError(
            f"{path} is one JSON array, not one object a line", way_out="convert it: jq -c '.[]' FILE.json > FILE.jsonl"
        )
    return "jsonl" if text.startswith("{") else "csv"


# --- encoding ---------------------------------------------------------------------------------------------------------


@dataclass
class _Bytes:
    """Counts over all bytes of a file, from which its encoding follows."""

    total: int = 0
    control: int = 0
    """Bytes below 32 that text does not have; NUL among them."""
    high: int = 0
    """Bytes from 128 on."""
    broken: int = 0
    """Places that are not UTF-8."""
    undefined: int = 0
    """Bytes that Windows-1252 does not define."""


_CONTROL = bytes(value for value in range(32) if value not in b"\t\n\r\f\x0b\x1b\x1a")
_HIGH = bytes(range(128, 256))
_UNDEFINED = b"\x81\x8d\x8f\x90\x9d"


def _encoding(path: Path, compressed: bool) -> str:
    chunks = _chunks(path, compressed)
    head = next(chunks, b"")
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            raise DataError(f"{path} is {name}, not text", way_out=_AS_TEXT)
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        _check_utf16(path, head, chunks)
        return "utf-16"
    counts = _count(head, chunks)
    if counts.control > max(8, counts.total // 100):
        share = counts.control / counts.total
        raise DataError(f"{path} is binary: {share:.0%} of its bytes are control characters", way_out=_AS_TEXT)
    valid = counts.high - counts.broken  # bytes of other encodings hardly ever form UTF-8 by chance
    if valid > counts.broken or not counts.broken:  # stray bytes in a UTF-8 file are faults of their rows
        return "utf-8-sig" if head.startswith(codecs.BOM_UTF8) else "utf-8"
    if counts.undefined or counts.high > counts.total * 0.3:
        raise DataError(
            f"{path} is neither UTF-8 nor Windows-1252: {counts.broken} places are not UTF-8, "
            f"{counts.high} of {counts.total} bytes are not ASCII",
            way_out="convert it, e.g. iconv -f ENCODING -t UTF-8 FILE > NEW",
        )
    return "cp1252"


def _chunks(path: Path, compressed: bool) -> Iterator[bytes]:
    try:
        with gzip.open(path) if compressed else path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}: the gzip archive is truncated or damaged: {error}", way_out="fetch it again"
        ) from error


def _check_utf16(path: Path, head: bytes, chunks: Iterator[bytes]) -> None:
    decoder = codecs.getincrementaldecoder("utf-16")()
    try:
        decoder.decode(head)
        for chunk in chunks:
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} begins as UTF-16 and goes on as something else: {error.reason}",
                        way_out="save it as UTF-8") from error  # fmt: skip


def _count(head: bytes, chunks: Iterator[bytes]) -> _Bytes:
    counts = _Bytes()
    rest = b""
    for chunk in itertools.chain([head], chunks):
        counts.total += len(chunk)
        counts.control += len(chunk) - len(chunk.translate(None, _CONTROL))
        if chunk.isascii():
            counts.broken += len(rest) > 0
            rest = b""
            continue
        counts.high += len(chunk) - len(chunk.translate(None, _HIGH))
        counts.undefined += len(chunk) - len(chunk.translate(None, _UNDEFINED))
        broken, rest = _broken_places(rest + chunk)
        counts.broken += broken
    counts.broken += len(rest) > 0
    return counts


def _broken_places(data: bytes) -> tuple[int, bytes]:
    """How many places are not UTF-8, and the bytes at the end that may go on in the next piece."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    try:
        decoder.decode(data)
    except UnicodeDecodeError:
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        return sum("\udc80" <= char <= "\udcff" for char in decoder.decode(data)), decoder.getstate()[0]
    return 0, decoder.getstate()[0]


# --- CSV header -------------------------------------------------------------------------------------------------------


def _with_header(source: Source, start: str) -> Source:
    delimiter = _delimiter(start)
    with source.open_text() as text:
        reader = csv.reader(text, delimiter=delimiter)
        try:
            header: list[str] = []
            while not header:
                first = reader.line_num + 1
                header = next_cells(reader)
            has_rows = any(line.strip() for line in text)
        except StopIteration:
            header, has_rows = [], False
        except csv.Error as error:
            raise cell_too_long(source.path, first) from error
    _refuse_data_as_header(source.path, header)
    columns = tuple(name.strip() or f"column_{index + 1}" for index, name in enumerate(header))
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        names = ", ".join(map(repr, twice))
        raise DataError(f"{source.path}: the header names {names} twice", way_out="rename one of them")
    if not any(name.strip() for name in header):
        raise DataError(f"{source.path}: the first line names no columns", way_out="write a header line")
    if not has_rows:
        raise DataError(f"{source.path} holds a header and no rows", way_out="give a file with rows")
    return replace(source, delimiter=delimiter, columns=columns)


def cell_too_long(path: Path, line: int) -> DataError:
    """The error for a cell above `MOST_CELL_CHARS`; going on would read the rest of it as rows."""
    return DataError(
        f"{path}:{line}: a cell in the row that starts here has more than {MOST_CELL_CHARS:,} characters",
        way_out="close the quote that opens in this row, or shorten the cell",
    )


def _refuse_data_as_header(path: Path, header: list[str]) -> None:
    """A header that is none would turn the first row into column names, which are not looked at for personal data."""
    for number, name in enumerate(header, start=1):
        kinds = sorted({span.kind.replace("secret.", "secret: ") for span in find(name)})
        long = f"{len(name)} characters" if len(name.strip()) > _MOST_NAME_CHARS else ""
        if kinds or long:
            raise DataError(
                f"{path}: the first row looks like data: its cell {number} holds {', '.join(kinds) or long}",
                way_out="add a header row that names the columns",
            )


def next_cells(reader: Iterator[list[str]]) -> list[str]:
    """The next row of a CSV reader, with cells of up to `MOST_CELL_CHARS`; the module's own limit stays as it was."""
    before = csv.field_size_limit(MOST_CELL_CHARS)
    try:
        return next(reader)
    finally:
        csv.field_size_limit(before)


def _delimiter(start: str) -> str:
    """The delimiter under which most rows have as many cells as the header; ',' where the header is one cell."""

    def agreement(delimiter: str) -> tuple[float, int]:
        rows = [cells for cells in _parse(start, delimiter) if cells]
        if not rows or len(rows[0]) < 2:
            return 0.0, 0
        rest = rows[1:-1] if len(start) >= _HEAD_CHARS else rows[1:]  # the last row may be cut off
        same = sum(len(cells) == len(rows[0]) for cells in rest) / len(rest) if rest else 1.0
        return same, len(rows[0])

    return max(DELIMITERS, key=agreement)


def _parse(start: str, delimiter: str) -> list[list[str]]:
    rows: list[list[str]] = []
    try:
        rows.extend(csv.reader(io.StringIO(start, newline=""), delimiter=delimiter))
    except csv.Error:
        return rows  # what was read so far is enough to choose; the fault itself is found again, with its line
    return rows


def _parquet(path: Path) -> Source:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names, count = tuple(file.schema_arrow.names), file.metadata.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}", way_out="fetch or write it again") from error
    if not names:
        raise DataError(f"{path} has no columns", way_out="give a file with columns")
    if not count:
        raise DataError(f"{path} holds no rows", way_out="give a file with rows")
    if len(set(names)) < len(names):
        raise DataError(f"{path}: a column name stands twice: {', '.join(names)}", way_out="rename one of them")
    return Source(path, "parquet", False, "", "", names)
