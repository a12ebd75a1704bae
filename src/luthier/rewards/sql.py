"""A query that gives what the expected query gives, on SQLite in memory: execution accuracy (Yu et al. 2018, arXiv
1809.08887, section 5). Rows are compared with their number, in any order; columns by their place.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any

from luthier.errors import DataError, RecipeError
from luthier.rewards import Reward
from luthier.spec.rewards.sql import Sql

_READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_OF_CHANCE = {"random", "randomblob", "current_date", "current_time", "current_timestamp", "fts3_tokenizer"}
"""Functions that say something else each time: a run that is taken up again would get other rewards."""
_OF_DATES = {"date": 0, "time": 0, "datetime": 0, "julianday": 0, "unixepoch": 0, "strftime": 1}
"""Functions of dates -> which argument is the moment; without one, or with 'now', they tell the time of the day."""
_OF_THIS_MACHINE = {"now", "subsec", "subsecond", "localtime", "utc"}
_MOST_ROWS = 10_000
_LONGEST = 10_000
"""Bytes of a text or a row: some functions take the square of it, and that is one step."""
_PATTERN = 100
"""Bytes of what LIKE and GLOB look for, which takes the length of the text times this."""
_AT_ONCE = 1_000
"""Steps of SQLite's machine between two looks at their number; by a clock a query would fail on a slow day."""
_SECONDS = 10.0
"""Of processor time, beyond what steps take that are no attempt to take long."""
_HEAP = 2**28
"""Bytes of all SQLite of this process: a short query can stand for one whose preparation has no end."""


def open_reward(section: Sql) -> Reward:
    """1, `runs` or 0. An answer may only read; what is no query, takes too long, or is chance or time is worth nothing.

    Raises:
        RecipeError: the database cannot be made.
        DataError: while it is asked, the expected query cannot be run.
    """
    database = _made(section.database)

    def reward(answer: str, expected: str) -> float:
        wanted, found = (_rows(database, text, section.steps) for text in (expected, answer))
        if wanted is None:
            raise DataError(
                f"rewards: sql: the expected query cannot be run on the database: {expected[:200]!r}",
                way_out="correct the row, or leave it out; it may only read, take no chance and not tell the time",
            )
        if found is None:
            return 0.0
        return 1.0 if found == wanted else section.runs

    return reward


def _made(statements: str) -> sqlite3.Connection:
    database = sqlite3.connect(":memory:", check_same_thread=False)
    database.execute(f"PRAGMA hard_heap_limit = {_HEAP}")
    for name, moment in _OF_DATES.items():
        database.create_function(name, -1, _dated(name, moment), deterministic=True)
    _let(database, lambda action, what: action != sqlite3.SQLITE_ATTACH and not _by_chance(action, what))
    try:
        database.executescript(statements)
    except (sqlite3.Error, MemoryError) as error:
        raise RecipeError(
            f"rewards: sql: database cannot be made: {error}",
            way_out="write CREATE TABLE and INSERT as SQLite reads them",
        ) from error
    database.commit()
    database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST)
    database.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, _PATTERN)
    _let(database, _reads)
    return database


def _let(database: sqlite3.Connection, may: Callable[[int, tuple[str | None, ...]], bool]) -> None:
    """Only what `may` says is done from here on."""
    database.set_authorizer(lambda action, *what: sqlite3.SQLITE_OK if may(action, what) else sqlite3.SQLITE_DENY)


def _by_chance(action: int, what: tuple[str | None, ...]) -> bool:
    return action == sqlite3.SQLITE_FUNCTION and str(what[1]).lower() in _OF_CHANCE


def _reads(action: int, what: tuple[str | None, ...]) -> bool:
    """Nothing is written, attached, set or loaded, and nothing is left to chance."""
    return action in _READS and not _by_chance(action, what) and what[1] != "load_extension"


def _dated(name: str, moment: int) -> Callable[..., Any]:
    """SQLite's own function of that name, where what it says follows from its arguments."""
    own = sqlite3.connect(":memory:", check_same_thread=False)

    def asked(*given: object) -> Any:
        if len(given) <= moment or any(_read(one) in _OF_THIS_MACHINE for one in given):
            raise ValueError("it would tell the time, or where it is")
        return own.execute(f"SELECT {name}({', '.join('?' * len(given))})", given).fetchone()[0]

    return asked


def _read(given: object) -> str:
    """As SQLite reads an argument: bytes as text, as far as the first zero."""
    text = given.decode(errors="replace") if isinstance(given, bytes) else str(given)
    return text.partition("\0")[0].strip().lower()


def _rows(database: sqlite3.Connection, query: str, steps: int) -> Counter[tuple[object, ...]] | None:
    """What a query gives; None where it is none, is forbidden, or takes too long or too much."""
    taken, latest = count(_AT_ONCE, _AT_ONCE), time.thread_time() + _SECONDS
    database.set_progress_handler(lambda: next(taken) > steps or time.thread_time() > latest, _AT_ONCE)
    try:
        asked = database.execute(query.strip().removesuffix(";"))
        rows = asked.fetchmany(_MOST_ROWS + 1)
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError):
        return None
    finally:
        database.set_progress_handler(None, 0)
    return None if asked.description is None or len(rows) > _MOST_ROWS else Counter(rows)
