"""A query that gives what the expected query gives, on SQLite in memory: execution accuracy (Yu et al. 2018, arXiv
1809.08887, section 5). Rows are compared with their number, in any order; columns by their place.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from itertools import count

from luthier.errors import RecipeError
from luthier.rewards import Reward
from luthier.spec.rewards.sql import Sql

_READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_MOST_ROWS = 10_000
_LONGEST = 1_000_000
"""Bytes of a text or a row."""
_AT_ONCE = 1_000
"""Steps of SQLite's machine between two looks at their number; by a clock a query would fail on a slow day."""


def open_reward(section: Sql) -> Reward:
    """1, `runs` or 0. An answer may only read; what it says that is no query, or takes too long, is worth nothing.

    Raises:
        RecipeError: the database cannot be made.
    """
    database = _made(section.database)

    def reward(answer: str, expected: str) -> float:
        wanted, found = (_rows(database, text, section.steps) for text in (expected, answer))
        if found is None:
            return 0.0
        return 1.0 if wanted is not None and found == wanted else section.runs

    return reward


def _made(statements: str) -> sqlite3.Connection:
    database = sqlite3.connect(":memory:", check_same_thread=False)
    try:
        database.executescript(statements)
    except sqlite3.Error as error:
        raise RecipeError(
            f"rewards: sql: database cannot be made: {error}",
            way_out="write CREATE TABLE and INSERT as SQLite reads them",
        ) from error
    database.commit()
    database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST)
    database.set_authorizer(lambda action, *what: sqlite3.SQLITE_OK if _reads(action, what) else sqlite3.SQLITE_DENY)
    return database


def _reads(action: int, what: tuple[str | None, ...]) -> bool:
    """Nothing is written, attached, set or loaded."""
    return action in _READS and not (action == sqlite3.SQLITE_FUNCTION and what[1] == "load_extension")


def _rows(database: sqlite3.Connection, query: str, steps: int) -> Counter[tuple[object, ...]] | None:
    """What a query gives; None where it is none, is forbidden, or takes too long or too much."""
    taken = count(_AT_ONCE, _AT_ONCE)
    database.set_progress_handler(lambda: next(taken) > steps, _AT_ONCE)
    try:
        asked = database.execute(query.strip().removesuffix(";"))
        rows = asked.fetchmany(_MOST_ROWS + 1)
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError):
        return None
    finally:
        database.set_progress_handler(None, 0)
    return None if asked.description is None or len(rows) > _MOST_ROWS else Counter(rows)
