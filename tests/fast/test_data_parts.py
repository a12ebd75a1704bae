"""Work in parts: how rows are cut up and by whom they are worked on changes no byte, and what is done is not lost."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
from data_kit import resolved, tokenizer_folder
from test_data_prepare import tickets, write

from luthier.data import refine, tokenise
from luthier.data.crew import Alone, Crew
from luthier.data.items import Item
from luthier.data.prepare import prepare
from luthier.data.privacy.ner import missing_package
from luthier.data_report import DataReport
from luthier.errors import DataError, SecretFound
from luthier.launch.crew import ProcessCrew

RULES: dict[str, Any] = {
    "privacy": {"action": "redact", "secrets": "redact"},
    "dedupe": {"near": 0.8},
    "leakage": {"near": 0.8},
    "labels": {"rename": {"return": "refund"}, "review": False},
    "filter": {"min_chars": 5},
    "split": {"group_by": "customer"},
}


def rows() -> list[dict[str, str]]:
    """With a repetition, a contradiction, personal data, an empty cell and a short text, far from each other."""
    found = tickets(90)
    found[69]["message"] = found[3]["message"]
    found[71]["message"], found[71]["intent"] = found[5]["message"], "order"
    found[72]["message"] = found[6]["message"] + "!"
    found[8]["message"] += " write to ana.lopez@shop.example"
    found[80]["message"] += " write to ana.lopez@shop.example"
    found[40]["message"], found[41]["message"] = "", "abc"
    return found


def test_rows_are_the_same_in_another_process() -> None:
    fields = [one.name for one in dataclasses.fields(Item)]
    item = Item(*(f"value of {name}" for name in fields))  # type: ignore[arg-type]
    assert pickle.loads(ForkingPickler.dumps(item)) == item  # noqa: S301 (our own)
    assert item.line == "value of line" and item.lost_tokens == "value of lost_tokens"  # type: ignore[comparison-overlap]  # noqa: PT018


def prepared(folder: Path, crew: Crew, **rules: Any) -> DataReport:
    folder.mkdir(exist_ok=True)
    write(folder / "data.csv", rows())
    return prepare(
        resolved(folder, **{**RULES, **rules}),
        tokenizer_folder=tokenizer_folder(folder / "tokenizer"),
        out=folder / "out",
        crew=crew,
    )


def written(folder: Path) -> dict[str, bytes]:
    """All files but the findings, whose hashes are keyed anew each time."""
    return {path.name: path.read_bytes() for path in (folder / "out").iterdir() if path.name != "findings.jsonl"}


def cut_small(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("luthier.data.prepare.part_rows", lambda profile: size)
    monkeypatch.setattr(tokenise, "ROWS_PER_BATCH", size)


def test_one_process_and_several_write_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_small(monkeypatch, 7)
    report = prepared(tmp_path / "alone", Alone())
    with ProcessCrew(2) as crew:
        assert prepared(tmp_path / "crew", crew) == report
    assert written(tmp_path / "alone") == written(tmp_path / "crew")
    assert {"duplicate", "conflicting_labels", "near_duplicate", "empty_input", "too_short"} <= set(report.dropped)


def test_the_size_of_the_parts_changes_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepared(tmp_path / "whole", Alone())
    cut_small(monkeypatch, 4)
    parts = prepared(tmp_path / "parts", Alone())
    hashes = {"splits": {split: one.model_copy(update={"sha256": ""}) for split, one in whole.splits.items()}}
    for split, one in parts.splits.items():  # the rows are the same, in other batches
        assert one.model_copy(update={"sha256": ""}) == hashes["splits"][split]
    assert parts.model_copy(update={"splits": {}}) == whole.model_copy(update={"splits": {}})


class Looks:
    """A crew that looks at the cells that rows still have after each pass."""

    def __init__(self) -> None:
        self.columns: list[set[str]] = []

    def each(self, work: Callable[[Any], Any], parts: Iterable[Any]) -> Iterator[Any]:
        for part in parts:
            made = work(part)
            if isinstance(work, refine.Pass):
                self.columns.append({column for item in made.items for column in item.values})
            yield made


@pytest.mark.parametrize(
    ("rules", "after"),
    [
        ({"too_long": "cut_end"}, [{"customer"}, set()]),  # cut before rows are named
        ({"too_long": "cut_end", "split": {"by_time": "received"}}, [{"customer", "received"}, {"received"}]),
        ({}, [set()]),
    ],
)
def test_cells_that_nothing_asks_for_are_not_held(tmp_path: Path, rules: dict[str, Any], after: list[set[str]]) -> None:
    write(tmp_path / "data.csv", [{**row, "received": f"2026-03-{n % 28 + 1:02}"} for n, row in enumerate(rows())])
    split = {**RULES["split"], "stratify": False, **rules.get("split", {})}
    recipe, looks = resolved(tmp_path, **{**RULES, **rules, "split": split}), Looks()
    prepare(recipe, tokenizer_folder=tokenizer_folder(tmp_path / "tokenizer"), out=tmp_path / "out", crew=looks)
    assert looks.columns == after


def test_pseudonyms_of_all_parts_are_in_the_mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_PRIVACY_KEY", "k" * 32)
    monkeypatch.setenv("LUTHIER_MAPPING_PASSPHRASE", "a long enough phrase")
    seen = []
    monkeypatch.setattr(
        "luthier.data.steps.privacy.write_mapping", lambda path, mapping, passphrase: seen.append(mapping)
    )
    rules = {"action": "pseudonymise", "secrets": "redact", "keep_mapping": "map.json"}
    for size in (1000, 7):
        cut_small(monkeypatch, size)
        prepared(tmp_path / str(size), Alone(), privacy=rules)
    assert seen[0] == seen[1] != {}


class Interrupted(Exception):
    """Stands for a kill."""


class DiesAfter:
    """A crew that does so many parts of the tokens and is gone."""

    def __init__(self, parts: int) -> None:
        self.left = parts

    def each(self, work: Callable[[Any], Any], parts: Iterable[Any]) -> Iterator[Any]:
        for part in parts:
            if isinstance(work, tokenise.RenderPart):
                if not self.left:
                    raise Interrupted
                self.left -= 1
            yield work(part)


def test_what_was_tokenised_before_a_crash_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_small(monkeypatch, 7)
    prepared(tmp_path / "whole", Alone())
    with pytest.raises(Interrupted):
        prepared(tmp_path / "cut", DiesAfter(5))
    left = sorted((tmp_path / "cut" / "out" / "parts").glob("*.arrow"))
    assert len(left) == 5
    made: list[Path] = []
    writer = tokenise.shard_writer
    monkeypatch.setattr(tokenise, "shard_writer", lambda path: (made.append(path), writer(path))[1])
    prepared(tmp_path / "cut", Alone())
    assert made
    assert not set(made) & set(left)
    assert written(tmp_path / "whole") == written(tmp_path / "cut")
    assert not (tmp_path / "cut" / "out" / "parts").exists()


def test_parts_of_other_settings_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_small(monkeypatch, 7)
    prepared(tmp_path / "whole", Alone(), filter={"min_chars": 6})
    with pytest.raises(Interrupted):
        prepared(tmp_path / "cut", DiesAfter(5))
    prepared(tmp_path / "cut", Alone(), filter={"min_chars": 6})
    assert written(tmp_path / "whole") == written(tmp_path / "cut")


def test_faults_of_all_parts_are_told_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_small(monkeypatch, 7)
    found = rows()
    for place in (1, 50):
        found[place]["message"] += " key AKIAIOSFODNN7EXAMPLE"
    monkeypatch.setattr("test_data_parts.rows", lambda: found)
    with pytest.raises(SecretFound, match=r"^2 secrets in the data: data\.csv:3 .*data\.csv:52"):
        prepared(tmp_path / "a", Alone(), privacy={"action": "report", "secrets": "stop"})
    with pytest.raises(DataError, match=r"data\.labels\.rename: no row has the label 'gone'\n  -> .*order, refund"):
        prepared(tmp_path / "b", Alone(), privacy={"action": "redact", "secrets": "redact"},
                 labels={"rename": {"gone": "refund"}, "review": False})  # fmt: skip


def test_chat_rows_are_read_from_the_column_of_the_first_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_small(monkeypatch, 7)
    chats = [
        {"talk": [{"role": "user", "content": row["message"]}, {"role": "assistant", "content": f"Reply {number}"}]}
        for number, row in enumerate(tickets(30))
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats), encoding="utf-8")
    report = prepare(
        resolved(tmp_path, path="data.jsonl", task="generation", input="", label="", **{**RULES, "labels": {},
                 "split": {}, "filter": None}),
        tokenizer_folder=tokenizer_folder(tmp_path / "tokenizer"),
        out=tmp_path / "out",
    )  # fmt: skip
    assert report.rows_out == 30 - sum(report.dropped.values()) > 20


@pytest.mark.skipif(bool(missing_package()), reason=f"{missing_package()} is not installed")
def test_what_becomes_of_a_part_can_be_sent_whatever_looks_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []

    class Sends(Alone):
        def each(self, work: Callable[[Any], Any], parts: Iterable[Any]) -> Iterator[Any]:
            for part in parts:
                made = ForkingPickler.loads(
                    ForkingPickler.dumps(ForkingPickler.loads(ForkingPickler.dumps(work))(part))
                )
                sent.append(made)
                yield made

    cut_small(monkeypatch, 50)
    privacy = {"action": "redact", "secrets": "redact", "profile": "balanced"}
    plain = prepared(tmp_path / "plain", Alone(), privacy=privacy)
    assert prepared(tmp_path / "sent", Sends(), privacy=privacy) == plain
    assert sent


def test_a_model_looks_at_fewer_rows_at_a_time() -> None:
    assert refine.part_rows("balanced") == refine.part_rows("maximum") < refine.part_rows("fast")
