"""`luthier data inspect FILE`: what a file holds and what would be made of it, before there is a recipe."""

from __future__ import annotations

from itertools import islice
from typing import Any

from luthier.data.bad_rows import FirstBadRows
from luthier.data.inputs import as_text
from luthier.data.privacy import scrub
from luthier.data.privacy.profiles import FAST, NOT_LOOKED_FOR
from luthier.data.read import Fault, Row, read_source
from luthier.data_report import BadRow
from luthier.pipeline.init import default_target, no_recipe, recipe_text
from luthier.pipeline.named import Named, Opened, opened
from luthier.records import ColumnProfile, DataProfile, Record

_EXAMPLES = 3
_LOOKED_AT, _SHOWN = 5000, 160
"""Characters of a cell."""


class Example(Record):
    """A row as it may be shown."""

    place: str
    """'12', or 'FILE:12' in a folder."""
    cells: dict[str, str]
    """Column -> beginning of the cell, with placeholders for secrets and personal data."""


class Inspection(Record):
    """What is known of a file."""

    profile: DataProfile
    examples: tuple[Example, ...]
    bad_rows: tuple[BadRow, ...] = ()
    """The first of each reason."""
    recipe: str
    """What `luthier init` would write; '' where no task can be told from the columns."""


def inspect(data: Named, *, offline: bool = False) -> Inspection:
    """Look at a file, a folder or what is behind a URL; nothing is written but the local copy of the latter.

    Raises:
        DataError: it cannot be read.
    """
    local = opened(data, offline=offline)
    found = local.profile()
    rows = (item for item in read_source(local.source()) if isinstance(item, Row))
    examples = tuple(_example(row) for row in islice(rows, _EXAMPLES))
    bad = _bad_rows(local, found)
    recipe = recipe_text(data, default_target(data), found) if found.task is not None else ""
    return Inspection(profile=found, examples=examples, bad_rows=bad, recipe=recipe)


def _bad_rows(local: Opened, found: DataProfile) -> tuple[BadRow, ...]:
    """Read again as far as the last that is shown."""
    first, left = FirstBadRows(FAST), sum(len(one.first) for one in found.faults)
    faults = (item for item in read_source(local.source()) if isinstance(item, Fault)) if left else iter(())
    for fault in faults:
        first.add(fault.file, fault)
        if len(first.records()) == left:
            break
    return first.records()


def _example(row: Row) -> Example:
    return Example(place=_place(row), cells={name: _shown(cell) for name, cell in row.values.items()})


def _place(row: Row | BadRow) -> str:
    return f"{row.file}:{row.line}" if row.file else str(row.line)


def _shown(cell: object) -> str:
    text = scrub(as_text(cell)[:_LOOKED_AT], personal=True, secrets=True)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def inspect_lines(seen: Inspection) -> list[str]:
    """The same in words."""
    found = seen.profile
    how = [found.format, found.encoding, f"delimiter {found.delimiter!r}" if found.delimiter else ""]
    how += [f"sheet {found.sheet!r}" if found.sheet else "", found.query]
    lines = [f"{found.path}: {', '.join(part for part in how if part)}, {found.num_rows} rows"]
    lines += [f"license: {found.license}, as the data set states"] if found.license else []
    lines += [f"shape: {found.shape}{_purpose(found)}", "", *_column_lines(found.columns)]
    if found.labels:
        lines += ["", f"labels: {', '.join(f'{label} {count}' for label, count in list(found.labels.items())[:20])}"]
    for one in found.faults:
        more = ", ..." if one.rows > len(one.first) else ""
        lines += ["", f"cannot be read: {one.rows} {one.reason} in lines {', '.join(one.first)}{more} ({one.detail})"]
        lines += [f"  line {_place(row)}: {row.text}" for row in seen.bad_rows if row.reason == one.reason and row.text]
    lines += ["", f"first rows, secrets and personal data masked ({NOT_LOOKED_FOR['fast']}):"]
    for example in seen.examples:
        lines += [f"  line {example.place}"]
        lines += [f"    {name}: {' '.join(cell.split())}" for name, cell in example.cells.items() if cell]
    if not seen.recipe:
        what, way_out = no_recipe(found)
        return [*lines, "", f"no recipe: {what}", f"  -> {way_out}"]
    return [*lines, "", "`luthier init` writes:", *(f"  {line}" for line in seen.recipe.splitlines())]


def _purpose(found: DataProfile) -> str:
    if found.is_chat and not found.rejected:
        return f" ({found.task}), the rows bring their turns"
    words = [f" ({found.task})"] if found.task else []
    words += [f" input {found.input!r}"] if found.input else []
    words += [f" answer {found.label!r}"] if found.label else []
    words += [f" not preferred {found.rejected!r}"] if found.rejected else []
    words += [f" rows of one {found.group_by!r} stay together"] if found.group_by else []
    return ",".join(words)


def _column_lines(columns: tuple[ColumnProfile, ...]) -> list[str]:
    table: list[tuple[Any, ...]] = [("column", "kind", "different", "empty", "mean length")]
    table += [(one.name, one.kind, one.distinct, one.empty, f"{one.mean_chars:.1f}") for one in columns]
    name, kind = (max(len(str(row[index])) for row in table) for index in (0, 1))
    return [f"{row[0]:<{name}}  {row[1]:<{kind}}  {row[2]:>9}  {row[3]:>7}  {row[4]:>11}" for row in table]
