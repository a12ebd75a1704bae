"""Arrow IPC, as a file (Feather) or as a stream (what `datasets` writes)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from luthier.data.arrow_rows import batch_rows, class_names
from luthier.data.read import Fault, Row
from luthier.data.source import Source, refuse_twice
from luthier.errors import DataError


def look(source: Source, start: str) -> Source:
    """Read the schema and as many batches as it takes to find a row."""
    with _opened(source) as (schema, batches):
        names = tuple(schema.names)
        if not names:
            raise DataError(f"{source.path} has no columns", way_out="give a file with columns")
        refuse_twice(source.path, names)
        if not any(batch.num_rows for batch in batches):
            raise DataError(f"{source.path} holds no rows", way_out="give a file with rows")
    return replace(source, columns=names)


def read(source: Source) -> Iterator[Row | Fault]:
    """All rows, batch by batch, from mapped memory."""
    with _opened(source) as (schema, batches):
        yield from batch_rows(batches, class_names(schema))


@contextmanager
def _opened(source: Source) -> Iterator[tuple[Any, Iterator[Any]]]:
    """Schema and batches.

    Raises:
        DataError: damaged, where it is opened or later.
    """
    import pyarrow as pa

    try:
        with pa.memory_map(str(source.path)) as mapped:
            if mapped.read(6) == b"ARROW1":
                file = pa.ipc.open_file(mapped)
                yield file.schema, (file.get_batch(index) for index in range(file.num_record_batches))
            else:
                mapped.seek(0)
                stream = pa.ipc.open_stream(mapped)
                yield stream.schema, iter(stream)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{source.path} is not a readable Arrow file: {error}", way_out="fetch or write it again"
        ) from error
