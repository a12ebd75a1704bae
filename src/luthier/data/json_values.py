"""JSON without its traps: a key given twice, values nested too deeply, numbers that are none."""

from __future__ import annotations

import json
from collections.abc import Iterator

from luthier.data.read import Fault, Row, bad_text

_DEEPEST = 64


class DuplicateKey(ValueError):
    """Of two values under one key, `json` would keep the last and say nothing."""


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise DuplicateKey
    return made


def _constant(name: str) -> str | None:
    """Python writes NaN where a value is missing."""
    return None if name == "NaN" else name


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def parse_row(line: int, text: str) -> Row | Fault:
    """The row of a text that holds one JSON object."""
    try:
        value = DECODER.decode(text)
    except ValueError as error:
        return Fault(line, *(bad_text([text]) or json_fault(error)), text=text)
    except RecursionError:
        return Fault(line, "invalid_json", "nested too deeply", text=text)
    return as_row(line, value, text)


def as_row(line: int, value: object, text: str) -> Row | Fault:
    """A parsed value as a row, with the text that it was parsed from."""
    if not isinstance(value, dict):
        return Fault(line, "not_an_object", f"found {type(value).__name__}", text=text)
    if text.count("[") + text.count("{") > _DEEPEST and _is_deep(value):
        return Fault(line, "invalid_json", "nested too deeply", text=text)
    bad = bad_text([text]) or (bad_text(_texts(value)) if "\\u" in text else None)
    return Fault(line, *bad, text=text) if bad else Row(line, value)


def json_fault(error: ValueError) -> tuple[str, str]:
    """Reason and detail, without the text: JSON's own message, or the limit on the digits of an integer."""
    if isinstance(error, DuplicateKey):
        return "duplicate_key", "a key stands twice in one object"
    if isinstance(error, json.JSONDecodeError):
        return "invalid_json", f"{error.msg} at character {error.colno}"
    return "invalid_json", "too long a number"


def _is_deep(value: object) -> bool:
    level, depth = [value], 0
    while level:
        depth += 1
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return depth > _DEEPEST


def _texts(value: object) -> Iterator[str]:
    """Every text inside a JSON value."""
    stack = [value]
    while stack:
        one = stack.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            stack += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            stack += one
