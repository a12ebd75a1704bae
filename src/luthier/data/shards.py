"""Tokens on disk: one Arrow IPC file a split, uncompressed, so that it can be memory-mapped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from luthier.errors import RunError
from luthier.records import Contamination
from luthier.store.files import write_atomic

SCHEMA = pa.schema(
    [
        ("line", pa.int64()),
        ("group", pa.string()),
        ("text", pa.string()),
        ("answer", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("input_ids", pa.list_(pa.int32())),
        ("supervised", pa.list_(pa.bool_())),
        ("contaminated", pa.string()),
    ],
    metadata={"luthier": "shard/2"},
)


@dataclass(frozen=True, slots=True)
class Example:
    """One row, ready to be learned from or to be asked."""

    line: int
    """1-based line of the source file where the row starts."""
    group: str
    """Rows of one group never stand in two splits; intervals resample groups."""
    text: str
    """The (last) user turn, cleaned and redacted."""
    answer: str
    """The (last) answer, without end of turn."""
    prompt_ids: list[int]
    """Everything up to the (last) answer."""
    input_ids: list[int]
    """The whole row; `prompt_ids` is its prefix."""
    supervised: list[bool]
    """As long as `input_ids`: true where the token belongs to an answer or its end of turn."""
    contaminated: Contamination = ""
    """How training has seen a row of test, which then does not count; '' for all other rows."""


def write_shard(path: Path, examples: Sequence[Example]) -> None:
    """Write `examples` to `path` in one atomic step; the same examples give the same bytes.

    Raises:
        DiskFull: there is no room for the file.
    """
    columns = [pa.array([getattr(example, field.name) for example in examples], field.type) for field in SCHEMA]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA))
    write_atomic(path, sink.getvalue().to_pybytes())


def read_shard(path: Path) -> list[Example]:
    """Read back what `write_shard` wrote.

    Raises:
        RunError: the file is missing, damaged, or no shard of this version.
    """
    way_out = "run `luthier prepare` again"
    if not path.is_file():
        raise RunError(f"{path} is missing", way_out=way_out)
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
            table = reader.read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise RunError(f"{path} is damaged: {error}", way_out=way_out) from error
    if not table.schema.equals(SCHEMA, check_metadata=True):
        raise RunError(f"{path} is not a shard of this version, its columns are {table.column_names}", way_out=way_out)
    columns = [_values(table.column(field.name).combine_chunks(), field.type) for field in SCHEMA]
    return [Example(*row) for row in zip(*columns, strict=True)]


def _values(column: Any, kind: Any) -> list[Any]:
    """Python values of an Arrow column; lists are cut out of one flat list, ten times faster than to_pylist."""
    if not pa.types.is_list(kind):
        return list(column.to_pylist())
    flat = column.flatten().to_numpy(zero_copy_only=False).tolist()
    ends = column.value_lengths().to_numpy(zero_copy_only=False).cumsum().tolist()
    return [flat[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)] if ends else []
