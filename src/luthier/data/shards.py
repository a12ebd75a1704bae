"""Tokens on disk: one Arrow IPC file a split, uncompressed, read through a memory map by any number of processes."""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from luthier.errors import RunError
from luthier.records import Contamination, SplitName
from luthier.store.files import write_atomic_file

SHARD_VERSION = "shard/4"

SCHEMA = pa.schema(
    [
        ("line", pa.int64()),
        ("group", pa.string()),
        ("text", pa.string()),
        ("answer", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("input_ids", pa.list_(pa.int32())),
        ("supervised", pa.list_(pa.bool_())),
        ("contaminated", pa.string()),
        ("made_by", pa.string()),
        ("parent", pa.string()),
        ("supervised_user", pa.int32()),
        ("supervised_system", pa.int32()),
        ("lost_tokens", pa.int32()),
        ("rejected", pa.string()),
        ("rejected_ids", pa.list_(pa.int32())),
    ],
    metadata={"luthier": SHARD_VERSION},
)

_SCALARS = (
    "line", "group", "text", "answer", "prompt_tokens", "contaminated", "made_by", "parent", "supervised_user",
    "supervised_system", "lost_tokens", "rejected",
)  # fmt: skip

MARKS = ("line", "group", "text", "answer", "contaminated", "made_by", "parent", "lost_tokens", "rejected")
"""Columns of what is known of a row beside its tokens; an item has attributes of these names."""

ROWS_PER_BATCH = 4096
"""Rows that are held in memory while a shard is written, and that are decoded at once when it is read."""


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
    prompt_tokens: int
    """How many of `input_ids` stand before the (last) answer."""
    input_ids: list[int]
    """The whole row."""
    supervised: list[bool]
    """As long as `input_ids`: true where the token is learned, as those of answers and their ends of turn are."""
    contaminated: Contamination = ""
    """How training has seen a row of test, which then does not count; '' for all other rows."""
    made_by: str = ""
    """Technique that made a row of train from another, or 'canary'; '' for a row of a file."""
    parent: str = ""
    """File and line of the row that it was made from; '' for all other rows."""
    supervised_user: int = 0
    """Of the supervised tokens, those of the user's turns."""
    supervised_system: int = 0
    """Of the supervised tokens, those of the system's turn."""
    lost_tokens: int = 0
    """Tokens that were cut out of the text, so that the row fits."""
    rejected: str = ""
    """Of a pair: the answer that was not preferred, without end of turn; `answer` is the other one."""
    rejected_ids: list[int] = field(default_factory=list)
    """Of a pair: what stands after the prompt there, all of it supervised."""

    @property
    def num_tokens(self) -> int:
        """Of the row; of a pair, of the prompt and both answers."""
        return len(self.input_ids) + len(self.rejected_ids)

    @property
    def num_supervised(self) -> int:
        """Tokens that are learned from; the first of a row has nothing before it."""
        return sum(self.supervised[1:]) + len(self.rejected_ids)

    @property
    def prompt_ids(self) -> list[int]:
        """Everything up to the (last) answer."""
        return self.input_ids[: self.prompt_tokens]


class ShardWriter:
    """Takes rows one by one and writes them in batches."""

    def __init__(self, sink: Any) -> None:
        self._file = pa.ipc.new_file(sink, SCHEMA)
        self._rows: list[Example] = []

    def add(self, example: Example) -> None:
        """Append one row."""
        self._rows.append(example)
        if len(self._rows) == ROWS_PER_BATCH:
            self.flush()

    def add_batch(self, batch: pa.RecordBatch) -> None:
        """Append rows as they stand in another shard."""
        self.flush()
        if batch.num_rows:
            self._file.write_batch(batch)

    def flush(self) -> None:
        """Write what is held."""
        if self._rows:
            columns = [pa.array([getattr(row, one.name) for row in self._rows], one.type) for one in SCHEMA]
            self._file.write_batch(pa.record_batch(columns, schema=SCHEMA))
            self._rows.clear()

    def close(self) -> None:
        """Write the rest, and the end of the file."""
        self.flush()
        self._file.close()


@contextmanager
def shard_writer(path: Path) -> Iterator[ShardWriter]:
    """A writer whose file appears at `path` in one step when the block ends well; the same rows give the same bytes.

    Raises:
        DiskFull: there is no room for the file.
    """
    with write_atomic_file(path) as sink:
        writer = ShardWriter(sink)
        yield writer
        writer.close()


def write_shard(path: Path, examples: Iterable[Example]) -> None:
    """Write `examples` to `path` in one atomic step.

    Raises:
        DiskFull: there is no room for the file.
    """
    with shard_writer(path) as writer:
        for example in examples:
            writer.add(example)


def pairs_batch(
    marks: Mapping[str, Sequence[Any]],
    prompt_ids: Sequence[Sequence[int]],
    answer_ids: Sequence[Sequence[int]],
    rejected_ids: Sequence[Sequence[int]] | None = None,
) -> pa.RecordBatch:
    """N rows of a prompt and an answer that is supervised as a whole, as they stand in a shard; `marks` are `MARKS`.

    Of pairs there are the ids of the other answers too.
    """
    lengths_N2 = np.array([[len(prompt), len(answer)] for prompt, answer in zip(prompt_ids, answer_ids, strict=True)])
    lengths_N2 = lengths_N2.reshape(-1, 2).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths_N2.sum(axis=1))]).astype(np.int32)
    both = itertools.chain.from_iterable(zip(prompt_ids, answer_ids, strict=True))
    ids = np.fromiter(itertools.chain.from_iterable(both), dtype=np.int32, count=int(offsets[-1]))
    supervised = np.repeat(np.tile([False, True], len(lengths_N2)), lengths_N2.ravel())
    columns = {
        **{name: pa.array(marks[name], SCHEMA.field(name).type) for name in MARKS},
        "prompt_tokens": pa.array(lengths_N2[:, 0]),
        "supervised_user": pa.array(np.zeros(len(lengths_N2), np.int32)),
        "supervised_system": pa.array(np.zeros(len(lengths_N2), np.int32)),
        "input_ids": pa.ListArray.from_arrays(offsets, ids),
        "supervised": pa.ListArray.from_arrays(offsets, supervised),
        "rejected_ids": pa.array(rejected_ids or [[]] * len(lengths_N2), SCHEMA.field("rejected_ids").type),
    }
    return pa.record_batch([columns[one.name] for one in SCHEMA], schema=SCHEMA)


def distribute(sources: Sequence[Path], paths: Mapping[SplitName, Path], splits: Sequence[SplitName | None]) -> None:
    """Write the rows of `sources` to the shards of their splits, in order, without decoding them.

    Args:
        sources: shards of N rows together.
        paths: where the shard of each split goes.
        splits: of each row; None leaves it out. Shape [N].
    """
    with ExitStack() as stack:
        writers = {split: stack.enter_context(shard_writer(path)) for split, path in paths.items()}
        start = 0
        for source in sources:
            with pa.memory_map(str(source)) as mapped, pa.ipc.open_file(mapped) as reader:
                for number in range(reader.num_record_batches):
                    batch = reader.get_batch(number)
                    own = splits[start : start + batch.num_rows]
                    start += batch.num_rows
                    for split, writer in writers.items():
                        writer.add_batch(batch.filter(pa.array([one == split for one in own], pa.bool_())))
        assert start == len(splits), f"{start} rows, {len(splits)} splits"


class Part(NamedTuple):
    """Tokens of some rows, one after the other."""

    ids: NDArray[np.int32]
    supervised: NDArray[np.bool_]
    offsets: NDArray[np.int32]
    """Row r is ids[offsets[r] : offsets[r + 1]]."""


class _Batch(NamedTuple):
    """Columns of one record batch, none of them copied; lists as one flat array and the places where they begin."""

    scalars: tuple[pa.Array, ...]
    ids: NDArray[np.int32]
    supervised: pa.BooleanArray
    offsets: NDArray[np.int32]
    rejected_ids: NDArray[np.int32]
    rejected_offsets: NDArray[np.int32]


class Shard(Sequence[Example]):
    """The rows of a shard, decoded when they are asked for; the tokens stay in the mapped file.

    Raises:
        RunError: the file is missing, damaged, or no shard of this version.
    """

    def __init__(self, path: Path) -> None:
        way_out = "run `luthier prepare` again"
        if not path.is_file():
            raise RunError(f"{path} is missing", way_out=way_out)
        try:
            with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
                table = reader.read_all()
        except (pa.ArrowInvalid, OSError) as error:
            raise RunError(f"{path} is damaged: {error}", way_out=way_out) from error
        if not table.schema.equals(SCHEMA, check_metadata=True):
            raise RunError(
                f"{path} is not a shard of this version, its columns are {table.column_names}", way_out=way_out
            )
        batches = table.to_batches()
        self._columns = [_columns(batch) for batch in batches]
        self._starts = [0, *itertools.accumulate(batch.num_rows for batch in batches)]

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = bisect.bisect_right(self._starts, place) - 1
        return self._row(self._columns[number], place - self._starts[number])

    def __iter__(self) -> Iterator[Example]:
        for batch in self._columns:
            for place in range(len(batch.offsets) - 1):
                yield self._row(batch, place)

    def originals(self) -> Sequence[Example]:
        """The rows that stand in a file: no offspring, no canaries."""
        return [row for row in self if not row.made_by] if any(self.column("made_by")) else self

    @functools.cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row; shape [N]."""
        parts = [np.diff(batch.offsets) for batch in self._columns]
        return np.concatenate([np.zeros(0, np.int32), *parts]).astype(np.int64)

    @functools.cached_property
    def rejected_lengths(self) -> NDArray[np.int64]:
        """Tokens of each row's other answer, 0 where it is no pair; shape [N]."""
        parts = [np.diff(batch.rejected_offsets) for batch in self._columns]
        return np.concatenate([np.zeros(0, np.int32), *parts]).astype(np.int64)

    @property
    def supervised_tokens(self) -> int:
        """Supervised tokens of all rows, those of the other answers of pairs included."""
        own = sum(int(batch.supervised.true_count) for batch in self._columns)
        return own + int(self.rejected_lengths.sum())

    def rejected_endings(self, end: Sequence[int]) -> NDArray[np.bool_]:
        """Whether each row's other answer ends with `end`; true where it is no pair. Shape [N]."""
        found = [
            start == stop or batch.rejected_ids[max(start, stop - len(end)) : stop].tolist() == list(end)
            for batch in self._columns
            for start, stop in itertools.pairwise(batch.rejected_offsets.tolist())
        ]
        return np.array(found, dtype=np.bool_)

    def parts(self) -> Iterator[Part]:
        """Tokens of all rows, some rows at a time; ids are not copied."""
        for batch in self._columns:
            if len(batch.offsets) > 1:
                yield Part(batch.ids, batch.supervised.to_numpy(zero_copy_only=False), batch.offsets)

    def column(self, name: str) -> list[Any]:
        """Values of a column that holds one value a row."""
        place = _SCALARS.index(name)
        return [value for batch in self._columns for value in batch.scalars[place].to_pylist()]

    def _row(self, batch: _Batch, place: int) -> Example:
        line, group, text, answer, prompt_tokens, *marks = (column[place].as_py() for column in batch.scalars)
        start, end = int(batch.offsets[place]), int(batch.offsets[place + 1])
        supervised = batch.supervised.slice(start, end - start).to_pylist()
        ids = batch.ids[start:end].tolist()
        first, last = int(batch.rejected_offsets[place]), int(batch.rejected_offsets[place + 1])
        rejected_ids = batch.rejected_ids[first:last].tolist()
        return Example(line, group, text, answer, prompt_tokens, ids, supervised, *[*marks, rejected_ids])


def _columns(batch: pa.RecordBatch) -> _Batch:
    ids, supervised, rejected = (batch.column(name) for name in ("input_ids", "supervised", "rejected_ids"))
    return _Batch(
        tuple(batch.column(name) for name in _SCALARS),
        ids.values.to_numpy(zero_copy_only=True),
        supervised.values,
        ids.offsets.to_numpy(zero_copy_only=True),
        rejected.values.to_numpy(zero_copy_only=True),
        rejected.offsets.to_numpy(zero_copy_only=True),
    )
