"""Atomic writes and hashes: whenever a process is killed, a path holds its old content or its new one, never a part."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from luthier.errors import DiskFull, RunError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_REFUSED = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
)
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<pid>[0-9]+)-[0-9a-f]{8}\.(?P<kind>tmp|old)")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the file system says while `path` is written into our errors.

    Raises:
        DiskFull: no space, or the quota is used up.
        RunError: the place may not be written, or something else stands there.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(
                f"{path}: no space left on the disk",
                way_out="free some space and run the same command again; what was finished is kept",
            ) from error
        if error.errno in _REFUSED:
            raise RunError(
                f"{path}: cannot be written: {error.strerror}",
                way_out="choose another folder (--out, or LUTHIER_HOME for the cache) or change its permissions",
            ) from error
        raise


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write `data` (text as UTF-8) to `path` through a temporary name; the folder is made where it is missing.

    Raises:
        DiskFull: no space; `path` is as it was.
        RunError: the place may not be written.
    """
    with _fresh(path) as fd:
        write_all(fd, data.encode("utf-8") if isinstance(data, str) else data)


@contextmanager
def write_atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield an empty file; when the block ends well it becomes `path`, else it is removed. For what comes in pieces.

    Raises:
        DiskFull: no space; `path` is as it was.
        RunError: the place may not be written.
    """
    with _fresh(path) as fd, open(fd, "wb", closefd=False) as file:
        yield file


@contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """A name beside `path` for a file that is gone when the block ends; `recover` knows it should the process die."""
    temporary = beside(path, "tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _fresh(path: Path) -> Iterator[int]:
    temporary = beside(path, "tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                yield fd
                os.fsync(fd)
            finally:
                os.close(fd)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)


@contextmanager
def write_atomic_dir(final: Path) -> Iterator[Path]:
    """Yield an empty folder beside `final`; when the block ends well it becomes `final`, else it is removed.

    No system call that works everywhere swaps two folders, so an older `final` steps aside for an instant; killed in
    that instant, `recover` puts it back.

    Raises:
        DiskFull: no space; `final` is as it was.
        RunError: the place may not be written.
    """
    temporary = beside(final, "tmp")
    with disk_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.mkdir()
            yield temporary
            for path in [*temporary.rglob("*"), temporary]:
                sync(path)
            _replace_folder(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _replace_folder(temporary: Path, final: Path) -> None:
    """Move `temporary` to `final`, where another process may be doing the same."""
    aside = []
    while True:
        try:
            temporary.rename(final)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        with suppress(FileNotFoundError):  # the other process may have moved it already
            aside.append(final.rename(beside(final, "old")))
    sync(final.parent)
    for folder in aside:
        shutil.rmtree(folder, ignore_errors=True)


def recover(folder: Path) -> list[Path]:
    """Clear away what killed processes left under `folder`; call it while nobody else writes there.

    Unfinished writes are removed; a folder that stepped aside for one that never came is put back.

    Returns:
        The leftovers that were found.
    """
    found = []
    for path in sorted(folder.rglob(".*")):
        match = _LEFTOVER.fullmatch(path.name)
        if match is None or process_exists(int(match["pid"])) or not os.path.lexists(path):
            continue
        found.append(path)
        final = path.with_name(match["name"])
        if match["kind"] == "old" and not final.exists():
            path.rename(final)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return found


def beside(path: Path, kind: str) -> Path:
    """A fresh name in the folder of `path`, which `recover` knows; `kind` is 'tmp' or 'old'."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.{kind}")


def process_exists(pid: int) -> bool:
    """Whether a process of this machine has the id `pid`; not one that ended and whose end nobody has asked for yet."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists and is somebody else's
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except OSError:  # ended just now, or a system without such a file
        return not Path("/proc/self/stat").exists()
    return state not in "ZX"


def write_all(fd: int, data: bytes) -> None:
    """Write every byte; a plain `os.write` may stop half way when the disk fills up."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, have reached the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sha256_file(path: Path) -> str:
    """Hash of a file's content, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_files(folder: Path) -> dict[str, str]:
    """Hash of every file under `folder`: posix path relative to it -> hash, sorted by path."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: sha256_file(folder / name) for name in names}


def sha256_json(content: object) -> str:
    """Hash of JSON content; the order of keys does not count.

    Raises:
        TypeError: the content is not JSON.
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
