"""Input templates such as '{title}: {body}': the one grammar, for everyone who reads or writes them.

'{column}' stands for a column; blanks around the name do not count. '{{' and '}}' are braces. A name that holds a
brace, begins with a quote or begins or ends with a blank is written as a JSON text: '{"odd } name"}'.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from luthier.errors import RecipeError

_PIECE = re.compile(
    r'\{\{|\}\}|\{\s*(?P<quoted>"(?:[^"\\]|\\.)*")\s*\}|\{\s*(?P<plain>[^\s{}"][^{}]*)\}|[{}]', re.DOTALL
)
_PLAIN = re.compile(r'[^\s{}"](?:[^{}]*[^\s{}])?')


@dataclass(frozen=True)
class Field:
    """The place of a column in a template."""

    name: str


@lru_cache(maxsize=64)  # asked for every row
def parse(template: str) -> tuple[str | Field, ...]:
    """Literal texts and fields, in order.

    Raises:
        RecipeError: a brace is neither part of '{column}' nor doubled, or no column is named.
    """
    parts: list[str | Field] = []
    end = 0
    for match in _PIECE.finditer(template):
        parts.append(template[end : match.start()])
        end = match.end()
        if match["quoted"] is not None:
            parts.append(Field(_unquoted(match["quoted"], template)))
        elif match["plain"] is not None:
            parts.append(Field(match["plain"].rstrip()))
        elif match[0] in "{}":
            raise RecipeError(
                f"data.train[0].input: {template!r}: the brace at {match.start()} stands alone",
                way_out="write '{column}' for a column and '{{' or '}}' for a brace",
            )
        else:
            parts.append(match[0][0])
    parts.append(template[end:])
    if not any(isinstance(part, Field) for part in parts):
        raise RecipeError(f"data.train[0].input: {template!r} names no column", way_out="write e.g. '{text}'")
    return tuple(part for part in parts if part != "")


def fields(template: str) -> tuple[str, ...]:
    """Columns that the template names, in order, each once; see `parse` for what it raises."""
    return tuple(dict.fromkeys(part.name for part in parse(template) if isinstance(part, Field)))


def literals(template: str) -> str:
    """What the template says itself, without its columns; see `parse` for what it raises."""
    return "".join(part for part in parse(template) if isinstance(part, str))


def render(template: str, text_of: Callable[[str], str]) -> str:
    """The template with its columns filled in; what a cell holds is never read as a template."""
    return "".join(part if isinstance(part, str) else text_of(part.name) for part in parse(template))


def field(name: str) -> str:
    """How a template names this column, whatever its name is."""
    return f"{{{name if _PLAIN.fullmatch(name) else json.dumps(name, ensure_ascii=False)}}}"


def _unquoted(quoted: str, template: str) -> str:
    try:
        return str(json.loads(quoted, strict=False))
    except ValueError as error:
        raise RecipeError(
            f"data.train[0].input: {template!r}: {quoted} is not a JSON text",
            way_out='write \'{"name"}\' with \\" and \\\\',
        ) from error
