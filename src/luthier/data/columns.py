"""Types of cells: what a column is to an expression, and a cell of any source brought to that type, strictly.

A column has one type for the whole file, and a request is held to it, so that the same cell gives the same result in a
batch, alone, in training and in serving. Nothing is guessed from a cell: a text that looks like a number is a text
unless the recipe says otherwise (`data.columns`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from datetime import UTC, date, datetime
from decimal import Decimal

from luthier.data.inputs import as_text
from luthier.records import ColumnType

_INTEGER = re.compile(r"[+-]?\d{1,19}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,4})?", re.ASCII)
_WORDS = {
    "integer": "a whole number of 64 bits",
    "number": "a finite number",
    "boolean": "true or false",
    "date": "a date such as 2026-03-01",
    "time": "a time such as 2026-03-01T10:42:00",
    "text": "a text",
}


def type_of(cell: object) -> ColumnType:
    """The type of a cell by itself; lists, objects and numbers of more than 64 bits are texts."""
    if isinstance(cell, bool):
        return "boolean"
    if isinstance(cell, int):
        return "integer" if _fits(cell) else "text"
    if isinstance(cell, float | Decimal):
        return "number"
    if isinstance(cell, datetime):
        return "time"
    return "date" if isinstance(cell, date) else "text"


def common_type(types: Collection[ColumnType]) -> ColumnType:
    """The type of a column with cells of these types: whole numbers are numbers, dates are times; else a text."""
    found = set(types)
    if len(found) == 1:
        return next(iter(found))
    if found == {"integer", "number"}:
        return "number"
    return "time" if found == {"date", "time"} else "text"


class WrongCell(ValueError):
    """A cell is not of its column's type."""


def convert(cell: object, to: ColumnType) -> object:
    """The cell as a value of the type; None stays None, and so does a blank text where no text is asked for.

    A text counts as what it spells: '19.90' is a number, '2026-03-01' a date, 'true' a truth value.

    Raises:
        WrongCell: it is something else; the message does not repeat it.
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if to == "text":
        return _whole(as_text(cell))
    if isinstance(cell, str):
        cell = cell.strip()
        if not cell:
            return None
    made = _CONVERSIONS[to](cell)
    if made is None:
        raise WrongCell(f"holds {_found(cell)}, not {_WORDS[to]}")
    return made


def _whole(text: str) -> str:
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise WrongCell("holds half of a character")
    return text


def _integer(cell: object) -> int | None:
    if isinstance(cell, str):
        cell = int(cell) if _INTEGER.fullmatch(cell) else None
    elif isinstance(cell, float | Decimal):
        cell = int(cell) if math.isfinite(cell) and cell == int(cell) else None
    return cell if isinstance(cell, int) and not isinstance(cell, bool) and _fits(cell) else None


def _number(cell: object) -> float | None:
    if isinstance(cell, bool) or not isinstance(cell, str | int | float | Decimal):
        return None
    if isinstance(cell, str) and not _NUMBER.fullmatch(cell):
        return None
    try:
        made = float(cell)
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return made if math.isfinite(made) else None


def _boolean(cell: object) -> bool | None:
    if isinstance(cell, str):
        return {"true": True, "false": False}.get(cell.casefold())
    return cell if isinstance(cell, bool) else None


def _date(cell: object) -> date | None:
    if isinstance(cell, str):
        try:
            return date.fromisoformat(cell) if len(cell) == 10 else None
        except ValueError:
            return None
    return cell if isinstance(cell, date) and not isinstance(cell, datetime) else None


def _time(cell: object) -> datetime | None:
    """Times with a zone are brought to UTC, so that the place of the machine does not count."""
    if isinstance(cell, str):
        try:
            cell = datetime.fromisoformat(cell)
        except ValueError:
            return None
    if isinstance(cell, date) and not isinstance(cell, datetime):
        return datetime(cell.year, cell.month, cell.day)
    if not isinstance(cell, datetime) or cell.tzinfo is None:
        return cell if isinstance(cell, datetime) else None
    try:
        return cell.astimezone(UTC).replace(tzinfo=None)
    except OverflowError:  # at the very ends of the calendar
        return None


_CONVERSIONS = {"integer": _integer, "number": _number, "boolean": _boolean, "date": _date, "time": _time}


def _fits(number: int) -> bool:
    return -(2**63) <= number < 2**63


def _found(cell: object) -> str:
    words = {"str": "a text", "bool": "a truth value", "int": "a whole number", "float": "a number", "list": "a list"}
    return words.get(type(cell).__name__, f"a value of type {type(cell).__name__}")
