"""Local copies of what is not on this machine: kept by content in LUTHIER_HOME/data, readable by their owner only."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from luthier.errors import DataError
from luthier.store.files import beside, disk_errors, sha256_json, write_atomic
from luthier.store.home import home

Write = Callable[[IO[bytes]], None]
"""Writes the bytes of a file into what it is given."""


@dataclass(frozen=True)
class Copy:
    """What was fetched."""

    path: Path
    """The local file or folder."""
    version: str = ""
    """What its place calls the content: 'commit ...' of a hub, the entity tag of a store; '' where it says nothing."""


def known_copy(url: str, version: str) -> Path | None:
    """The copy that was made of this version before."""
    index = _index(url, version)
    if not index.is_file():
        return None
    path: Path = home() / "data" / str(json.loads(index.read_text(encoding="utf-8")))
    return path if path.exists() else None


def remember(url: str, version: str, path: Path) -> None:
    """So that `known_copy` finds it; neither URL nor version is written down."""
    write_atomic(_index(url, version), json.dumps(path.relative_to(home() / "data").as_posix()))


def keep_file(name: str, write: Write) -> Path:
    """Write a file, and put it where its hash says."""
    folder = _folder()
    temporary = beside(folder / name, "tmp")
    try:
        sha256 = _written(temporary, write)
        final: Path = folder / sha256 / name
        with disk_errors(final):
            final.parent.mkdir(mode=0o700, exist_ok=True)
            temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)
    return final


def keep_folder(name: str, files: Mapping[str, Write]) -> Path:
    """Write a folder, and put it where the hashes of its files say.

    Args:
        name: of the folder.
        files: path in the folder -> what writes it.
    """
    folder = _folder()
    temporary = Path(tempfile.mkdtemp(prefix=".folder-", dir=folder))
    try:
        hashes = {}
        for relative, write in files.items():
            place = temporary / relative
            with disk_errors(place):
                place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            hashes[relative] = _written(place, write)
        final: Path = folder / sha256_json(hashes) / name
        with disk_errors(final):
            final.parent.mkdir(mode=0o700, exist_ok=True)
            if not final.exists():
                temporary.replace(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def safe_name(named: str, relative: str) -> str:
    """A path in a folder, as it stands in a store: a key may be any text, '../' included.

    Raises:
        DataError: it would lead out of the folder.
    """
    parts = relative.split("/")
    if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        raise DataError(
            f"{named}: it holds a name that leads elsewhere: {relative[:100]!r}", way_out="rename it in the store"
        )
    return PurePosixPath(*parts).as_posix()


def _folder() -> Path:
    folder = home() / "data"
    with disk_errors(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _index(url: str, version: str) -> Path:
    return _folder() / f"{hashlib.sha256(f'{url} {version}'.encode()).hexdigest()}.json"


class _Hashed:
    """A file that is hashed as it is written."""

    def __init__(self, path: Path, out: IO[bytes], digest: Any) -> None:
        self._path, self._out, self._digest = path, out, digest

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        with disk_errors(self._path):  # here and not around it all: what a store says is no matter of this disk
            return self._out.write(data)


def _written(path: Path, write: Write) -> str:
    digest = hashlib.sha256()
    with disk_errors(path):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as out:
        write(cast(IO[bytes], _Hashed(path, out, digest)))
        with disk_errors(path):
            out.flush()
            os.fsync(out.fileno())
    return digest.hexdigest()
