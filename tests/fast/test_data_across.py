"""Test rows that another task learns do not count."""

from __future__ import annotations

from pathlib import Path

import echo_engine
import samples

from luthier.data.across import mark_seen_elsewhere
from luthier.data.shards import Example, Shard, write_shard
from luthier.data_report import DataReport
from luthier.store.files import sha256_file, write_atomic


def folder(place: Path, *, train: list[str], test: list[tuple[str, str]], template: str = "{text}") -> Path:
    place.mkdir()
    for split, rows in (("train", [(text, "") for text in train]), ("test", test)):
        made = [
            Example(line, f"g{line}", text, "a", 1, [1, 2], [False, True], contaminated=seen)
            for line, (text, seen) in enumerate(rows, start=2)
        ]
        write_shard(place / f"{split}.arrow", made)
    report = samples.data_report()
    splits = {**report.splits, "test": report.splits["test"].model_copy(update={"rows": len(test), "contaminated": 1})}
    write_atomic(place / "contract.json", echo_engine.contract(name=place.name, input=template).to_json())
    write_atomic(place / "report.json", report.model_copy(update={"splits": splits}).to_json())
    return place


def test_rows_that_another_task_learns_are_marked_and_told(tmp_path: Path) -> None:
    one = folder(tmp_path / "a", train=["x", "y"], test=[("p", ""), ("q", "near"), ("r", "")])
    other = folder(tmp_path / "b", train=["p", "q", "z"], test=[("s", "")])
    untouched = sha256_file(other / "test.arrow")
    before = DataReport.read(one / "report.json")
    exact = next(leak.exact for leak in before.leakage if leak.split == "test")
    assert mark_seen_elsewhere({"a": one, "b": other}) == {"a": 1, "b": 0}
    assert [row.contaminated for row in Shard(one / "test.arrow")] == ["exact", "near", ""]
    after = DataReport.read(one / "report.json")
    assert after.splits["test"].contaminated == 2
    assert after.splits["test"].sha256 == sha256_file(one / "test.arrow")
    assert next(leak.exact for leak in after.leakage if leak.split == "test") == exact + 1
    assert sha256_file(other / "test.arrow") == untouched


def test_templates_capitals_and_white_space_do_not_hide_that_it_is_the_same_text(tmp_path: Path) -> None:
    one = folder(tmp_path / "a", train=["x"], test=[("Where is  MY cello", ""), ("another", "")])
    other = folder(tmp_path / "b", train=["Review: where is my cello"], test=[("s", "")], template="Review: {text}")
    assert mark_seen_elsewhere({"a": one, "b": other}) == {"a": 1, "b": 0}


def test_a_task_does_not_mark_what_it_learns_itself(tmp_path: Path) -> None:
    """That is what its own leakage step does, by its own rules."""
    one = folder(tmp_path / "a", train=["p"], test=[("p", "")])
    other = folder(tmp_path / "b", train=["z"], test=[("s", "")])
    assert mark_seen_elsewhere({"a": one, "b": other}) == {"a": 0, "b": 0}
