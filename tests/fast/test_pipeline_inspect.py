"""`luthier data inspect`: what is there, what is wrong with it, and the recipe; nothing personal, nothing written."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml

from command import call
from luthier.data.privacy.profiles import NOT_LOOKED_FOR
from luthier.data.profile import profile
from luthier.pipeline.inspect import Inspection

KEY = "AKIA" + "IOSFODNN7EXAMPLE"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    with (tmp_path / "messages.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["customer", "text", "kind"])
        for number in range(90):
            text = f"where is parcel number {number}, it is late; mail ana{number}@example.org"
            writer.writerow([f"c{number // 3}", text if number else f"key {KEY} " + "x" * 200, "ab"[number % 2]])
        writer.writerow(["only one"])
        writer.writerow(["a", "b", "c", "d"])
    return tmp_path


def test_it_says_what_is_there(place: Path) -> None:
    done = call("data", "inspect", "messages.csv", cwd=place).succeeds()
    words = [
        "messages.csv: csv, utf-8, delimiter ';', 92 rows",
        "shape: text_label (classification), input '{text}', answer 'kind', rows of one 'customer' stay together",
        "cannot be read: 2 wrong_cell_count in lines 92, 93 (1 cells, the header has 3)",
        "labels: a 45, b 45",
        "line 3", "text: where is parcel number 1, it is late; mail [EMAIL]", "text: key [SECRET] xxx", "xxx...",
        NOT_LOOKED_FOR["fast"], "group_by: customer",
    ]  # fmt: skip
    for word in words:
        assert word in done.out
    assert "customer" in next(line for line in done.out.splitlines() if line.split()[1:2] == ["id"])
    for hidden in (KEY, "ana1@", "example.org"):
        assert hidden not in done.out
    assert [path.name for path in place.iterdir()] == ["messages.csv"]


def test_bad_rows_are_shown_masked(tmp_path: Path) -> None:
    lines = [f'{{"text": "parcel number {n}", "kind": "{"ab"[n % 2]}"}}' for n in range(60)]
    lines[10:10] = ['{"text": "mail ana@example.org', f'[1, "{KEY}"]', '{"a": 1, "a": 2}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    done = call("data", "inspect", "a.jsonl", cwd=tmp_path).succeeds()
    for word in (
        "1 invalid_json in lines 11",
        '  line 11: {"text": "mail [EMAIL]',
        'line 12: [1, "[SECRET]"]',
        "line 13:",
    ):
        assert word in done.out
    for hidden in ("ana@", KEY):
        assert hidden not in done.out
    seen = call("data", "inspect", "a.jsonl", "--json", cwd=tmp_path).succeeds().document
    assert [(row["line"], row["reason"]) for row in seen["bad_rows"]] == [
        (11, "invalid_json"), (12, "not_an_object"), (13, "duplicate_key"),
    ]  # fmt: skip


def test_json_is_one_document_with_the_recipe_that_init_writes(place: Path) -> None:
    done = call("data", "inspect", "messages.csv", "--json", cwd=place).succeeds()
    seen = Inspection.model_validate(done.document)
    assert not done.err
    assert [(one.reason, one.rows, one.first) for one in seen.profile.faults] == [("wrong_cell_count", 2, ("92", "93"))]
    assert [example.place for example in seen.examples] == ["2", "3", "4"]
    assert KEY not in done.out
    recipe = Path(call("init", "messages.csv", "--json", cwd=place).succeeds().document["recipe"])
    assert yaml.safe_load(seen.recipe) == yaml.safe_load((place / recipe).read_text())


def test_options_reach_the_reader(place: Path) -> None:
    call("data", "inspect", "messages.csv", "--sheet", "x", cwd=place).fails(2, "sheet is for xlsx")
    call("data", "inspect", "messages.csv", "--query", "x", cwd=place).fails(2, "query is for sqlite")
    call("data", "inspect", "messages.csv", "--format", "x", cwd=place).fails(
        2, "format 'x' is unknown", "known: arrow"
    )
    call("data", "inspect", "messages.csv", "--format", "jsonl", cwd=place).fails(2, "no row can be read as jsonl")


@pytest.mark.parametrize(
    ("header", "line", "shape", "words"),
    [],
)
def test_shapes_without_a_method_are_named_and_refused(
    tmp_path: Path, header: str, line: str, shape: str, words: str
) -> None:
    (tmp_path / "data.csv").write_text("\n".join([header, *(line.format(n=n) for n in range(60))]) + "\n")
    assert profile(tmp_path / "data.csv").shape == shape
    done = call("data", "inspect", "data.csv", cwd=tmp_path).succeeds()
    assert f"shape: {shape}" in done.out
    assert "no recipe" in done.out
    call("init", "data.csv", cwd=tmp_path).fails(2, "data.csv: its rows are", words)
