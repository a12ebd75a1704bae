"""Office files: zip archives of XML. Nothing is unpacked to disk, and what grows beyond bounds is refused unread."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from xml.etree import ElementTree
from xml.parsers import expat

from luthier.errors import DataError

_MOST_BYTES = 1 << 32
_MOST_IN_MEMORY = 1 << 28
_DEEPEST = 512
"""Elements in elements; a table in a table in a text box has some sixty."""
_PACKED_TEXT, _HIGHEST_RATIO = 1 << 26, 100
"""XML packs to a tenth or a thirtieth; what packs to less than a hundredth of 64 MiB and more is a bomb."""


@contextmanager
def opened(path: Path, what: str, *, in_memory: str = "") -> Iterator[zipfile.ZipFile]:
    """Open an archive.

    Args:
        path: of the file.
        what: it should be, e.g. 'an Excel workbook'.
        in_memory: a part that is held in memory as a whole.

    Raises:
        DataError: it is something else, damaged, encrypted, or grown out of bounds; when it is opened or later.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _refuse_bombs(path, archive, in_memory)
            yield archive
    except PermissionError:
        raise
    except (
        zipfile.BadZipFile, zlib.error, EOFError, ElementTree.ParseError, KeyError, IndexError, ValueError,
        OverflowError, RuntimeError, OSError,
    ) as error:  # fmt: skip
        problem = f"part {error} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{path} is a zip archive or {what}, and cannot be read as one: {problem}",
            way_out="save it again without a password, or export it as CSV (UTF-8) or plain text",
        ) from error


def elements(file: IO[bytes], name: str, inside: str = "") -> Iterator[ElementTree.Element]:
    """Each element of a name, forgotten once it has been handed on."""
    parent, depth = None, 0
    for event, element in ElementTree.iterparse(plain(file), events=("start", "end")):
        depth += 1 if event == "start" else -1
        if depth > _DEEPEST:  # each would be looked through by all that it lies in
            raise ValueError("elements are nested too deeply")
        if event == "start":
            parent = element if local_name(element) == inside else parent
        elif local_name(element) == name:
            yield element
            if parent is not None:
                parent.clear()


def plain(file: IO[bytes]) -> IO[bytes]:
    """The part, if it has no document type, whatever its encoding: that is where entities that grow are declared."""
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = _refuse_document_type
    parser.StartElementHandler = _begin
    try:
        while chunk := file.read(4096):
            parser.Parse(chunk)
    except (_Begun, expat.ExpatError):  # what is no XML is found again, by who reads it
        pass
    file.seek(0)
    return file


class _Begun(Exception):
    """The first element has been reached."""


def _begin(*_: object) -> None:
    raise _Begun


def _refuse_document_type(*_: object) -> None:
    raise ValueError("a part declares a document type")


def local_name(element: ElementTree.Element) -> str:
    """Without its namespace, of which there are two."""
    return str(element.tag).rpartition("}")[2]


def _refuse_bombs(path: Path, archive: zipfile.ZipFile, in_memory: str) -> None:
    infos = archive.infolist()
    for info in infos:
        too_packed = info.file_size > _PACKED_TEXT and info.file_size > _HIGHEST_RATIO * info.compress_size
        if too_packed or (info.filename == in_memory and info.file_size > _MOST_IN_MEMORY):
            raise _grown(path, info.file_size)
    if (total := sum(info.file_size for info in infos)) > _MOST_BYTES:
        raise _grown(path, total)


def _grown(path: Path, size: int) -> DataError:
    return DataError(
        f"{path} grows to {size:,} bytes when it is unpacked, which no honest document does",
        way_out="export it as CSV (UTF-8) or plain text",
    )
