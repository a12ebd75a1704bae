"""Rows that are not on this machine: files behind s3://, gs:// and az://, and what a database gives for a query.

They are copied once, by content, to LUTHIER_HOME/data (readable by its owner only), and read from there ever after: a
run is repeated with the rows it was made with, and its stages need neither the network nor the password.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from luthier.errors import DataError, MissingExtra
from luthier.spec.load import with_environment
from luthier.store.files import beside, disk_errors, write_atomic
from luthier.store.home import home

_STORES = ("s3", "gs", "gcs", "az", "abfs", "abfss", "memory", "file")
_DRIVERS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs"}
_HERE = (None, "", "localhost", "127.0.0.1", "::1")
_CHUNK = 1 << 20
_ROWS_AT_ONCE = 1000


def fetch(named: str, *, query: str | None, offline: bool, environment: Mapping[str, str] = os.environ) -> Path | None:
    """The local copy of what a recipe names; None where it names a file of this machine.

    Args:
        named: as the recipe has it; `${NAME}` in a URL still stands for what the environment holds.
        query: of a database.
        offline: whether other machines may be reached.
        environment: where names are looked up.

    Raises:
        DataError: it cannot be reached or read; the message shows `named`, never what the environment holds.
        MissingExtra: what reads such a URL is not installed.
    """
    url = with_environment(named, environment)
    scheme, found, _ = url.partition("://")
    if not found:
        return None
    if scheme in _STORES:
        if query is not None:
            raise DataError(f"{named} is a file: data.train[0].query is for databases", way_out="leave the query out")
        return _fetch_file(named, url, scheme, offline=offline)
    if query is None:
        raise DataError(
            f"{named} is a database: it takes a query",
            way_out=f"set data.train[0].query, e.g. SELECT * FROM messages; URLs of files begin with one of: "
            f"{', '.join(_STORES)}; a test or validation split of a database is a part of the query's rows",
        )
    return _fetch_rows(named, url, query, offline=offline)


# --- files in object stores -------------------------------------------------------------------------------------------


def _fetch_file(named: str, url: str, scheme: str, *, offline: bool) -> Path:
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtra("fsspec", extra="cloud", purpose=f"reading {scheme}:// files") from error
    if offline and scheme in _DRIVERS:
        raise _offline(named)
    try:
        store, path = cast(tuple[Any, str], fsspec.url_to_fs(url))
        version = str(store.ukey(path))  # the entity tag, or size and time where the store has none
        index = home() / "data" / f"{hashlib.sha256(f'{url} {version}'.encode()).hexdigest()}.json"
        if index.is_file():
            known: Path = home() / "data" / str(json.loads(index.read_text()))
            if known.is_file():
                return known

        def copy(out: IO[bytes]) -> None:
            with store.open(path, "rb") as remote:
                while chunk := remote.read(_CHUNK):
                    out.write(chunk)

        local = _keep(path.rstrip("/").rpartition("/")[2], copy)
        write_atomic(index, json.dumps(local.relative_to(home() / "data").as_posix()))
    except ImportError as error:
        raise MissingExtra(_DRIVERS[scheme], extra="cloud", purpose=f"reading {scheme}:// files") from error
    except OSError as error:
        raise DataError(
            f"{named} cannot be fetched: {type(error).__name__}",
            way_out="check the name, and the credentials that the store takes from the environment",
        ) from error
    return local


# --- databases --------------------------------------------------------------------------------------------------------


def _fetch_rows(named: str, url: str, query: str, *, offline: bool) -> Path:
    try:
        import sqlalchemy
        from sqlalchemy import exc
    except ImportError as error:
        raise MissingExtra("sqlalchemy", extra="sql", purpose="reading a database by its URL") from error
    try:
        target = sqlalchemy.make_url(url)
        if offline and target.host not in _HERE:
            raise _offline(named)
        engine = sqlalchemy.create_engine(target)
    except ModuleNotFoundError as error:
        raise DataError(
            f"{named}: the database's driver {error.name!r} is not installed", way_out=f"pip install {error.name}"
        ) from error
    except (exc.ArgumentError, ValueError) as error:
        raise DataError(
            f"{named} is no URL of a database or of a file that is known",
            way_out=f"e.g. postgresql://user:${{DB_PASSWORD}}@host/name; files begin with one of: {', '.join(_STORES)}",
        ) from error
    try:
        with engine.connect().execution_options(stream_results=True, yield_per=_ROWS_AT_ONCE) as connection:
            result = connection.exec_driver_sql(query)  # never committed
            columns = list(result.keys())
            _refuse_twice(named, columns)

            def copy(out: IO[bytes]) -> None:
                for row in result:
                    line = json.dumps(dict(zip(columns, row, strict=True)), default=str)
                    out.write(line.encode("ascii") + b"\n")

            return _keep("rows.jsonl", copy)
    except exc.SQLAlchemyError as error:  # its text may hold the URL, a row or the password
        said = type(getattr(error, "orig", None) or error).__name__
        raise DataError(
            f"{named}: data.train[0].query: the database answered {said}",
            way_out="try the URL and the query with the database's own client",
        ) from error
    finally:
        engine.dispose()


def _refuse_twice(named: str, columns: list[str]) -> None:
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise DataError(
            f"{named}: data.train[0].query gives {', '.join(map(repr, twice))} twice", way_out="rename one with AS"
        )


# --- the copy ---------------------------------------------------------------------------------------------------------


def _keep(name: str, copy: Callable[[IO[bytes]], None]) -> Path:
    """Write a copy, and put it where its hash says."""
    folder = home() / "data"
    with disk_errors(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
    temporary = beside(folder / name, "tmp")
    try:
        with _hashed(temporary) as (out, digest):
            copy(out)
        final: Path = folder / str(digest.hexdigest()) / name
        with disk_errors(final):
            final.parent.mkdir(mode=0o700, exist_ok=True)
            temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)
    return final


class _Hashed:
    """A file that is hashed as it is written."""

    def __init__(self, out: IO[bytes], digest: Any) -> None:
        self._out, self._digest = out, digest

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return self._out.write(data)


@contextmanager
def _hashed(path: Path) -> Iterator[tuple[Any, Any]]:
    digest = hashlib.sha256()
    with disk_errors(path), os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        yield _Hashed(out, digest), digest
        out.flush()
        os.fsync(out.fileno())


def _offline(named: str) -> DataError:
    return DataError(f"offline: {named} is on another machine", way_out="drop --offline, or give a local copy")
