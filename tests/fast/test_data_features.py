"""Columns from columns: only what stays in its row is computed; a row gives the same in a batch, alone and asked."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from data_kit import resolved, tokenizer_folder
from echo_engine import EchoEngine
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data import expressions
from luthier.data.contract import Renderer
from luthier.data.expressions import connect, parse
from luthier.data.features import Failure, Features, check_features, freeze
from luthier.data.prepare import prepare
from luthier.data.read import Fault, Row
from luthier.data.shards import Shard
from luthier.data.to_shards import SPLITS
from luthier.data_report import DataReport
from luthier.engines.ask import Asker
from luthier.engines.protocol import Score
from luthier.errors import DataError, MissingExtra, RecipeError, RunError, SecretFound, UserError
from luthier.pipeline.answers import predict
from luthier.pipeline.named import Named, Opened
from luthier.records import ColumnType, Feature, Message
from luthier.report.data import render_data
from luthier.serve.schemas import ClassifyRequest
from luthier.serve.service import Service
from luthier.spec.recipe import Recipe

ENGINE = connect()


def features(given: dict[str, str], **types: ColumnType) -> Features:
    made = [
        Feature(name=name, sql=sql, uses=parse(ENGINE, name, sql).columns, type="") for name, sql in given.items()
    ]  # fmt: skip
    return Features(made, types)


# --- a row is computed as if it were alone ----------------------------------------------------------------------------

MIXED = {
    "half": "price / 2",
    "whole": "CAST(label AS INTEGER)",  # fails where the text is no number
    "both": "concat(whole, '/', half)",
    "inverse": "count // CAST(length(label) - 1 AS BIGINT)",  # division by zero
    "month": "strftime(day, '%B')",
    "root": "sqrt(price)",  # not a number below zero
    "big": "count * 4611686018427387904",  # out of range
    "either": "CASE WHEN flag THEN CAST(label AS INTEGER) ELSE 0 END",
}
TYPES: dict[str, ColumnType] = {"price": "number", "count": "integer", "day": "date", "flag": "boolean"}
WORDS = st.sampled_from(["1", "x", "", "12", " 7", "é👩", "1e3", "a\0b"])
ROW = st.fixed_dictionaries({
    "price": st.none() | st.floats(-9, 9, allow_nan=False) | st.sampled_from(["19.90", "n/a", 5, True]),
    "count": st.none() | st.integers(-3, 3) | st.just(2**63),
    "day": st.none() | st.dates() | st.sampled_from(["2026-03-01", "yesterday"]),
    "flag": st.none() | st.booleans(),
    "label": st.none() | WORDS,
})  # fmt: skip


@pytest.mark.parametrize("chosen", [tuple(MIXED), ("half", "month"), ("whole", "either")])
def test_a_batch_of_any_size_gives_what_each_row_gives_alone(chosen: tuple[str, ...]) -> None:
    ours = features({name: MIXED[name] for name in chosen}, **TYPES)

    @settings(max_examples=12, deadline=None)
    @given(rows=st.lists(ROW, max_size=10), data=st.data())
    def holds(rows: list[dict[str, object]], data: st.DataObject) -> None:
        whole = ours.batch(rows)
        alone = [ours.batch([row])[0] for row in rows]
        assert repr(whole) == repr(alone)
        cut = data.draw(st.integers(0, len(rows)))
        assert repr(ours.batch(rows[:cut]) + ours.batch(rows[cut:])) == repr(whole)

    holds()


def test_why_is_found_out_for_the_first_hundred_rows_only() -> None:
    ours = features({"n": "CAST(a AS BIGINT)", "none": "nullif(n, 1)"})
    made = list(ours.each(Row(n, {"a": "1" if n % 9 else "x"}) for n in range(9_000)))
    details = [one.detail for one in made if isinstance(one, Fault)]
    assert details[:100] == ["data.features.n: a value cannot be cast"] * 100
    assert details[100:] == ["data.features.n: it cannot be computed, see rows above for reasons"] * 900
    assert all(one.values["none"] is None for one in made if isinstance(one, Row))


def test_a_long_batch_is_cut_and_keeps_its_order_and_faults() -> None:
    ours = features({"twice": "CAST(n AS BIGINT) * 2"})
    read = [
        Row(n, {"n": "x" if n % 1000 == 7 else str(n)}, file="f") if n % 5 else Fault(n, "bad", "")
        for n in range(20_000)
    ]
    made = list(ours.each(iter(read)))
    for n, one in enumerate(made):
        assert one.line == n
        if n % 5 == 0:
            assert one is read[n]
        elif n % 1000 == 7:
            assert isinstance(one, Fault)
            assert (one.reason, one.detail, one.file) == (
                "feature_failed",
                "data.features.twice: a value cannot be cast",
                "f",
            )
            assert json.loads(one.text) == {"n": "x"}
        else:
            assert isinstance(one, Row)
            assert one.values == {"n": str(n), "twice": 2 * n}


@pytest.mark.parametrize(
    ("sql", "row", "why"),
    [
        ("CAST(a AS INTEGER)", {"a": "ana@example.org"}, "a value cannot be cast"),
        ("1 // CAST(a AS INTEGER)", {"a": "0"}, "refuses a value, as division does zero"),
        ("1 / CAST(a AS INTEGER)", {"a": "0"}, "the result is no finite number"),
        ("CAST(a AS BIGINT) * 9", {"a": "9223372036854775807"}, "a number is out of range"),
        ("strptime(a, '%Y')", {"a": "ana"}, "a value cannot be cast|refuses a value"),
        ("CAST(a AS DATE)", {"a": "99999-01-01"}, "the result cannot be held"),
        ("ln(CAST(a AS DOUBLE))", {"a": "-1"}, "refuses a value|out of range|no finite number"),
    ],
)  # fmt: skip
def test_why_a_row_fails_is_said_without_its_content(sql: str, row: dict[str, object], why: str) -> None:
    for made in features({"first": "a", "f": sql}).batch([row, {"a": "1"}])[:1]:
        assert isinstance(made, Failure)
        assert re.search(r"^data\.features\.f: .*(" + why + ")", made.detail)
        assert str(row["a"]) not in made.detail or row["a"] == "0"
    with pytest.raises(DataError, match=r"data\.features\.f: "):
        features({"f": sql}).values(row)


def test_too_much_memory_fails_the_row_and_not_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "MEMORY_LIMIT", "48MB")
    long = {name: f"concat({', '.join([of] * 8)})" for name, of in (("b", "a"), ("c", "b"))}
    ours = features(long)
    made = ours.batch([{"a": "y"}, {"a": "x" * 2_000_000}, {"a": "z"}])
    assert isinstance(made[1], Failure)
    assert made[1].detail.startswith("data.features.c: more than")
    assert made[1].detail.endswith("of memory is needed")
    assert [made[0], made[2]] == [{"b": "y" * 8, "c": "y" * 64}, {"b": "z" * 8, "c": "z" * 64}]


def test_results_keep_their_type_and_null_stays_null() -> None:
    ours = features(
        {
            "n": "length(a)",
            "d": "CAST(b AS DECIMAL(9, 2)) * 2",
            "t": "CAST(c AS DATE)",
            "x": "a = 'é'",
            "none": "nullif(a, 'é')",
        }
    )
    made = ours.values({"a": "é", "b": "19.90", "c": "2026-03-01"})
    assert made == {
        "a": "é", "b": "19.90", "c": "2026-03-01", "n": 1, "d": Decimal("39.80"), "t": date(2026, 3, 1), "x": True,
        "none": None,
    }  # fmt: skip
    assert [feature.type for feature in ours.features] == [
        "int64",
        "decimal128(18, 2)",
        "date32[day]",
        "bool",
        "string",
    ]


def test_a_try_of_the_recipe_holds_where_the_same_is_computed_outside_of_it() -> None:
    ours = features({"safe": "TRY(CAST(a AS BIGINT))", "other": "coalesce(TRY(CAST(a AS BIGINT) + 1), 0)"})
    assert ours.batch([{"a": "x"}, {"a": "1"}]) == [{"safe": None, "other": 0}, {"safe": 1, "other": 2}]


def test_several_threads_ask_at_once() -> None:
    ours = features({"twice": "CAST(n AS BIGINT) * 2"})
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: ours.values({"n": n})["twice"], range(200)))
    assert made == [2 * n for n in range(200)]


@pytest.mark.parametrize(
    ("given", "types", "message"),
    [
        ({"f": "lower(price) + 1"}, {"price": "number"}, r"No function matches.* \(price: number\)\n  -> cast what"),
        ({"f": "INTERVAL 1 DAY"}, {}, "gives month_day_nano_interval, which has no one way"),
        ({"f": "string_split(a, ' ')"}, {}, "gives list"),
    ],
)  # fmt: skip
def test_expressions_that_do_not_fit_their_columns(given: dict[str, str], types: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=r"data\.features\.f.*" + message):
        features(given, **types)


def test_another_duckdb_that_gives_another_type_is_refused() -> None:
    with pytest.raises(RecipeError, match="gives int64, and gave string when the data was prepared"):
        Features([Feature(name="f", sql="length(a)", uses=("a",), type="string")], {})


def test_a_request_lacks_no_column_and_brings_none_that_is_computed() -> None:
    ours = features({"f": "length(message)"})
    with pytest.raises(DataError, match=r"'message', which is not there\n  -> did you mean 'mesage'"):
        ours.values({"mesage": "x"})
    with pytest.raises(DataError, match=r"the column 'f' is given, and data\.features computes it\n  -> leave it out"):
        ours.values({"message": "x", "f": 3})


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert freeze(resolved(tmp_path).recipe) == ()
    with pytest.raises(MissingExtra, match=r"data\.features needs the package 'duckdb'.*\n.*luthier\[features\]"):
        freeze(recipe({"size": "length(message)"}, "{size} {message}"))


def test_duckdb_is_not_loaded_where_nothing_is_computed() -> None:
    check = "import sys, luthier.data.prepare, luthier.pipeline.start; sys.exit('duckdb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


# --- the recipe -------------------------------------------------------------------------------------------------------


def recipe(given: dict[str, str], input: str, **data: Any) -> Recipe:
    columns = {"message": "text", "intent": "text", "price": "text", "created": "text", **data.pop("columns", {})}
    return resolved(Path(), input=input, features=given, columns=columns, **data).recipe


COLUMNS = ["message", "intent", "price", "created"]


@pytest.mark.parametrize(
    ("given", "input", "message"),
    [
        ({"f": "length(mesage)"}, "{f}",
         r"\.f names the column 'mesage', which is not there\n.*did you mean 'message'\? there are: message, intent"),
        ({"f": 'price || "usd"'}, "{f}", r"names the column 'usd'.*\n.*a text stands in 'single quotes'"),
        ({"f": "f + 1"}, "{f}", r"data\.features\.f names itself"),
        ({"f": "g + 1", "g": "length(message)"}, "{f}", r"f names 'g', a feature that stands below it"),
        ({"f": "g + 1", "g": "f + 1"}, "{f}", r"f names 'g', a feature that stands below it\n.*need each other"),
        ({"f": "current_date"}, "{f}", "f holds current_date, which is another one at another time"),
        ({"f": "Price"}, "{f}", "'Price', which is not there\n.*did you mean 'price'"),
        ({"Price": "length(message)"}, "{Price}", r"data\.features\.Price has the name of the column 'price'"),
        ({"f": "length(message)"}, "{message}", r"data\.features\.f is used by nothing\n.*write \{f\} into"),
        ({"g": "upper(intent)", "f": "lower(g)"}, "{f}", r"\.g uses the column 'intent', which is the answer"),
    ],
)  # fmt: skip
def test_names_that_do_not_fit_are_refused(given: dict[str, str], input: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_features(recipe(given, input), COLUMNS)


def test_types_of_columns_that_are_not_there_are_refused() -> None:
    made = recipe({"f": "length(message)"}, "{f}", columns={"prise": "number"})
    with pytest.raises(DataError, match=r"data\.columns names the column 'prise', which is not there\n.*'price'"):
        check_features(made, COLUMNS)


def test_columns_that_differ_in_capitals_only_are_refused() -> None:
    made = recipe({"f": "a || A"}, "{f}", columns={"a": "text", "A": "text"})
    with pytest.raises(RecipeError, match="the columns 'a' and 'A' differ in capitals only"):
        freeze(made)


def test_conversations_have_no_features(tmp_path: Path) -> None:
    made = resolved(tmp_path, task="generation", input="", label="", features={"f": "1"}).recipe
    with pytest.raises(RecipeError, match="the rows are conversations"):
        freeze(made)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"features": {"a b": "1"}}, "'a b' is no name"), ({"features": {"1a": "1"}}, "is no name"),
        ({"features": {"f": " "}}, "features.f is empty"), ({"features": {"f": "1", "F": "2"}}, "'f' stands twice"),
        ({"columns": {"price": "number"}}, "there are none"), ({"features": {"intent": "1"}}, "'intent' is a feature"),
        ({"features": {"f": "1"}, "columns": {"price": "float"}}, "columns.price"),
    ],
)  # fmt: skip
def test_recipes_that_cannot_mean_anything_are_refused(tmp_path: Path, data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolved(tmp_path, **data)


def test_features_for_the_split_alone_are_not_asked_of_a_request(tmp_path: Path) -> None:
    folder = tmp_path
    given = {"shop": "split_part(customer, '-', 1)", "size": "length(message)"}
    report = run(folder, input="[{size}] {message}", features=given, split={"group_by": "shop"})
    contract = renderer(folder).contract
    assert [feature.name for feature in contract.features] == ["size"]
    assert contract.column_types == {"message": "text"}
    assert [one.name for one in report.features] == ["shop", "size"]
    groups = {split: {one.group for one in Shard(folder / "out" / f"{split}.arrow")} for split in SPLITS}
    assert not groups["train"] & groups["test"]
    assert len(groups["train"] | groups["test"] | groups["validation"]) == 6


# --- from the file to the answer --------------------------------------------------------------------------------------

FEATURES = {
    "amount": "price * 2",
    "band": "CASE WHEN amount < 40 THEN 'cheap' ELSE 'dear' END",
    "month": "strftime(CAST(created AS DATE), '%B')",
}
INPUT = "[{band}, {month}, {price}] {message}"
PLACES = ("garden", "kitchen", "street", "cellar", "office", "school")


def tickets(count: int = 60) -> list[dict[str, Any]]:
    return [
        {
            "message": f"where is my {PLACES[n % 6]} parcel number {n * 7919 % 1009} {PLACES[n * 5 % 6]}",
            "intent": ("order", "refund")[n % 2],
            "price": 10.5 + n if n % 3 else 10 + n,
            "created": f"2026-{n % 12 + 1:02}-01",
            "customer": f"s{n % 6}-{n}",
        }
        for n in range(count)
    ]


def run(folder: Path, rows: list[dict[str, Any]] | None = None, **options: Any) -> DataReport:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows or tickets()), encoding="utf-8")
    options = {"input": INPUT, "features": FEATURES, "columns": {"price": "number"}, "max_bad_rows": 0.2} | options
    made = resolved(folder, path="data.jsonl", **options)
    return prepare(made, tokenizer_folder=tokenizer_folder(folder / "tokenizer"), out=folder / "out")


def renderer(folder: Path) -> Renderer:
    return Renderer.open(folder / "out" / "contract.json", folder / "tokenizer" / "tokenizer.json")


def asker(folder: Path) -> Asker:
    ours = renderer(folder)
    return Asker(ours.contract, ours, Listening())


class Listening(EchoEngine):
    """Remembers the prompts that it was given."""

    def __init__(self) -> None:
        super().__init__(1.0)
        self.heard: list[list[int]] = []

    def score(self, prompt_ids: Sequence[int], answers: Sequence[Sequence[int]]) -> list[Score]:
        self.heard.append([int(number) for number in prompt_ids])
        return [Score(-1.0 - place, False) for place in range(len(answers))]


def examples(folder: Path) -> list[Any]:
    return [one for split in SPLITS for one in Shard(folder / "out" / f"{split}.arrow")]


def through_predict(asked: Asker, data: Path, output: Path) -> dict[str, int]:
    return predict(asked, Opened(Named(data.name), data), output=output, progress=lambda *_: None)


def test_the_same_tokens_in_training_predict_and_both_ways_of_the_server(tmp_path: Path) -> None:
    rows = tickets()
    run(tmp_path, rows)
    ours, engine = renderer(tmp_path), Listening()
    asked = Asker(ours.contract, ours, engine)
    service = Service({"t": asked}, model_id="m", clock=lambda: 0.0)
    learned = sorted(examples(tmp_path), key=lambda one: one.line)
    assert len(learned) == len(rows)
    assert learned[0].text == "[cheap, January, 10] where is my garden parcel number 0 garden"
    assert learned[19].text.startswith("[dear, August, 29.5] ")
    trained = [one.prompt_ids for one in learned]
    raw = [{name: row[name] for name in ("message", "price", "created")} for row in rows]

    for row in raw:
        asked.answer_values(row)
    assert engine.heard == trained

    engine.heard.clear()
    service.classify(ClassifyRequest.model_validate({"input": raw}))
    assert engine.heard == trained

    engine.heard.clear()
    for row in raw:
        asked.answer_messages([Message(role="user", content=json.dumps(row))])
    assert engine.heard == trained

    engine.heard.clear()
    (tmp_path / "ask.jsonl").write_text("".join(json.dumps(row) + "\n" for row in raw))
    predict(
        asked,
        Opened(Named("ask.jsonl"), tmp_path / "ask.jsonl"),
        output=tmp_path / "said.jsonl",
        progress=lambda *_: None,
    )
    assert engine.heard == trained


def test_features_that_give_other_values_here_are_refused(tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / "out" / "contract.json"
    before = renderer(tmp_path).contract
    assert before.features_sha256
    changed = [one.model_copy(update={"sql": one.sql.replace("40", "41")}) for one in before.features]
    assert changed != list(before.features)
    path.write_text(before.model_copy(update={"features": tuple(changed)}).to_json())
    renderer(tmp_path)  # no probe lies between
    changed = [one.model_copy(update={"sql": one.sql.replace("40", "20")}) for one in before.features]
    path.write_text(before.model_copy(update={"features": tuple(changed)}).to_json())
    with pytest.raises(RunError, match=r"gives other values here \(DuckDB \d+\.\d+\.\d+\) than when data was prepared"):
        renderer(tmp_path)


def test_the_fingerprint_is_taken_where_a_probe_fails_even_in_python() -> None:
    ours = features({"f": "CAST(day AS DATE) + INTERVAL 9000 YEAR"}, day="date")
    assert ours.fingerprint() == features({"f": "CAST(day AS DATE) + INTERVAL 9000 YEAR"}, day="date").fingerprint()
    assert isinstance(ours.batch([{"day": date(2026, 3, 1)}])[0], Failure)


def test_what_the_server_is_told_when_columns_do_not_fit(tmp_path: Path) -> None:
    run(tmp_path)
    asked = asker(tmp_path)
    service = Service({"t": asked}, model_id="m", clock=lambda: 0.0)
    good = {"message": "where is it", "price": 3, "created": "2026-01-01"}

    def refused(change: Callable[[dict[str, Any]], object], message: str) -> None:
        row = dict(good)
        change(row)
        with pytest.raises(UserError, match=message) as error:
            service.classify(ClassifyRequest.model_validate({"input": [good, row]}))
        assert error.value.http_status == 400
        assert "hunter2" not in str(error.value)

    refused(lambda row: row.pop("price"), r"input\.1: data\.features names the column 'price', which is not there")
    refused(
        lambda row: row.update(band="dear"), r"input\.1: the column 'band' is given, and data\.features computes it"
    )
    refused(lambda row: row.update(price="hunter2"), r"'price' holds a text, not a finite number; its type in")
    refused(lambda row: row.update(created="hunter2"), r"data\.features\.month: a value cannot be cast")
    refused(lambda row: row.pop("message"), "names the column 'message'")
    for text in ("where is it", "[1]", '{"message": "x", "message": "y"}'):
        with pytest.raises(
            UserError, match=r"computes what it is asked from columns.*no row.*\n.*send a JSON object with"
        ):
            asked.answer_text(text)
    turns = [Message(role=role, content="{}") for role in ("user", "assistant", "user")]
    with pytest.raises(UserError, match="labels one row; found 3 turns"):
        asked.answer_messages(turns)
    with pytest.raises(ValueError, match="an object of columns"):
        ClassifyRequest.model_validate({"input": [5]})
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        ClassifyRequest.model_validate({"input": {"message": ["\ud800"]}})


def test_predict_says_which_rows_cannot_be_computed(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "ask.csv").write_text(
        "message,price,created\nwhere,19.90,2026-01-01\nwhere,n/a,2026-01-01\nwhere,3,soon\n"
    )
    counts = predict(
        asker(tmp_path),
        Opened(Named("ask.csv"), tmp_path / "ask.csv"),
        output=tmp_path / "o.jsonl",
        progress=lambda *_: None,
    )
    assert counts == {"answered": 1, "faults": 2}
    said = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [one.get("detail", "") for one in said] == [
        "", "the column 'price' holds a text, not a finite number; its type in expressions (data.columns) is number",
        "data.features.month: a value cannot be cast",
    ]  # fmt: skip
    (tmp_path / "ask.csv").write_text("message,created\nwhere,2026-01-01\n")
    with pytest.raises(DataError, match="'price', which is not there"):
        predict(
            asker(tmp_path),
            Opened(Named("ask.csv"), tmp_path / "ask.csv"),
            output=tmp_path / "o.jsonl",
            progress=lambda *_: None,
        )
    (tmp_path / "ask.csv").write_text("message,price,created,band\nwhere,1,2026-01-01,x\n")
    with pytest.raises(DataError, match="has the column 'band', which this version computes itself"):
        predict(
            asker(tmp_path),
            Opened(Named("ask.csv"), tmp_path / "ask.csv"),
            output=tmp_path / "o.jsonl",
            progress=lambda *_: None,
        )


def test_rows_that_fail_are_set_aside_alone_with_line_feature_and_reason(tmp_path: Path) -> None:
    rows = tickets()
    rows[7]["created"] = "soon"
    rows[11]["price"] = "a lot"
    rows[13]["price"] = None
    rows[4]["created"] = None
    report = run(tmp_path, rows)
    assert [(fate.line, fate.reason, fate.detail) for fate in report.fates] == [
        (8, "feature_failed", "data.features.month: a value cannot be cast"),
        (12, "feature_failed", "the column 'price' holds a text, not a finite number; its type in expressions "
                               "(data.columns) is number"),
    ]  # fmt: skip
    assert (report.quarantined, report.rows_in, report.rows_out) == (2, 60, 58)
    read, computed = report.steps[:2]
    assert (read.step, read.rows_in, read.rows_out) == ("read", 60, 60)
    assert (computed.step, computed.rows_in, computed.rows_out, computed.rows_changed) == ("features", 60, 58, 58)
    kept = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [(one["line"], one["reason"]) for one in kept] == [(8, "feature_failed"), (12, "feature_failed")]
    texts = {one.line: one.text for one in examples(tmp_path)}
    assert texts[14].startswith("[dear, February, ] where")  # NULL < 40 is not true
    assert texts[5].startswith("[cheap, , 14.5] where")
    amount, band, month = report.features
    assert (amount.failed, band.failed, month.failed) == (0, 0, 1)
    assert (amount.rows, amount.empty, band.empty, month.empty) == (58, 1, 0, 1)
    assert (month.sql, month.type) == (FEATURES["month"], "string")
    assert month.examples[0].model_dump() == {"line": 1, "cells": {"created": "2026-01-01"}, "value": "January"}
    page = render_data(report)
    for shown in ("Computed columns", "CASE WHEN amount &lt; 40", "created: 2026-01-01", "<td>features</td>"):
        assert shown in page


def test_too_many_rows_that_fail_stop_the_run(tmp_path: Path) -> None:
    rows = tickets()
    rows[7]["created"] = rows[8]["created"] = "soon"
    with pytest.raises(
        DataError, match=r"2 feature_failed in lines 8, 9 \(data.features.month: a value cannot be cast"
    ):
        run(tmp_path, rows, max_bad_rows=0.01)


def test_a_row_of_nothing_but_empty_features_is_empty(tmp_path: Path) -> None:
    rows = tickets()
    rows[5]["message"] = ""
    report = run(tmp_path, rows, input="asked: {said}", features={"said": "nullif(message, '')"}, columns={})
    assert [(fate.line, fate.reason) for fate in report.fates] == [(6, "empty_input")]
    with pytest.raises(UserError, match="nothing is left of the text"):
        asker(tmp_path).answer_values({"message": ""})


def test_a_file_with_a_column_of_that_name_is_refused(tmp_path: Path) -> None:
    rows = tickets()
    rows[30]["band"] = "x"
    with pytest.raises(DataError, match=r"the column 'band' is given, and data\.features computes it"):
        run(tmp_path, rows)


def test_a_column_that_no_row_has_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.train\[0\]\.input or data\.features names the column 'cost'"):
        run(tmp_path, input="{f} {message}", features={"f": "length(cost)"}, columns={"cost": "text"})


def test_personal_data_that_an_expression_puts_together_is_masked(tmp_path: Path) -> None:
    rows = tickets()
    for row in rows:
        row["user"], row["host"] = "ana.gomez", f"example{row['price']}.org"
    given = {"mail": "user || '@' || host"}
    options: dict[str, Any] = {"input": "{mail} {message}", "features": given, "columns": {"user": "text"}}
    report = run(tmp_path, rows, privacy={"action": "redact", "secrets": "redact"}, **options)
    assert report.findings["email"] == 60
    assert all(one.text.startswith("[EMAIL] where") for one in examples(tmp_path))
    assert "ana.gomez" not in report.to_json()
    (mail,) = report.features
    assert mail.examples == ()
    asked = renderer(tmp_path).user_text({"user": "bob", "host": "example.org", "message": "where"})
    assert asked == "[EMAIL] where"


def test_secrets_in_expressions_are_refused_and_personal_data_is_named(tmp_path: Path) -> None:
    key = "AKIA" + "IOSFODNN7EXAMPLE"
    with pytest.raises(SecretFound, match=r"data\.features\.f holds a secret \(aws_access_key\)|holds a secret"):
        run(tmp_path, input="{f} {message}", features={"f": f"'{key}' || created"}, columns={})
    report = run(tmp_path, input="{f} {message}", features={"f": "'ana@example.org ' || created"}, columns={})
    assert report.personal_wording == ("data.features.f holds 1 email",)


def test_a_benchmark_is_compared_as_it_would_be_asked(tmp_path: Path) -> None:
    rows = tickets()
    (tmp_path / "bench.jsonl").write_text(json.dumps(rows[4]) + "\n" + json.dumps({"other": "x" * 99}) + "\n")
    report = run(tmp_path, rows, leakage={"benchmarks": ["bench.jsonl"]}, split={"seed": 3})
    (overlap,) = report.benchmarks
    line = next((fate for fate in report.fates if fate.reason == "benchmark"), None)
    in_train = 5 not in {
        one.line for split in ("test", "validation") for one in Shard(tmp_path / "out" / f"{split}.arrow")
    }
    assert overlap.exact == int(in_train) == int(line is not None)
    assert overlap.rows == 2
