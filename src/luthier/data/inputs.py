"""What cells become in the input template; its grammar is that of `luthier.spec.template`."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping

from luthier.errors import DataError
from luthier.spec.template import render


def fill(template: str, values: Mapping[str, object]) -> str:
    """The template with its columns filled in; what a cell holds is never read as a template.

    Raises:
        DataError: a named column is not among `values`.
    """

    def text_of(name: str) -> str:
        if name not in values:
            raise missing_column(name, values, key="the input template")
        return as_text(values[name])

    return render(template, text_of)


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
        return json.dumps(value, ensure_ascii=False, default=str)  # Parquet's lists may hold dates
    return str(value)
