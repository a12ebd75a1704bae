"""Times out of cells, read strictly: a form is known or the cell has no time, and nothing is guessed row by row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime

from luthier.errors import DataError

_NUMBERS = re.compile(
    r"(?P<one>\d{1,4})(?P<mark>[./-])(?P<two>\d{1,2})(?P=mark)(?P<three>\d{4}|\d{1,2})"
    r"(?:[ T]+(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,]\d+)?)?)?",
    re.ASCII,
)
_FIRST_EPOCH, _LAST_EPOCH = 10**8, 10**10
"""Seconds since 1970 that are taken for a time: 1973 to 2286. Smaller numbers are years, days or counts."""


def read_times(cells: Sequence[object], *, column: str) -> list[datetime | None]:
    """A time for each cell, None where it has none; times without a zone are taken for UTC.

    Read are: ISO 8601 ('2026-03-01', '2026-03-01T10:42:00+01:00', '20260301'), '2026/03/01', '01.03.2026' (the day
    first), '01/03/2026' and '01-03-2026' (with the day or the month first, as the whole column shows), each with or
    without 'hh:mm' or 'hh:mm:ss'; dates of Parquet; and seconds or milliseconds since 1970.

    Raises:
        DataError: dates such as 01/02/2026 leave open whether the day comes first, or contradict each other.
    """
    day_first = _day_first([cell for cell in cells if isinstance(cell, str)], column)
    return [_read(cell, day_first=day_first) for cell in cells]


def _read(cell: object, *, day_first: bool) -> datetime | None:
    if isinstance(cell, datetime):
        return _utc(cell)
    if isinstance(cell, date):
        return datetime(cell.year, cell.month, cell.day, tzinfo=UTC)
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        return _since_1970(cell)
    if not isinstance(cell, str):
        return None
    text = cell.strip()
    match = _NUMBERS.fullmatch(text)
    try:
        return _from_numbers(match, day_first=day_first) if match else _utc(datetime.fromisoformat(text))
    except ValueError:  # no such day, or no date at all
        return _since_1970(int(text)) if text.isascii() and text.isdigit() and len(text) <= 13 else None


def _from_numbers(match: re.Match[str], *, day_first: bool) -> datetime | None:
    one, two, three = (int(match[name]) for name in ("one", "two", "three"))
    if len(match["one"]) == 4:
        year, month, day = one, two, three
    elif len(match["three"]) == 4 and len(match["one"]) <= 2:
        year = three
        day, month = (one, two) if day_first or match["mark"] == "." else (two, one)
    else:
        return None  # a year of two digits could be a day
    hour, minute, second = (int(match[name] or 0) for name in ("hour", "minute", "second"))
    return datetime(year, month, day, hour, minute, second, tzinfo=UTC)


def _day_first(cells: Sequence[str], column: str) -> bool:
    """Whether the day stands first in dates such as 13/01/2026, as the column as a whole shows."""
    pairs = [
        (int(match["one"]), int(match["two"]))
        for match in map(_NUMBERS.fullmatch, map(str.strip, cells))
        if match and match["mark"] != "." and len(match["one"]) <= 2 and len(match["three"]) == 4
    ]
    day_first, month_first = any(one > 12 for one, _ in pairs), any(two > 12 for _, two in pairs)
    if pairs and day_first == month_first:
        found = "both orders occur" if day_first else "no day above 12 shows it"
        raise DataError(
            f"data.split.by_time: column {column!r} has dates such as 01/02/2026, and whether the day or the month "
            f"comes first cannot be told: {found}",
            way_out="write the dates as 2026-02-01",
        )
    return day_first


def _since_1970(number: float) -> datetime | None:
    if not 0 < number < _LAST_EPOCH * 1000:
        return None
    seconds = number / 1000 if number >= _LAST_EPOCH else number
    return datetime.fromtimestamp(seconds, UTC) if _FIRST_EPOCH <= seconds < _LAST_EPOCH else None


def _utc(time: datetime) -> datetime:
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
