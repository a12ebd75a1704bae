"""Rows that a database gives for a query, copied once; nothing is ever committed."""

from __future__ import annotations

import json
from typing import IO

from luthier.data.copies import Copy, keep_file
from luthier.data.stores import STORES, on_another_machine
from luthier.errors import DataError, MissingExtra

KEY = "query (data.train[0].query of a recipe, --query)"
_HERE = (None, "", "localhost", "127.0.0.1", "::1")
_ROWS_AT_ONCE = 1000


def fetch_rows(named: str, url: str, query: str, *, offline: bool) -> Copy:
    """The rows of a query as a local file of JSON lines.

    Args:
        named: as the user has it, for messages.
        url: the same with what the environment holds.
        query: in the database's own words.
        offline: whether other machines may be reached.

    Raises:
        DataError: it cannot be reached or read; neither the password nor a row is in the message.
        MissingExtra: what reads databases is not installed.
    """
    try:
        import sqlalchemy
        from sqlalchemy import exc
    except ImportError as error:
        raise MissingExtra("sqlalchemy", extra="sql", purpose="reading a database by its URL") from error
    try:
        target = sqlalchemy.make_url(url)
        if offline and target.host not in _HERE:
            raise on_another_machine(named)
        engine = sqlalchemy.create_engine(target)
    except ModuleNotFoundError as error:
        raise DataError(
            f"{named}: the database's driver {error.name!r} is not installed", way_out=f"pip install {error.name}"
        ) from error
    except (exc.ArgumentError, ValueError) as error:
        raise DataError(
            f"{named} is no URL of a database or of a file that is known",
            way_out=f"e.g. postgresql://user:${{DB_PASSWORD}}@host/name; files begin with one of: {', '.join(STORES)}",
        ) from error
    try:
        with engine.connect().execution_options(stream_results=True, yield_per=_ROWS_AT_ONCE) as connection:
            result = connection.exec_driver_sql(query)  # never committed
            columns = list(result.keys())
            _refuse_twice(named, columns)

            def write(out: IO[bytes]) -> None:
                for row in result:
                    line = json.dumps(dict(zip(columns, row, strict=True)), default=_text)
                    out.write(line.encode("ascii") + b"\n")

            return Copy(keep_file("rows.jsonl", write))
    except exc.SQLAlchemyError as error:  # its text may hold the URL, a row or the password
        said = type(getattr(error, "orig", None) or error).__name__
        raise DataError(
            f"{named}: {KEY}: the database answered {said}",
            way_out="try the URL and the query with the database's own client",
        ) from error
    finally:
        engine.dispose()


def _text(value: object) -> str:
    """What JSON does not have: bytes that are no UTF-8 become lone surrogates, which readers set aside."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "surrogateescape")
    return str(value)


def _refuse_twice(named: str, columns: list[str]) -> None:
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise DataError(f"{named}: {KEY} gives {', '.join(map(repr, twice))} twice", way_out="rename one with AS")
