"""One JSON array of objects, alone or as the only array of objects inside an object. Read element by element."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path

from luthier.data.json_values import DECODER, DuplicateKey, as_row, json_fault
from luthier.data.read import Fault, Row
from luthier.data.source import Source
from luthier.data.text_file import MOST_ROW_CHARS
from luthier.errors import DataError

_CHUNK = 1 << 20
_LENIENT = json.JSONDecoder()
_BLANK = re.compile(r"[ \t\r\n\ufeff]*")
_CONVERT = "convert it to one object a line, e.g. jq -c '.[]' FILE.json > FILE.jsonl"


class _Text:
    """A text that is looked at through a window, with the line of the place that has been reached."""

    def __init__(self, path: Path, text: io.TextIOWrapper) -> None:
        self.path = path
        self.line = 1
        self._text = text
        self._window = ""
        self._at = 0

    def peek(self) -> str:
        """The next character that is not blank; '' at the end."""
        while True:
            match = _BLANK.match(self._window, self._at)
            assert match is not None  # it matches nothing too
            self._go_to(match.end())
            if self._at < len(self._window):
                return self._window[self._at]
            if not self._more():
                return ""

    def take(self, expected: str) -> str:
        """The next character, which must be one of `expected`."""
        found = self.peek()
        if not found or found not in expected:
            what = f"{found!r}" if found else "the end of the file"
            raise self.fault(f"expected {' or '.join(map(repr, expected))}, found {what}")
        self._go_to(self._at + 1)
        return found

    def begins_rows(self) -> bool:
        """Whether an array comes next whose first element is an object."""
        while self.peek() == "[":
            match = _BLANK.match(self._window, self._at + 1)
            assert match is not None
            if match.end() < len(self._window):
                return self._window[match.end()] == "{"
            if not self._more():
                break
        return False

    def value(self) -> tuple[object, int, str]:
        """The next value, the line where it starts and its text."""
        self.peek()
        while True:
            try:
                value, end = self._decode()
            except json.JSONDecodeError as error:
                line = self.line + self._window.count("\n", self._at, error.pos)
                if not self._more():
                    raise self.fault(error.msg, line) from error
                continue
            except RecursionError as error:
                raise self.fault("nested too deeply") from error
            except ValueError as error:
                raise self.fault(json_fault(error)[1]) from error
            if end == len(self._window) and self._more():  # a number may go on
                continue
            line, text = self.line, self._window[self._at : end]
            self._go_to(end)
            return value, line, text

    def _decode(self) -> tuple[object, int]:
        try:
            return DECODER.raw_decode(self._window, self._at)
        except DuplicateKey as error:
            return error, _LENIENT.raw_decode(self._window, self._at)[1]

    def fault(self, what: str, line: int = 0) -> DataError:
        return DataError(f"{self.path}:{line or self.line}: not JSON: {what}", way_out="correct the file there")

    def _go_to(self, place: int) -> None:
        self.line += self._window.count("\n", self._at, place)
        self._at = place

    def _more(self) -> bool:
        kept = len(self._window) - self._at
        if kept > MOST_ROW_CHARS:
            raise self.fault(f"a value that is longer than {MOST_ROW_CHARS:,} characters, or never ends")
        piece = self._text.read(max(_CHUNK, kept))
        self._window, self._at = self._window[self._at :] + piece, 0
        return bool(piece)


def look(source: Source, start: str) -> Source:
    """Read the first row, so that a file without any is refused."""
    with closing(read(source)) as found:
        next(found)
    return source


def read(source: Source) -> Generator[Row | Fault, None, None]:
    """All elements of the array; each must be an object."""
    with source.open_text() as file:
        text = _Text(source.path, file)
        if text.peek() == "[":
            if not (yield from _array(text)):
                raise DataError(f"{source.path}: the JSON array is empty", way_out="give a file with rows")
        else:
            yield from _object(text)
        if left := text.peek():
            raise text.fault(f"{left!r} after the end of the array")


def _array(text: _Text) -> Generator[Row | Fault, None, int]:
    text.take("[")
    count = 0
    if text.peek() == "]":
        text.take("]")
        return count
    while True:
        value, line, written = text.value()
        count += 1
        if isinstance(value, DuplicateKey):
            yield Fault(line, *json_fault(value), text=written)
        else:
            yield as_row(line, value, written)
        if text.take(",]") == "]":
            return count


def _object(text: _Text) -> Iterator[Row | Fault]:
    """The one array of objects among the values of an object."""
    text.take("{")
    rows_of = ""
    while text.peek() != "}":
        name, _, _ = text.value()
        text.take(":")
        if not text.begins_rows():
            text.value()
        elif rows_of:
            raise DataError(
                f"{text.path}: both {rows_of!r} and {name!r} hold arrays of objects",
                way_out=f"write the rows that you mean to a file of their own, e.g. jq '.{rows_of}' FILE > NEW",
            )
        else:
            rows_of = str(name)
            yield from _array(text)
        if text.peek() != "}":
            text.take(",")
    text.take("}")
    if not rows_of:
        raise DataError(f"{text.path}: the JSON object holds no array of objects", way_out=_CONVERT)
