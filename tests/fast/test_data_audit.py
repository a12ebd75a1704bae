"""The supervision audit counts what is in the shard: as one would by hand, and in shards made wrong on purpose."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_cut import made, rows_of, text_of, tickets

from luthier.data import tokenise
from luthier.data.audit import supervision
from luthier.data.contract import Renderer
from luthier.data.shards import Example, Shard, write_shard
from luthier.errors import DataError

END = (7, 8)
TOKEN = st.tuples(st.sampled_from([1, 7, 8]), st.booleans())
ROW = st.tuples(st.lists(TOKEN, min_size=1, max_size=9), st.sampled_from("ab"), st.integers(0, 3))


def row(number: int, tokens: list[tuple[int, bool]], label: str, lost: int) -> Example:
    ids, marks = [token for token, _ in tokens], [on for _, on in tokens]
    user = min(1, sum(marks))
    return Example(number, "", "", label, 0, ids, marks, supervised_user=user, lost_tokens=lost)


def stretches(one: Example) -> list[tuple[int, int]]:
    found, start = [], None
    for place, on in enumerate([*one.supervised, False]):
        if on and start is None:
            start = place
        if not on and start is not None:
            found.append((start, place))
            start = None
    return found


@settings(deadline=None)
@given(made_of=st.lists(ROW, max_size=8))
def test_it_counts_as_one_would_by_hand(
    tmp_path_factory: pytest.TempPathFactory, made_of: list[tuple[list[tuple[int, bool]], str, int]]
) -> None:
    rows = [row(number, *one) for number, one in enumerate(made_of)]
    path = tmp_path_factory.mktemp("audit") / "a.arrow"
    write_shard(path, rows)
    found = supervision(Shard(path), end_ids=END, closed=True)
    counts = sorted(sum(one.supervised) for one in rows)
    assert found.rows_unsupervised == counts.count(0)
    assert (found.per_row_min, found.per_row_max) == ((counts[0], counts[-1]) if rows else (0, 0))
    assert sum(found.per_row_counts) == len(rows)
    parts = [(one, start, stop) for one in rows for start, stop in stretches(one)]
    assert found.stretches == len(parts)
    ended = [
        (one, stop) for one, start, stop in parts if stop - start >= 2 and tuple(one.input_ids[stop - 2 : stop]) == END
    ]
    assert found.stretches_ended == len(ended)
    assert found.rows_ended == sum(stop == len(one.input_ids) for one, stop in ended)
    assert sum(found.by_role.values()) == sum(counts) == sum(found.by_label.values())
    assert found.by_role["user"] == sum(one.supervised_user for one in rows)
    assert found.rows_cut == sum(one.lost_tokens > 0 for one in rows)
    assert found.tokens_lost == sum(one.lost_tokens for one in rows)
    assert found.first_cut_lines == tuple(one.line for one in rows if one.lost_tokens)


def test_the_report_counts_the_shards(tmp_path: Path) -> None:
    report = made(tmp_path, tickets(), max_length=128, too_long="cut_middle")
    rows = rows_of(tmp_path)
    assert report.end_of_turn_supervised
    assert report.truncated_rows == 20 == sum(one.lost_tokens > 0 for one in rows.values())
    for split in report.splits.values():
        audit = split.supervision
        assert audit is not None
        assert (audit.rows_unsupervised, audit.rows_ended) == (0, split.rows)
        assert audit.by_role == {"system": 0, "user": 0, "assistant": split.supervised_tokens}
        assert set(audit.by_label) == set(split.labels)
    lost = [split.supervision.tokens_lost for split in report.splits.values() if split.supervision]
    assert sum(lost) == sum(one.lost_tokens for one in rows.values()) > 0


def test_an_end_of_turn_that_is_not_learned_shows_in_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of each row is taken out, and rows are spoilt: the count over the shard still sees it."""
    real = Renderer.all_answer_ids
    monkeypatch.setattr(Renderer, "all_answer_ids", lambda self, texts: [ids[:-1] for ids in real(self, texts)])
    with pytest.raises(DataError, match=r"^60 rows would teach something wrong: an answer's end .*: data\.csv:2, .*:6"):
        made(tmp_path, tickets())
    monkeypatch.setattr(tokenise, "fault_of", lambda *_: "")
    shutil.rmtree(tmp_path / "out" / "parts")  # what was tokenised before is not looked at again
    report = made(tmp_path, tickets())
    assert not report.end_of_turn_supervised


def test_faulty_rows_are_named_with_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tokenise.RenderPart._write_pairs

    def spoilt(self: Any, rows: Any, renderer: Any, writer: Any, made: Any) -> None:
        whole(self, rows, renderer, writer, made)
        made.faults.update({p: "no token is supervised" for p, row in enumerate(rows) if row.text == text_of(4)})

    monkeypatch.setattr(tokenise.RenderPart, "_write_pairs", spoilt)
    with pytest.raises(DataError, match=r"^1 row would teach something wrong: no token is supervised: data\.csv:6\n"):
        made(tmp_path, tickets())
