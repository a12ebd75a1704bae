"""Cleaning steps by name, from text to text; the request contract lists those that a model is asked with."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Iterable

from luthier.errors import DataError

_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_LINE_TAG = re.compile(r"<br\s*/?>|</?p(?:\s[^<>]*)?>|</?div(?:\s[^<>]*)?>", re.IGNORECASE)


def unescape_html(text: str) -> str:
    """Entities become their characters; `<br>`, `<p>` and `<div>`, leftovers of mail exports, become line breaks.

    Only entities that end in a semicolon count: HTML also knows '&copy' without one, which would damage addresses such
    as '?a=1&copy=2'. Other tags are content.
    """
    if "&" in text:
        text = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
    return _LINE_TAG.sub("\n", text) if "<" in text else text


# UTF-8 bytes that were read as Windows-1252. Five bytes are undefined there; readers pass them as C1 controls.
_BYTE_OF = {bytes([value]).decode("cp1252", errors="ignore") or chr(value): value for value in range(0x80, 0x100)}
_BYTE_OF |= {chr(value): value for value in range(0x80, 0xA0)}


def _characters(low: int, high: int) -> str:
    return "[" + "".join(re.escape(char) for char, value in _BYTE_OF.items() if low <= value <= high) + "]"


_NEXT = _characters(0x80, 0xBF)
_SEQUENCE = (
    f"(?:{_characters(0xC2, 0xDF)}{_NEXT}|{_characters(0xE0, 0xEF)}{_NEXT}{{2}}|{_characters(0xF0, 0xF4)}{_NEXT}{{3}})"
)
_GARBLED = re.compile(f"{_SEQUENCE}+")
_CLOSERS = frozenset("\u00a0»›’”“…–—™®°´")


def repair_mojibake(text: str) -> str:
    """UTF-8 that was read as Windows-1252 or Latin-1 ('cafÃ©', 'itâ€™s') is read again, run by run.

    A run is repaired only where it is valid UTF-8, and where it cannot be meant: a lone pair such as the 'ß”' that ends
    a German quotation stays, because the pairs that Western text is garbled into begin with Â or Ã.
    """
    return text if text.isascii() else _GARBLED.sub(_repair_run, text)


def _repair_run(match: re.Match[str]) -> str:
    run = match[0]
    try:
        repaired = bytes(_BYTE_OF[char] for char in run).decode("utf-8")
    except UnicodeDecodeError:
        return run
    if len(repaired) > 1:
        return repaired
    if unicodedata.category(repaired) == "Cc":  # 'Â…' would become a control character
        return run
    if run[0] in "Âðâ":
        return repaired
    before = match.string[match.start() - 1 : match.start()]
    closes_a_word = run[1] in _CLOSERS and before.isupper()  # 'AMANHÃ”' is a word and a quotation mark
    if run[0] == "Ã":
        return run if closes_a_word else repaired
    return repaired if run[0] in "ÄÅ" and run[1] not in _CLOSERS else run


_INVISIBLE = frozenset("\u00ad\u200b\u200e\u200f\u2060\ufeff\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def strip_control(text: str) -> str:
    """Line ends become '\\n'; control characters, invisible marks and lone surrogates go; joiners of emoji stay."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(
        char
        for char in text
        if char in "\n\t" or not (char in _INVISIBLE or unicodedata.category(char) in ("Cc", "Cs"))
    )


def normalise_unicode(text: str) -> str:
    """Canonical composition (NFC): 'é' as one character however it was typed."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def collapse_whitespace(text: str) -> str:
    """Runs of blanks become one blank, runs with a line break one line break; the ends are stripped."""
    if "\n" not in text:
        return " ".join(text.split())
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def strip_ends(text: str) -> str:
    """White space at both ends goes; what is inside, code for instance, stays."""
    return text.strip()


TRANSFORMS: dict[str, Callable[[str], str]] = {
    function.__name__: function
    for function in (
        unescape_html,
        repair_mojibake,
        strip_control,
        normalise_unicode,
        collapse_whitespace,
        strip_ends,
    )
}


def apply(names: Iterable[str], text: str) -> str:
    """Apply the named steps in order, once.

    Raises:
        DataError: a name is not in the table.
    """
    for name in names:
        if name not in TRANSFORMS:
            raise DataError(f"unknown transform {name!r}", way_out=f"known in this version: {', '.join(TRANSFORMS)}")
        text = TRANSFORMS[name](text)
    return text
