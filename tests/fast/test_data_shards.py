"""A shard gives back what was written, and says when it cannot."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.shards import (
    MARKS,
    ROWS_PER_BATCH,
    Example,
    Shard,
    distribute,
    pairs_batch,
    shard_writer,
    write_shard,
)
from luthier.errors import RunError
from luthier.records import Contamination, SplitName

TOKENS = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans()), max_size=9)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)


@st.composite
def rows(draw: st.DrawFn) -> Example:
    tokens = draw(TOKENS)
    ids, marks = [token for token, _ in tokens], [mark for _, mark in tokens]
    return Example(
        draw(st.integers(1, 2**40)), draw(TEXT), draw(TEXT), draw(TEXT), draw(st.integers(0, 9)), ids, marks, draw(MARK)
    )


MARK = st.sampled_from(get_args(Contamination))


def example(number: int) -> Example:
    """A row that tells which it is."""
    ids = list(range(number, number + 3 + number % 5))
    return Example(
        number + 2, f"g{number % 7}", f"text {number}", "a", 2, ids, [False, False] + [True] * (len(ids) - 2)
    )


@settings(deadline=None)
@given(st.lists(rows(), max_size=6))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, examples: list[Example]) -> None:
    path = tmp_path_factory.mktemp("shards") / "train.arrow"
    write_shard(path, examples)
    shard = Shard(path)
    assert list(shard) == [shard[place] for place in range(len(shard))] == examples
    assert shard.lengths.tolist() == [len(one.input_ids) for one in examples]
    assert shard.supervised_tokens == sum(sum(one.supervised) for one in examples)
    first = path.read_bytes()
    write_shard(path, examples)
    assert path.read_bytes() == first


def test_rows_of_several_batches_are_found_by_number(tmp_path: Path) -> None:
    made = [example(number) for number in range(2 * ROWS_PER_BATCH + 5)]
    write_shard(tmp_path / "a.arrow", made)
    shard = Shard(tmp_path / "a.arrow")
    assert len(shard) == len(made)
    for place in (0, ROWS_PER_BATCH - 1, ROWS_PER_BATCH, 2 * ROWS_PER_BATCH, len(made) - 1, -1, -len(made)):
        assert shard[place] == made[place]
    assert shard[ROWS_PER_BATCH - 2 : ROWS_PER_BATCH + 2] == made[ROWS_PER_BATCH - 2 : ROWS_PER_BATCH + 2]
    assert shard.column("line") == [row.line for row in made]
    for place in (len(made), -len(made) - 1):
        with pytest.raises(IndexError, match=f"row {place} of {len(made)}"):
            shard[place]


def test_parts_are_distributed_without_a_row_lost_or_moved(tmp_path: Path) -> None:
    made = [example(number) for number in range(ROWS_PER_BATCH + 77)]
    parts = [tmp_path / name for name in "abc"]
    for path, rows in zip(parts, (made[: ROWS_PER_BATCH + 2], [], made[ROWS_PER_BATCH + 2 :]), strict=True):
        write_shard(path, rows)
    where: list[SplitName | None] = [("train", "test", None, "train")[number % 4] for number in range(len(made))]
    paths: dict[SplitName, Path] = {split: tmp_path / f"{split}.arrow" for split in ("train", "validation", "test")}
    distribute(parts, paths, where)
    for split, path in paths.items():
        assert list(Shard(path)) == [row for row, own in zip(made, where, strict=True) if own == split]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.integers(0, 9), min_size=1), st.lists(st.integers(0, 9), min_size=1)), max_size=5)
)
def test_a_batch_of_pairs_is_the_rows_one_by_one(pairs: list[tuple[list[int], list[int]]]) -> None:
    names = [str(number) for number in range(len(pairs))]
    prompts, answers = [one for one, _ in pairs], [other for _, other in pairs]
    marks: dict[str, Any] = dict.fromkeys(MARKS, names) | {"line": range(len(pairs))}
    marks |= dict.fromkeys(("contaminated", "made_by", "parent"), [""] * len(pairs))
    marks["lost_tokens"] = [0] * len(pairs)
    for others, named in (([[] for _ in pairs], [""] * len(pairs)), (answers[::-1], names)):
        batch = pairs_batch(marks | {"rejected": named}, prompts, answers, others)
        with tempfile.TemporaryDirectory() as folder:
            with shard_writer(Path(folder) / "a.arrow") as writer:
                writer.add_batch(batch)
            shard = Shard(Path(folder) / "a.arrow")
            assert list(shard) == [
                Example(
                    number, str(number), str(number), str(number), len(prompt), prompt + answer,
                    [False] * len(prompt) + [True] * len(answer), rejected=named[number], rejected_ids=others[number],
                )
                for number, (prompt, answer) in enumerate(pairs)
            ]  # fmt: skip
            assert shard.rejected_lengths.tolist() == [len(one) for one in others]
            assert shard.supervised_tokens == sum(map(len, answers)) + sum(map(len, others))


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with shard_writer(tmp_path / "a.arrow") as writer:
            writer.add(example(1))
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_faults(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is missing\n  -> run `luthier prepare` again"):
        Shard(tmp_path / "train.arrow")
    (tmp_path / "cut.arrow").write_bytes(b"ARROW1\0\0")
    with pytest.raises(RunError, match=r"cut\.arrow is damaged"):
        Shard(tmp_path / "cut.arrow")
    with pa.ipc.new_file(str(tmp_path / "other.arrow"), pa.schema([("a", pa.int64())])):
        pass
    with pytest.raises(RunError, match=r"not a shard of this version, its columns are \['a'\]"):
        Shard(tmp_path / "other.arrow")
