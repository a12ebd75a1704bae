"""Answers that are several labels, or a number: how they stand in a cell, in a row, and in what a model writes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable

from luthier.data.inputs import as_text
from luthier.errors import DataError

NO_LABEL = "none"
"""What stands for no label, so that a model that writes has something to say."""


def joined(labels: Iterable[str], separator: str) -> str:
    """Labels as they stand in a row: each once, sorted; `NO_LABEL` for none of them."""
    return f"{separator} ".join(sorted(set(labels))) or NO_LABEL


def divided(text: str, separator: str) -> tuple[str, ...]:
    """The labels of such a text, or of one that a model wrote; white space around them does not count."""
    said = {part.strip() for part in text.split(separator)} - {""}
    return tuple(sorted(said if said != {NO_LABEL} else ()))


def labels_in(cell: object, separator: str) -> tuple[str, ...]:
    """The labels of a cell: a list of them, or a text with separators; an empty cell has none.

    Raises:
        DataError: a label of a list holds the separator, or is no text; or one is `NO_LABEL` beside others.
    """
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        cell = _list_in(cell)
    if isinstance(cell, list | tuple):
        found = []
        for one in cell:
            label = "" if isinstance(one, list | tuple | dict) else as_text(one).strip()
            if not label:
                raise DataError(f"{one!r} is no label")
            if separator in label:
                raise DataError(
                    f"the label {label!r} holds {separator!r}, which stands between labels",
                    way_out="set data.labels.separator to what no label holds",
                )
            found.append(label)
    else:
        found = [part.strip() for part in as_text(cell).split(separator) if part.strip()]
    if NO_LABEL in found and len(set(found)) > 1:
        raise DataError(f"{NO_LABEL!r} stands for no label, and here beside others", way_out="rename that label")
    return tuple(sorted(set(found) - {NO_LABEL}))


def _list_in(text: str) -> object:
    """The list that a text is in JSON, as a CSV file may hold it; else the text."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, list) else text


def number_of(text: str) -> float | None:
    """The number that a text is, outer white space aside; None where it is none, or is not finite."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in text else None
