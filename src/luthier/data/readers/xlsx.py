"""A sheet of an Excel workbook. Lines are those that Excel shows, dates are written as ISO 8601, formulas have the
value that was computed when the workbook was saved. A row whose cells are merged, or hold an error, is a fault.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace

from luthier.data.read import Fault, Row, bad_text
from luthier.data.source import Source, named_columns
from luthier.data.workbook import Cell, Workbook, column_letters, open_workbook
from luthier.errors import DataError

_WORDS = {
    "formula_error": "the formula gave an error",
    "formula_without_value": "the formula was never computed; open the workbook in Excel and save it",
}


def look(source: Source, start: str) -> Source:
    """Find the sheet and its header: the first row that is not empty."""
    with open_workbook(source.path) as book:
        sheet = _sheet(book, source.sheet)
        rows = book.rows(sheet)
        _, cells = next(rows)
        width = cells[-1].column + 1
        header = [""] * width
        for cell in cells:
            header[cell.column] = str(cell.value)
        columns = named_columns(source, header, where="row")
        if next(rows, None) is None:
            raise DataError(f"{source.path}: the sheet {sheet!r} holds a header and no rows",
                            way_out="give a sheet with rows")  # fmt: skip
    return replace(source, sheet=sheet, columns=columns)


def read(source: Source) -> Iterator[Row | Fault]:
    """All rows below the header that are not empty."""
    with open_workbook(source.path) as book:
        merged = book.merged_rows(source.sheet)
        rows = book.rows(source.sheet)
        next(rows)
        for number, cells in rows:
            yield _row(source, number, cells, merged)


def _row(source: Source, number: int, cells: list[Cell], merged: Mapping[int, str]) -> Row | Fault:
    written = json.dumps({column_letters(cell.column): cell.value for cell in cells}, default=str)
    outside = next((cell for cell in cells if cell.column >= len(source.columns)), None)
    problem = next((cell for cell in cells if cell.problem), None)
    if number in merged:
        return Fault(number, "merged_cells", f"{merged[number]} are merged: split them and fill each", text=written)
    if outside is not None:
        where = column_letters(outside.column)
        return Fault(number, "wrong_cell_count", f"a value in column {where}, outside of the header", text=written)
    if problem is not None:
        where = f"{column_letters(problem.column)}{number}"
        return Fault(number, problem.problem, f"{where}: {_WORDS[problem.problem]}", text=written)
    if bad := bad_text(cell.value for cell in cells if isinstance(cell.value, str)):
        return Fault(number, *bad, text=written)
    values: dict[str, object] = dict.fromkeys(source.columns)
    return Row(number, values | {source.columns[cell.column]: cell.value for cell in cells})


def _sheet(book: Workbook, asked: str) -> str:
    """The sheet of that name, or the first with anything in it."""
    names = ", ".join(map(repr, book.sheets))
    if asked and asked not in book.sheets:
        raise DataError(f"{book.path} has no sheet {asked!r}", way_out=f"data.train[0].sheet: one of {names}")
    for name in [asked] if asked else book.sheets:
        if next(book.rows(name), None) is not None:
            return name
    empty = f"the sheet {asked!r} is empty" if asked else "is empty: no sheet holds a value"
    raise DataError(f"{book.path}: {empty}", way_out=f"give a sheet with rows; there are {names}")
