"""Text files: compression, encoding, and lines of bounded length. A file is read once to its end, in pieces, so that a
truncated archive or a wrong encoding is known before the first row.
"""

from __future__ import annotations

import codecs
import gzip
import io
import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

from luthier.errors import DataError
from luthier.spec.plugins import READERS

Compression = Literal["", "gzip", "zstd"]
COMPRESSIONS: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
SUFFIXES = (".gz", ".zst")

MOST_ROW_CHARS = 1 << 26
"""A row that is longer is not held in memory."""

_CHUNK = 1 << 20
_AS_TEXT = "export it as CSV (UTF-8), JSON lines or Parquet"
_MAGIC = {
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"\xd0\xcf\x11\xe0": "an old Office file (.xls, .doc) or an encrypted one",
    b"FEA1": "a Feather file of version 1",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x7fELF": "a program",
    b"\x89PNG": "an image",
    b"GGUF": "a GGUF model",
}


def compression(head: bytes) -> Compression:
    """How a file that begins with `head` is compressed."""
    return next((name for magic, name in COMPRESSIONS.items() if head.startswith(magic)), "")


def open_bytes(path: Path, packed: Compression) -> BinaryIO:
    """The file, unpacked."""
    if packed == "gzip":
        return cast(BinaryIO, gzip.open(path))
    if packed == "zstd":
        import pyarrow as pa

        return cast(BinaryIO, pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def open_text(path: Path, packed: Compression, encoding: str) -> io.TextIOWrapper:
    """The decoded file; bytes that are no UTF-8 become lone surrogates, which the row readers set aside."""
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    return io.TextIOWrapper(open_bytes(path, packed), encoding=encoding, errors=errors, newline="")


def short_lines(text: io.TextIOWrapper) -> Iterator[tuple[str, int]]:
    """Each line with its length; a line above `MOST_ROW_CHARS` comes as its beginning."""
    while line := text.readline(MOST_ROW_CHARS):
        length = len(line)
        if length == MOST_ROW_CHARS:
            while line[-1] not in "\r\n" and (rest := text.readline(_CHUNK)):
                length += len(rest)
                if rest[-1] in "\r\n":
                    break
        yield line, length


def bounded_lines(path: Path, text: io.TextIOWrapper) -> Iterator[str]:
    """Each line of a running text.

    Raises:
        DataError: one is longer than can be held.
    """
    for number, (line, length) in enumerate(short_lines(text), start=1):
        if length > MOST_ROW_CHARS:
            raise DataError(f"{path}:{number}: a line of {length:,} characters", way_out="break it into paragraphs")
        yield line


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


def detect_encoding(path: Path, packed: Compression) -> str:
    """'utf-8', 'utf-8-sig', 'utf-16' or 'cp1252'.

    Raises:
        DataError: binary, truncated, or in none of these.
    """
    chunks = _chunks(path, packed)
    head = next(chunks, b"")
    for magic, name in _binaries().items():
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


def _binaries() -> dict[bytes, str]:
    """What text does not begin with: formats that are no text, archives, and what people mistake for data."""
    archives = {magic: f"a {name} archive" for magic, name in COMPRESSIONS.items()}
    return archives | {magic: one.summary for one in READERS.entries().values() for magic in one.magic} | _MAGIC


def _chunks(path: Path, packed: Compression) -> Iterator[bytes]:
    try:
        with open_bytes(path, packed) as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(path, "gzip", error) from error
    except OSError as error:
        if packed != "zstd" or isinstance(error, PermissionError):
            raise
        raise _damaged(path, packed, error) from error


def _damaged(path: Path, archive: str, error: Exception) -> DataError:
    return DataError(f"{path}: the {archive} archive is truncated or damaged: {error}", way_out="fetch it again")


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
