"""Rows that merged runs have met are no test of the merge, and do not choose among its parts."""

from __future__ import annotations

from pathlib import Path

import samples
from echo_engine import contract

from luthier.data.learned_before import REASON, set_aside_learned
from luthier.data.shards import Example, Shard, write_shard
from luthier.data_report import DataReport
from luthier.store.files import sha256_file, write_atomic

Rows = list[tuple[int, str, str]]
"""Line, group and text."""


def folder(place: Path, *, train: Rows, validation: Rows = (), test: Rows = (), source: str = "f" * 64) -> Path:  # type: ignore[assignment]
    place.mkdir()
    for split, rows in (("train", train), ("validation", validation), ("test", test)):
        made = [
            Example(line, group, text, "a" if line % 2 else "b", 1, [1, 2], [False, True]) for line, group, text in rows
        ]
        write_shard(place / f"{split}.arrow", made)
    write_atomic(place / "contract.json", contract(input="Say: {text}").to_json())
    report = samples.data_report()
    changes = {"source_sha256": {"d.csv": source}, "leakage": (), "fates": (), "dropped": {}, "rows_out": 10}
    write_atomic(place / "report.json", report.model_copy(update=changes).to_json())
    return place


def kinds(place: Path) -> list[str]:
    return [row.contaminated for row in Shard(place / "test.arrow")]


def marked(tmp_path: Path, ours: Path, *learned: Path, threshold: float | None = None) -> dict[str, int]:
    file = tmp_path / "d.csv"
    file.write_text("")
    named = {place.name: place for place in learned}
    return dict(set_aside_learned(ours, named, file="d.csv", rows_file=file, threshold=threshold))


def test_test_rows_that_a_run_learned_or_was_chosen_by_are_marked(tmp_path: Path) -> None:
    ours = folder(
        tmp_path / "ours", train=[(1, "g0", "own")],
        test=[(2, "g1", "Say: seen before"), (3, "g2", "Say: chosen by"), (4, "g3", "Say: new"), (5, "g4", "Say: own")],
    )  # fmt: skip
    one = folder(tmp_path / "one", train=[(9, "g0", "Say: SEEN   before")], source="1" * 64)
    other = folder(
        tmp_path / "other", train=[(9, "g0", "z")], validation=[(8, "g0", "Say: chosen by")], source="2" * 64
    )
    assert marked(tmp_path, ours, one, other) == {"test": 2}
    assert kinds(ours) == ["exact", "exact", "", ""]  # what the recipe's own training split holds, nobody learns
    report = DataReport.read(ours / "report.json")
    assert report.splits["test"].contaminated == 2
    assert report.splits["test"].sha256 == sha256_file(ours / "test.arrow")
    assert [(leak.split, leak.exact) for leak in report.leakage] == [("test", 2)]
    assert report.rows_out == 10


def test_validation_rows_that_a_run_learned_are_set_aside_and_their_fate_told(tmp_path: Path) -> None:
    rows: Rows = [(2, "g1", "Say: seen"), (3, "g2", "Say: new"), (4, "g3", "Say: chosen by")]
    ours = folder(tmp_path / "ours", train=[(1, "g0", "own")], validation=rows, test=[(7, "g7", "Say: t")])
    one = folder(
        tmp_path / "one", train=[(9, "g0", "Say: seen")], validation=[(8, "g0", "Say: chosen by")], source="1" * 64
    )
    assert marked(tmp_path, ours, one) == {"validation": 1}  # those that chose a run's weights may choose among runs
    assert [row.line for row in Shard(ours / "validation.arrow")] == [3, 4]
    report = DataReport.read(ours / "report.json")
    assert (report.splits["validation"].rows, report.dropped, report.rows_out) == (2, {REASON: 1}, 9)
    assert [(fate.file, fate.line, fate.reason) for fate in report.fates] == [("d.csv", 2, REASON)]


def test_nearly_the_same_text_counts_where_it_is_asked_for_and_of_its_own_label(tmp_path: Path) -> None:
    text = "Say: the order of the long guitar was late again on monday"
    rows: Rows = [(3, "g1", text + "!"), (4, "g2", text + "?")]
    one = folder(tmp_path / "one", train=[(9, "g0", text)], source="1" * 64)  # line 9: label a, like line 3
    ours = folder(tmp_path / "ours", train=[(1, "g0", "own")], test=rows)
    assert marked(tmp_path, ours, one) == {}
    assert marked(tmp_path, ours, one, threshold=0.8) == {"test": 1}
    assert kinds(ours) == ["near", ""]


def test_groups_are_compared_by_the_lines_of_the_same_file(tmp_path: Path) -> None:
    """On disk groups have numbers that mean something else in each run."""
    ours = folder(tmp_path / "ours", train=[(1, "g0", "p"), (2, "g1", "q")], test=[(3, "g0", "r"), (4, "g2", "s")])
    one = folder(tmp_path / "one", train=[(1, "g5", "other words")])
    assert marked(tmp_path, ours, one) == {"test": 1}
    assert kinds(ours) == ["group", ""]


def test_other_files_beside_do_not_hide_the_groups_and_splits_of_their_own_have_other_lines(tmp_path: Path) -> None:
    def with_files(place: Path, **changes: object) -> Path:
        report = DataReport.read(place / "report.json")
        sources = {**report.source_sha256, "bench.csv": "b" * 64}
        write_atomic(place / "report.json", report.model_copy(update={"source_sha256": sources, **changes}).to_json())
        return place

    rows: Rows = [(3, "g0", "r"), (4, "g2", "s")]
    for number, (ours_own, their_own) in enumerate([((), ()), (("test",), ()), ((), ("validation",))]):
        ours = folder(tmp_path / f"ours{number}", train=[(1, "g0", "p"), (2, "g2", "q")], test=rows)
        one = folder(tmp_path / f"one{number}", train=[(1, "g5", "other")], validation=[(2, "g6", "words")])
        marked(tmp_path, with_files(ours, own_files=ours_own), with_files(one, own_files=their_own))
        assert kinds(ours) == ["group", "" if their_own else "group"]


def test_wording_of_other_templates_does_not_hide_a_text(tmp_path: Path) -> None:
    ours = folder(tmp_path / "ours", train=[(1, "g0", "p")], test=[(3, "g3", "Say: seen before")])
    one = folder(tmp_path / "one", train=[(9, "g0", "Seen before")], source="1" * 64)
    write_atomic(one / "contract.json", contract(input="{text}").to_json())
    assert marked(tmp_path, ours, one) == {"test": 1}


def test_groups_of_another_file_say_nothing(tmp_path: Path) -> None:
    ours = folder(tmp_path / "ours", train=[(1, "g0", "p")], test=[(3, "g0", "r")])
    one = folder(tmp_path / "one", train=[(1, "g0", "other words")], source="1" * 64)
    untouched = sha256_file(ours / "test.arrow")
    assert marked(tmp_path, ours, one) == {}
    assert sha256_file(ours / "test.arrow") == untouched


def test_doing_it_twice_is_doing_it_once(tmp_path: Path) -> None:
    ours = folder(tmp_path / "ours", train=[(1, "g0", "p")], test=[(3, "g3", "Say: seen"), (4, "g4", "Say: new")])
    one = folder(tmp_path / "one", train=[(9, "g0", "Say: seen")], source="1" * 64)
    assert marked(tmp_path, ours, one) == {"test": 1}
    before = DataReport.read(ours / "report.json")
    assert marked(tmp_path, ours, one) == {}
    assert DataReport.read(ours / "report.json") == before
