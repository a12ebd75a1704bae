"""Dates by shape: how they are written, and whether a piece of text is one."""

from __future__ import annotations

import re
from collections.abc import Iterator

from luthier.data.privacy.spans import Span

MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
)  # fmt: skip
_MONTH = "(?:" + "|".join(f"{month[:3]}(?:{month[3:]})?" for month in MONTHS) + r"|sept)\b\.?"
_CLOCK = r"(?:(?:T| at |,? )\d{1,2}:\d{2}(?::\d{2})?(?: ?[ap]\.?m\.?)?)?"
_SHAPES = (
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}",  # 1984-03-02
    r"\d{1,2}[-/.]\d{1,2}[-/.](?:\d{4}|\d{2})",  # 3/2/1984, 02.03.84
    rf"{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?(?:,? \d{{4}})?",  # March 2nd, 1984
    rf"\d{{1,2}}(?:st|nd|rd|th)?(?: of)?[ -]{_MONTH}(?:,?[ -]\d{{2,4}})?",  # 2 March 1984, 02-Mar-84
    rf"{_MONTH},? \d{{4}}",  # March 1984
)
DATE = rf"(?<![\w/.-])(?:{'|'.join(_SHAPES)}){_CLOCK}(?![\w/]|[-.]\d)"
"""A day or a month of the calendar, with or without a time of day."""

_WEEKDAY = r"(?:mon|tues|wednes|thurs|fri|satur|sun)day"
_WHOLE = re.compile(rf"(?:{_WEEKDAY},? )?(?:{DATE})|{_WEEKDAY}|(?:19|20)\d\d|{_MONTH}", re.IGNORECASE)


def looks_like_a_date(text: str) -> bool:
    """Whether `text` is a date, a year, a month or a day of the week, and not 'two weeks' or 'the night shift'."""
    return _WHOLE.fullmatch(text.strip()) is not None


_DATE = re.compile(DATE, re.IGNORECASE)


def dates(text: str) -> Iterator[Span]:
    """Every day of the calendar."""
    for match in _DATE.finditer(text):
        yield Span(match.start(), match.end(), "date")
