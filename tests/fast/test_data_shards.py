"""A shard gives back what was written, and says when it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.shards import Example, read_shard, write_shard
from luthier.errors import RunError
from luthier.records import Contamination

IDS = st.lists(st.integers(0, 2**31 - 1), max_size=9)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)


BOOLS = st.lists(st.booleans(), max_size=9)


MARK = st.sampled_from(get_args(Contamination))


@settings(deadline=None)
@given(st.lists(st.builds(Example, st.integers(1, 2**40), TEXT, TEXT, TEXT, IDS, IDS, BOOLS, MARK), max_size=6))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, examples: list[Example]) -> None:
    path = tmp_path_factory.mktemp("shards") / "train.arrow"
    write_shard(path, examples)
    assert read_shard(path) == examples
    first = path.read_bytes()
    write_shard(path, examples)
    assert path.read_bytes() == first


def test_faults(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is missing\n  -> run `luthier prepare` again"):
        read_shard(tmp_path / "train.arrow")
    (tmp_path / "cut.arrow").write_bytes(b"ARROW1\0\0")
    with pytest.raises(RunError, match=r"cut\.arrow is damaged"):
        read_shard(tmp_path / "cut.arrow")
    with pa.ipc.new_file(str(tmp_path / "other.arrow"), pa.schema([("a", pa.int64())])):
        pass
    with pytest.raises(RunError, match=r"not a shard of this version, its columns are \['a'\]"):
        read_shard(tmp_path / "other.arrow")
