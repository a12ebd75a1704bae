"""A table of an SQLite database, or what a query of it gives. The database is opened for reading only."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from luthier.data.read import Fault, Row, bad_text
from luthier.data.source import Source, refuse_twice
from luthier.errors import DataError

_MANY_ROWS = 1024
_KEY = "data.train[0].query"


def look(source: Source, start: str) -> Source:
    """Find the table, or try the query, and read the names of its columns."""
    with _opened(source.path) as database:
        query = source.query or _only_table(source.path, database)
        with _running(source, database, query) as cursor:
            columns = tuple(one[0] for one in cursor.description or ())
            if not columns:
                raise DataError(f"{source.path}: {_KEY} gives no columns", way_out="write a SELECT")
            refuse_twice(source.path, columns)
            if cursor.fetchone() is None:
                raise DataError(f"{source.path} holds no rows", way_out=f"give a file with rows, or another {_KEY}")
    return replace(source, query=query, columns=columns)


def read(source: Source) -> Iterator[Row | Fault]:
    """All rows, some at once in memory."""
    number = 0
    with _opened(source.path) as database, _running(source, database, source.query) as cursor:
        while cells := cursor.fetchmany(_MANY_ROWS):
            for row in cells:
                number += 1
                values = dict(zip(source.columns, row, strict=True))
                bad = bad_text(text for text in row if isinstance(text, str))
                yield Fault(number, *bad, text=json.dumps(values, default=str)) if bad else Row(number, values)


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)) as database:
            database.text_factory = _text
            yield database
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a readable SQLite database: {error}", way_out="fetch it again") from error


def _text(cell: bytes) -> str:
    return cell.decode("utf-8", "surrogateescape")


@contextmanager
def _running(source: Source, database: sqlite3.Connection, query: str) -> Iterator[sqlite3.Cursor]:
    try:
        with closing(database.execute(query)) as cursor:
            yield cursor
    except (sqlite3.OperationalError, sqlite3.ProgrammingError, sqlite3.Warning) as error:
        raise DataError(f"{source.path}: {_KEY}: {error}", way_out="correct the query") from error


def _only_table(path: Path, database: sqlite3.Connection) -> str:
    found = database.execute(
        "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    )
    names = sorted(str(name) for (name,) in found)
    if len(names) != 1:
        there = f"there are: {', '.join(names)}" if names else "create one"
        raise DataError(
            f"{path} holds {len(names)} tables",
            way_out=f"{there}; say which with {_KEY}, e.g. SELECT * FROM {names[0] if names else 'messages'}",
        )
    return 'SELECT * FROM "{}"'.format(names[0].replace('"', '""'))
