"""What stands in the parts of an Excel workbook (ECMA-376): sheets, shared texts, styles, rows of cells."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from xml.etree import ElementTree

from luthier.data import office
from luthier.data.office import elements, local_name, plain

_MOST_ROWS = 1 << 20
_CHUNK = 1 << 20

_MERGED = re.compile(rb'<(?:\w+:)?mergeCell\s[^<>]*?ref="([A-Z]+)(\d+):([A-Z]+)(\d+)"')
_REFERENCE = re.compile(r"([A-Z]{1,3})(\d+)")
_ESCAPE = re.compile(r"_x([0-9A-Fa-f]{4})_")
_DATE_STYLES = frozenset([*range(14, 23), *range(27, 37), *range(45, 48), *range(50, 59)])
"""Number formats that stand for dates and times by themselves: ECMA-376 part 1, 18.8.30."""
_NOT_A_DATE = re.compile(r'"[^"]*"|\\.|\[[^\]]*\]|_.|\*.')


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell that is not empty."""

    column: int
    """From 0."""
    value: object
    problem: str = ""
    """Why the value cannot be trusted: 'formula_error' or 'formula_without_value'."""


@dataclass
class Workbook:
    """An open workbook."""

    path: Path
    sheets: dict[str, str]
    """Name -> part, in the order of the tabs."""
    archive: zipfile.ZipFile
    epoch: datetime
    date_styles: frozenset[int]
    """Indices of the cell styles that show a number as a date."""
    texts: list[str] = field(default_factory=list)

    def rows(self, sheet: str) -> Iterator[tuple[int, list[Cell]]]:
        """Number and cells of each row that is not empty."""
        number = 0
        with self.archive.open(self.sheets[sheet]) as file:
            for element in elements(file, "row", inside="sheetData"):
                number = int(element.get("r") or number + 1)
                cells = []
                column = -1
                for part in element:
                    match = _REFERENCE.fullmatch(part.get("r") or "")
                    column = column_index(match[1]) if match else column + 1
                    cell = self._cell(part, column)
                    if cell is not None:
                        cells.append(cell)
                if cells:
                    yield number, cells

    def merged_rows(self, sheet: str) -> dict[int, str]:
        """Row -> range, of rows whose cells are merged with each other, or with those of the row above."""
        found: dict[int, str] = {}
        rest = b""
        with self.archive.open(self.sheets[sheet]) as file:
            while chunk := file.read(_CHUNK):
                for match in _MERGED.finditer(rest + chunk):
                    left, top, right, bottom = (part.decode() for part in match.groups())
                    first = int(top) if left != right else int(top) + 1
                    for row in range(first, min(int(bottom), _MOST_ROWS) + 1):
                        found.setdefault(row, f"{left}{top}:{right}{bottom}")
                rest = chunk[-200:]
        return found

    def _cell(self, element: ElementTree.Element, column: int) -> Cell | None:
        kind = element.get("t", "n")
        parts = {local_name(part): part for part in element}
        written = parts["v"].text if "v" in parts else None
        if kind == "inlineStr":
            text = _text_of(parts["is"]) if "is" in parts else ""
            return Cell(column, text) if text else None
        if written is None or written == "":
            if "f" in parts and kind != "str":
                return Cell(column, None, "formula_without_value")
            return None
        if kind == "s":
            text = self.texts[int(written)]
            return Cell(column, text) if text else None
        if kind == "e":
            return Cell(column, written, "formula_error")
        if kind == "b":
            return Cell(column, written == "1")
        if kind in ("str", "d"):
            return Cell(column, _unescaped(written))
        return Cell(column, self._number(written, int(element.get("s") or 0)))

    def _number(self, written: str, style: int) -> object:
        number = float(written)
        if style in self.date_styles and 0 <= number < 2_958_466:  # the end of the year 9999
            moment = self.epoch + timedelta(days=number)
            moment = (moment + timedelta(seconds=0.5)).replace(microsecond=0)  # as it is shown
            if number < 1:
                return moment.time().isoformat()
            return moment.date().isoformat() if number == int(number) else moment.isoformat(sep=" ")
        return int(number) if number.is_integer() and abs(number) < 1e15 else number


@contextmanager
def open_workbook(path: Path) -> Iterator[Workbook]:
    """Open a workbook.

    Raises:
        DataError: no workbook, damaged, encrypted, or grown out of bounds; when it is opened or later.
    """
    with office.opened(path, "an Excel workbook", in_memory="xl/sharedStrings.xml") as archive:
        yield _opened(path, archive)


def column_index(letters: str) -> int:
    """0 for A, 26 for AA."""
    index = 0
    for letter in letters:
        index = index * 26 + ord(letter) - 64
    return index - 1


def column_letters(index: int) -> str:
    """A for 0, AA for 26."""
    letters = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        letters = chr(65 + rest) + letters
    return letters


def _opened(path: Path, archive: zipfile.ZipFile) -> Workbook:
    with archive.open("xl/_rels/workbook.xml.rels") as file:
        targets = {one.get("Id"): one.get("Target") or "" for one in elements(file, "Relationship")}
    sheets: dict[str, str] = {}
    epoch = datetime(1899, 12, 30)
    with archive.open("xl/workbook.xml") as file:
        for _, element in ElementTree.iterparse(plain(file)):
            if local_name(element) == "workbookPr" and element.get("date1904") in ("1", "true"):
                epoch = datetime(1904, 1, 1)
            if local_name(element) == "sheet":
                target = targets[next(value for key, value in element.items() if key.endswith("}id"))]
                part = target[1:] if target.startswith("/") else f"xl/{target}"
                if "worksheets" in part:  # others are charts
                    sheets[element.get("name") or ""] = part
    book = Workbook(path, sheets, archive, epoch, _date_styles(archive))
    if "xl/sharedStrings.xml" in archive.namelist():
        with archive.open("xl/sharedStrings.xml") as file:
            book.texts = [_text_of(one) for one in elements(file, "si", inside="sst")]
    return book


def _date_styles(archive: zipfile.ZipFile) -> frozenset[int]:
    if "xl/styles.xml" not in archive.namelist():
        return frozenset()
    with archive.open("xl/styles.xml") as file:
        root = ElementTree.parse(plain(file)).getroot()
    dates = set(_DATE_STYLES)
    for element in root.iter():
        if local_name(element) == "numFmt":
            code = _NOT_A_DATE.sub("", element.get("formatCode") or "").lower()
            if any(letter in code for letter in "dmyhs") and "general" not in code:
                dates.add(int(element.get("numFmtId") or 0))
    formats = next((part for part in root if local_name(part) == "cellXfs"), ())
    return frozenset(index for index, one in enumerate(formats) if int(one.get("numFmtId") or 0) in dates)


def _text_of(element: ElementTree.Element) -> str:
    """Text of plain and formatted pieces, without the phonetic ones."""
    pieces = []
    for part in element:
        if local_name(part) == "t":
            pieces.append(part.text or "")
        elif local_name(part) == "r":
            pieces += [inner.text or "" for inner in part if local_name(inner) == "t"]
    return _unescaped("".join(pieces))


def _unescaped(text: str) -> str:
    """Characters that XML does not have are written as '_x000D_'."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text) if "_x" in text else text
