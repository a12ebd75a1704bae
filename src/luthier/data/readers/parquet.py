"""Parquet, streamed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from luthier.data.arrow_rows import ROWS_AT_ONCE, batch_rows, class_names
from luthier.data.read import Fault, Row
from luthier.data.source import Source, refuse_twice
from luthier.errors import DataError


def look(source: Source, start: str) -> Source:
    """Read the footer."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = source.path
    try:
        with pq.ParquetFile(path) as file:
            names, count = tuple(file.schema_arrow.names), file.metadata.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}", way_out="fetch or write it again") from error
    if not names:
        raise DataError(f"{path} has no columns", way_out="give a file with columns")
    if not count:
        raise DataError(f"{path} holds no rows", way_out="give a file with rows")
    refuse_twice(path, names)
    return replace(source, columns=names)


def read(source: Source) -> Iterator[Row | Fault]:
    """All rows, some hundred at once in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(source.path) as file:
            names = class_names(file.schema_arrow)
            for item in batch_rows(file.iter_batches(batch_size=ROWS_AT_ONCE), names):
                number = item.line
                yield item
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{source.path}: damaged after row {number}: {error}", way_out="fetch or write it again"
        ) from error
