"""What kind of file this is: format, compression, encoding, delimiter, header. File faults are found before any row."""

from __future__ import annotations

import importlib
import io
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from luthier.data import text_file
from luthier.data.privacy import find
from luthier.errors import DataError
from luthier.spec.plugins import READERS
from luthier.store.files import sha256_file, sha256_json

if TYPE_CHECKING:
    from luthier.data.read import Fault, Row

HEAD_CHARS = 1 << 16
_MOST_NAME_CHARS = 100
_FIRST_OBJECT = re.compile(r"\[\s*[{\]]")


@dataclass(frozen=True)
class Source:
    """A file that can be read, and how."""

    path: Path
    format: str
    """A name of the readers table."""
    compression: text_file.Compression = ""
    encoding: str = ""
    """'utf-8', 'utf-8-sig', 'utf-16' or 'cp1252'; '' for what is no text."""
    delimiter: str = ""
    """'' unless CSV."""
    columns: tuple[str, ...] = ()
    """The header; empty for JSON, whose rows name their own."""
    sheet: str = ""
    """Of a workbook."""
    query: str = ""
    """Of a database."""
    parts: tuple[Source, ...] = ()
    """The files of a folder, in order."""

    def encoding_of(self, file: str) -> str:
        """Of a file of a folder; of the file itself for ''."""
        return next((part.encoding for part in self.parts if part.path == self.path / file), self.encoding)

    def open_text(self) -> io.TextIOWrapper:
        """The decoded file."""
        return text_file.open_text(self.path, self.compression, self.encoding)


class Reader(Protocol):
    """What a module of `luthier.data.readers` offers."""

    def look(self, source: Source, start: str) -> Source:
        """Fill in what is known before the first row.

        Args:
            source: path, format, options, and for text its compression and encoding.
            start: the first characters of a text.

        Raises:
            DataError: the file as a whole cannot be used.
        """

    def read(self, source: Source) -> Iterator[Row | Fault]:
        """All rows in order, in bounded memory."""


def reader_of(format: str) -> Reader:
    """The module that reads a format of the table."""
    return cast(Reader, importlib.import_module(f"luthier.data.readers.{READERS.get(format).name}"))


def open_source(path: Path, *, format: str | None = None, sheet: str | None = None, query: str | None = None) -> Source:
    """Find out how `path` is to be read.

    Args:
        path: a file of a known format, or a folder of such files; text may be compressed (.gz, .zst).
        format: a name of the readers table; None detects it.
        sheet: of a workbook; None takes the first that is not empty.
        query: of a database; None takes its only table.

    Raises:
        DataError: missing, empty, binary, truncated, neither UTF-8 nor UTF-16 nor Windows-1252, a header that is alone,
            empty or ambiguous, an option that the format does not have; and what the format's reader says.
    """
    if format is not None and format not in READERS.names():
        raise DataError(f"format {format!r} is unknown", way_out=f"known: {', '.join(READERS.names())}")
    if not path.exists():
        raise DataError(f"{path} does not exist", way_out=_nearby(path))
    if path.is_dir() != (format == "folder" if format else path.is_dir()):
        found = "a folder" if path.is_dir() else "a file"
        raise DataError(f"{path} is {found}, not {format}", way_out="leave data.train[0].format out")
    try:
        source, start = _begin(path, format)
        _refuse_foreign_options(source, {"sheet": sheet, "query": query})
        return reader_of(source.format).look(replace(source, sheet=sheet or "", query=query or ""), start)
    except PermissionError as error:
        raise DataError(f"{path} may not be read", way_out="change its permissions") from error


def fingerprint(path: Path) -> str:
    """Hash of a file, or of the names and hashes of the files that a folder is read from."""
    if not path.is_dir():
        return sha256_file(path)
    parts = open_source(path).parts
    return sha256_json({part.path.relative_to(path).as_posix(): sha256_file(part.path) for part in parts})


def num_bytes(path: Path) -> int:
    """Size of a file, or of the files of a folder."""
    return sum(part.path.stat().st_size for part in open_source(path).parts) if path.is_dir() else path.stat().st_size


def _begin(path: Path, format: str | None) -> tuple[Source, str]:
    """The format, and for text its encoding and first characters."""
    if path.is_dir():
        return Source(path, "folder"), ""
    with path.open("rb") as file:
        head = file.read(16)
    known = format or _binary_format(path, head)
    if known is not None and not READERS.get(known).is_text:
        if not head:
            raise DataError(f"{path} is empty", way_out="give a file with rows")
        return Source(path, known), ""
    packed = text_file.compression(head)
    source = Source(path, "", packed, text_file.detect_encoding(path, packed))
    with source.open_text() as text:
        start = text.read(HEAD_CHARS)
    if not start.strip("\ufeff \t\r\n"):
        raise DataError(f"{path} is empty", way_out="give a file with rows")
    return replace(source, format=known or _text_format(path, start)), start


def _binary_format(path: Path, head: bytes) -> str | None:
    """By what the file begins with; by its name only where that says nothing (an Arrow stream)."""
    others = [facts for facts in READERS.entries().values() if not facts.is_text]
    alike = [facts for facts in others if head.startswith(facts.magic)]
    if alike:
        named = [facts.name for facts in alike if path.name.lower().endswith(facts.suffixes)]
        holding = [facts.name for facts in alike if facts.holds and _holds(path, facts.holds)]
        return [*named, *holding, alike[-1].name][0]
    if head.startswith(b"\xff\xff\xff\xff"):
        return next((facts.name for facts in others if path.name.lower().endswith(facts.suffixes)), None)
    return None


def _holds(path: Path, part: str) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return part in archive.namelist()
    except PermissionError:
        raise
    except (zipfile.BadZipFile, ValueError, RuntimeError, OSError):  # whoever reads it says what is wrong with it
        return False


def _text_format(path: Path, start: str) -> str:
    from luthier.data.readers.csv import looks_like_table

    name = path.name.lower()
    for packed in text_file.SUFFIXES:
        name = name.removesuffix(packed)
    text = start.lstrip("\ufeff \t\r\n")
    suffix = Path(name).suffix
    named = next(
        (facts.name for facts in READERS.entries().values() if facts.is_text and suffix in facts.suffixes), None
    )
    if named == "csv" or (named == "jsonl" and not _FIRST_OBJECT.match(text)):
        return named
    if _FIRST_OBJECT.match(text) or (named == "json" and not text.startswith("{")):
        return "json"
    if text.startswith("{") and named in (None, "json", "jsonl", "text"):
        return "json" if named == "json" and not _is_object_a_line(text) else "jsonl"
    if named == "text":  # many exports are tables called '.txt'
        return "csv" if looks_like_table(start) else "text"
    return named or "csv"


def _is_object_a_line(text: str) -> bool:
    """Whether the first line is an object by itself; '.json' is the name of both kinds of file."""
    first, _, rest = text.partition("\n")
    return first.rstrip().endswith("}") and rest.lstrip().startswith("{")


def _refuse_foreign_options(source: Source, options: dict[str, str | None]) -> None:
    for name, value in options.items():
        if value is not None and name not in READERS.get(source.format).options:
            fitting = [facts.name for facts in READERS.entries().values() if name in facts.options]
            raise DataError(
                f"{source.path} is {source.format}: data.train[0].{name} is for {', '.join(fitting)}",
                way_out=f"leave data.train[0].{name} out",
            )


def _nearby(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist either; paths in a recipe are relative to the recipe"
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))[:8]
    return f"there is: {', '.join(names)}" if names else "the folder is empty"


# --- what readers share -----------------------------------------------------------------------------------------------


def named_columns(source: Source, header: list[str], *, where: str = "line") -> tuple[str, ...]:
    """The names in a header row, checked; a column without one is called by its number.

    Raises:
        DataError: no name at all, one that stands twice, or cells that look like data.
    """
    _refuse_data_as_header(source.path, header)
    columns = tuple(name.strip() or f"column_{index + 1}" for index, name in enumerate(header))
    refuse_twice(source.path, columns)
    if not any(name.strip() for name in header):
        raise DataError(f"{source.path}: the first {where} names no columns", way_out=f"write a header {where}")
    return columns


def refuse_twice(path: Path, columns: tuple[str, ...]) -> None:
    """Stop where two columns have one name."""
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        names = ", ".join(map(repr, twice))
        raise DataError(f"{path}: the header names {names} twice", way_out="rename one of them")


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
