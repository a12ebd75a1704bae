"""HTML: a row is a block of text; scripts, styles, navigation and forms are left out."""

from __future__ import annotations

import io
from collections.abc import Iterator
from html.parser import HTMLParser

from luthier.data.document import MOST_CHARS, Part, looked, part_rows
from luthier.data.read import Fault, Row
from luthier.data.source import Source

_CHUNK = 1 << 16
_BLOCKS = frozenset((
    "p", "div", "li", "ul", "ol", "dl", "dt", "dd", "table", "tr", "section", "article", "main", "body", "blockquote",
    "pre", "figure", "figcaption", "header", "hr", "title", "h1", "h2", "h3", "h4", "h5", "h6", "head", "html",
))  # fmt: skip
_HEADINGS = frozenset(("title", "h1", "h2", "h3", "h4", "h5", "h6"))
_LEFT_OUT = frozenset(("script", "style", "nav", "form", "noscript", "template", "svg", "iframe", "footer"))


class _Blocks(HTMLParser):
    """Collects blocks; what is finished is taken away by the reader."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.done: list[Part] = []
        self._heading = ""
        self._is_heading = False
        self._pre = 0
        self._left_out = 0
        self._start = 0
        self._held: list[str] = []
        self._chars = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _LEFT_OUT:
            self._left_out += 1
        elif tag in _BLOCKS:
            self.finish()
            self._is_heading = tag in _HEADINGS
            self._pre += tag == "pre"
        elif tag in ("br", "td", "th") and self._held:
            self._held.append("\n" if tag == "br" else " ")

    def handle_endtag(self, tag: str) -> None:
        if tag in _LEFT_OUT:
            self._left_out = max(0, self._left_out - 1)
        elif tag in _BLOCKS:
            self.finish()
            self._is_heading = False
            self._pre = max(0, self._pre - (tag == "pre"))

    def handle_data(self, data: str) -> None:
        if self._left_out:
            return
        if not self._held:
            if not data.strip():
                return
            blank = data[: len(data) - len(data.lstrip())]
            self._start = self.getpos()[0] + blank.count("\n")
        self._held.append(data if self._pre else " ".join(f".{data}.".split())[1:-1])
        self._chars += len(data)
        if self._chars > MOST_CHARS:
            self.finish()

    def finish(self) -> None:
        text = "".join(self._held).strip()
        self._held, self._chars = [], 0
        if text and self._is_heading:
            self._heading = text
        elif text:
            self.done.append((self._start, self._heading, text))


def look(source: Source, start: str) -> Source:
    """Find the first block."""
    return looked(source, read(source))


def read(source: Source) -> Iterator[Row | Fault]:
    """All blocks."""
    with source.open_text() as text:
        yield from part_rows(_blocks(text))


def _blocks(text: io.TextIOWrapper) -> Iterator[Part]:
    parser = _Blocks()
    while piece := text.read(_CHUNK):  # not by lines: what is open is looked through again each time
        parser.feed(piece)
        yield from parser.done
        parser.done.clear()
    parser.close()
    parser.finish()
    yield from parser.done
