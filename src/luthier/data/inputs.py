"""Input templates such as '{title}: {body}' and what cells become in them."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping

from luthier.errors import DataError

_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")


def fields(template: str) -> tuple[str, ...]:
    """Columns that the template names, in order, each once.

    Raises:
        DataError: a brace is neither part of '{column}' nor doubled, or no column is named.
    """
    found: dict[str, None] = {}
    for match in _FIELD.finditer(template):
        if match[0] in "{}":
            raise DataError(
                f"input template {template!r}: the brace at {match.start()} stands alone",
                way_out="write '{column}' for a column and '{{' or '}}' for a brace",
            )
        if match[1] is not None:
            found[match[1].strip()] = None
    if not found:
        raise DataError(f"input template {template!r} names no column", way_out="write e.g. '{text}'")
    return tuple(found)


def fill(template: str, values: Mapping[str, object]) -> str:
    """The template with its columns filled in; what a cell holds is never read as a template.

    Raises:
        DataError: a named column is not among `values`.
    """

    def replacement(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        name = match[1].strip()
        if name not in values:
            raise missing_column(name, values, key="the input template")
        return as_text(values[name])

    return _FIELD.sub(replacement, template)


def missing_column(name: str, columns: Iterable[str], *, key: str) -> DataError:
    """The error for a column that is not there, with what is, and the nearest name first."""
    known = list(columns)
    near = difflib.get_close_matches(name, known, 1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return DataError(
        f"{key} names the column {name!r}, which is not there", way_out=f"{hint}there are: {', '.join(known)}"
    )


def as_text(value: object) -> str:
    """A cell as text: empty for None, 'true' and 'false', numbers as Python writes them, JSON for lists and objects."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool | list | dict):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
