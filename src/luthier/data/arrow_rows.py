"""Rows of Arrow batches: cells that Python cannot hold are faults of their row; class numbers become their names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from luthier.data.read import Fault, Row, bad_text

ROWS_AT_ONCE = 256
"""Few, because a batch is held whole: texts of a megabyte each are packed into a small file where they are the same."""

_MOST_ROWS, _MOST_BYTES = 8192, 1 << 26
"""Of a piece that becomes Python values at once."""


def batch_rows(batches: Iterable[Any], names: dict[str, list[str]]) -> Iterator[Row | Fault]:
    """Rows of Arrow batches of any size, numbered from 1.

    Args:
        batches: record batches.
        names: column -> class names, of columns that hold class numbers.
    """
    number = 0
    for batch in batches:
        at_once = _rows_at_once(batch)
        for start in range(0, batch.num_rows, at_once):
            for read in _values(batch.slice(start, at_once)):
                number += 1
                if isinstance(read, str):
                    yield Fault(number, "unreadable_value", read)
                    continue
                for name, classes in names.items():
                    read[name] = _class_name(read[name], classes)
                bad = bad_text(text for text in read.values() if isinstance(text, str))
                yield Fault(number, *bad, text=json.dumps(read, default=str)) if bad else Row(number, read)


def _rows_at_once(batch: Any) -> int:
    """Rows that become Python values at once; a dictionary's value counts as often as it is referred to."""
    import pyarrow as pa
    import pyarrow.compute as pc

    widest = 0
    try:
        for column in batch.columns:
            if pa.types.is_dictionary(column.type) and _has_length(column.type.value_type):
                column.dictionary.validate(full=True)
                widest += pc.max(pc.binary_length(column.dictionary)).as_py() or 0
    except pa.ArrowException:  # each row is looked at by itself, and the damaged ones are faults
        return 1
    dense = sum(column.nbytes for column in batch.columns) // max(1, batch.num_rows)
    at_once: int = _MOST_BYTES // max(1, widest + dense)
    return max(1, min(_MOST_ROWS, at_once))


def _has_length(kind: Any) -> bool:
    import pyarrow as pa

    return any(
        is_kind(kind) for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary,
                                      pa.types.is_large_binary)
    )  # fmt: skip


def _values(piece: Any) -> Iterator[dict[str, object] | str]:
    """The rows; where one holds what Python has no value for (broken text, a date after 9999), what it is.

    Arrow takes places and lengths of texts from the file as they are: without validation a damaged one reads memory
    that is not its own.
    """
    import pyarrow as pa

    try:
        piece.validate(full=True)
        rows = piece.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError):
        rows = None
    if rows is not None:
        yield from rows
        return
    for index in range(piece.num_rows):
        one = piece.slice(index, 1)
        try:
            one.validate(full=True)
            yield one.to_pylist()[0]
        except pa.ArrowException as error:
            yield "a text is not UTF-8" if "UTF8" in str(error) else "the file is damaged here"
        except (ValueError, OverflowError):
            yield "a date or number that is out of range"


def class_names(schema: Any) -> dict[str, list[str]]:
    """Column -> names of its classes, where Hugging Face's `datasets` wrote them into the schema."""
    written = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(written)["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    if not isinstance(features, dict):
        return {}
    return {
        name: [str(one) for one in feature["names"]]
        for name, feature in features.items()
        if name in schema.names
        and isinstance(feature, dict)
        and feature.get("_type") == "ClassLabel"
        and isinstance(feature.get("names"), list)
    }


def _class_name(value: object, names: list[str]) -> object:
    """The class of a number; -1 is how `datasets` writes that there is none."""
    if not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None if value == -1 else value
