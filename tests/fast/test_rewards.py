"""What verifies an answer: each type by hand-made cases, safe against answers that would do more than answer."""

from __future__ import annotations

import sqlite3
import sys
import time
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from luthier import rewards
from luthier.errors import DataError, MissingExtra, RecipeError
from luthier.rewards import Reward, function, load_rewards, sql
from luthier.spec.plugins import REWARDS

SHOP = "CREATE TABLE t (a INTEGER, b TEXT); INSERT INTO t VALUES (1, 'x'), (2, 'y'), (2, 'z');"


def opened(*given: dict[str, Any]) -> Reward:
    return load_rewards([REWARDS.get(one["type"]).section.model_validate(one) for one in given])


@pytest.mark.parametrize(
    ("section", "answer", "expected", "worth"),
    [
        ({"type": "exact"}, " yes\n", "yes", 1.0),
        ({"type": "exact"}, "Yes", "yes", 0.0),
        ({"type": "exact", "ignore_case": True}, "Yes", "yes", 1.0),
        ({"type": "number"}, "so it is #### 72", "6 * 12 = <<6*12=72>>72\n#### 72", 1.0),
        ({"type": "number"}, "she has 1,072.50 left", "#### 1072.5", 1.0),
        ({"type": "number"}, "72 of 100", "#### 72", 0.0),
        ({"type": "number"}, "#### 7 #### 72", "#### 72", 1.0),
        ({"type": "number"}, "#### none, or 72", "#### 72", 1.0),
        ({"type": "number"}, "-3", "#### -3", 1.0),
        ({"type": "number"}, "no number", "#### 72", 0.0),
        ({"type": "number", "marked": True}, "it is 72", "#### 72", 0.0),
        ({"type": "number", "marked": True}, "it is #### 72", "#### 72", 1.0),
        ({"type": "number", "tolerance": 0.01}, "3.14", "3.1416", 1.0),
        ({"type": "number", "after": "Answer:"}, "5 and Answer: 6", "6", 1.0),
        ({"type": "number"}, "#### .5", "#### 0.5", 1.0),
        ({"type": "number"}, "#### .5", "#### 5", 0.0),
        ({"type": "number"}, "Rs.500", "#### 500", 1.0),
        ({"type": "number"}, "wait...12", "#### 12", 1.0),
        ({"type": "json_schema", "accepts": {"const": {"$ref": "x"}}}, '{"$ref": "x"}', "", 1.0),
        ({"type": "json_schema", "accepts": {"$ref": "https://json-schema.org/draft/2020-12/schema"}}, "{}", "", 1.0),
        (
            {"type": "json_schema", "accepts": {"$id": "http://a/s", "$ref": "s#/$defs/x", "$defs": {"x": {}}}},
            "1",
            "",
            1.0,
        ),
        ({"type": "number"}, "#### \u22127", "#### -7", 1.0),
        ({"type": "number"}, "between 70-72", "#### 72", 1.0),
        ({"type": "number"}, "so 1,000,000", "#### 1000000", 1.0),
        ({"type": "number"}, "9" * 5000, "#### 9", 0.0),
        ({"type": "json_schema", "accepts": {"type": "object", "required": ["a"]}}, '{"a": 1}', "", 1.0),
        ({"type": "json_schema", "accepts": {}, "parses": 0.5}, '{"a": NaN}', "", 0.0),
        ({"type": "json_schema", "accepts": {}, "parses": 0.5}, '{"a": 1, "a": 2}', "", 0.0),
        ({"type": "json_schema", "accepts": {"multipleOf": 0.5}, "parses": 0.5}, "1e999", "", 0.5),
        ({"type": "json_schema", "accepts": {"multipleOf": 0.5}, "parses": 0.5}, "9" * 400, "", 0.5),
        ({"type": "json_schema", "accepts": {"items": {"$ref": "#"}}}, "[" * 400 + "]" * 400, "", 0.0),
        ({"type": "json_schema", "accepts": {"$ref": "#/$defs/x", "$defs": {"x": {"type": "null"}}}}, "null", "", 1.0),
        ({"type": "json_schema", "accepts": {"type": "object", "required": ["a"]}}, '{"b": 1}', "", 0.0),
        ({"type": "json_schema", "accepts": {"required": ["a"]}, "parses": 0.25}, '{"b": 1}', "", 0.25),
        ({"type": "json_schema", "accepts": {}}, 'Here it is: {"a": 1}', "", 0.0),
        ({"type": "json_schema", "accepts": {}}, "[" * 100_000, "", 0.0),
        ({"type": "sql", "database": SHOP}, "SELECT b FROM t WHERE a = 2", "SELECT b FROM t WHERE a > 1;", 1.0),
        ({"type": "sql", "database": SHOP}, "select b from t order by b desc", "SELECT b FROM t", 1.0),
        ({"type": "sql", "database": SHOP}, "SELECT DISTINCT a FROM t", "SELECT a FROM t", 0.0),
        ({"type": "sql", "database": SHOP, "runs": 0.2}, "SELECT 1", "SELECT b FROM t", 0.2),
        ({"type": "sql", "database": SHOP, "runs": 0.2}, "SELEKT 1", "SELECT b FROM t", 0.0),
        ({"type": "sql", "database": SHOP}, "the table t", "SELECT b FROM t", 0.0),
        ({"type": "sql", "database": SHOP}, "SELECT strftime('%Y', '2024-05-06')", "SELECT '2024'", 1.0),
        ({"type": "sql", "database": SHOP}, "SELECT date('2024-01-31', '+1 day')", "SELECT '2024-02-01'", 1.0),
    ],
)
def test_each_type(section: dict[str, Any], answer: str, expected: str, worth: float) -> None:
    assert opened(section)(answer, expected) == worth


@pytest.mark.parametrize(
    "answer",
    [
        "DROP TABLE t",
        "DELETE FROM t",
        "INSERT INTO t VALUES (3, 'w')",
        "CREATE TABLE u (a)",
        "PRAGMA user_version = 3",
        "SELECT 1; DROP TABLE t",
        "SELECT load_extension('x')",
        "BEGIN",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
        "SELECT * FROM t, t, t, t, t, t, t, t, t, t, t, t",
        "SELECT '\ud800'",
        "",
        "SELECT a FROM t WHERE abs(random()) % 2",
        "SELECT hex(randomblob(4))",
        "SELECT date('now')",
        "SELECT date()",
        "SELECT strftime('%f')",
        "SELECT strftime('%s', ' NOW ')",
        "SELECT datetime('2024-05-06', 'localtime')",
        "SELECT CURRENT_TIMESTAMP",
        "SELECT replace(printf('%9000d', 1), ' ', 'ab')",
        "SELECT date(cast('now' AS blob))",
        "SELECT date('now' || char(0))",
        "SELECT hex(fts3_tokenizer('simple'))",
    ],
)
def test_a_query_may_only_read_and_not_for_ever(answer: str) -> None:
    reward = opened({"type": "sql", "database": SHOP, "runs": 0.5, "steps": 100_000})
    assert reward(answer, "SELECT a, b FROM t") == 0.0
    assert reward("SELECT a, b FROM t", "SELECT a, b FROM t") == 1.0  # it is as it was


def test_a_query_cannot_reach_a_file(tmp_path: Path) -> None:
    place = tmp_path / "other.db"
    with sqlite3.connect(place) as other:
        other.execute("CREATE TABLE secret (a)")
    reward = opened({"type": "sql", "database": SHOP, "runs": 0.5})
    assert reward(f"ATTACH '{place}' AS o", "SELECT 1") == 0.0
    assert reward("SELECT * FROM o.secret", "SELECT 1") == 0.0
    assert reward(f"VACUUM INTO '{tmp_path / 'copy.db'}'", "SELECT 1") == 0.0
    assert not (tmp_path / "copy.db").exists()


def test_how_long_a_query_may_take_is_counted_in_steps_and_not_by_a_clock() -> None:
    query = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 20000) SELECT count(*) FROM n"
    database = sql._made(SHOP)
    enough = next(steps for steps in range(10_000, 2_000_000, 10_000) if sql._rows(database, query, steps) is not None)
    for _ in range(3):
        assert sql._rows(database, query, enough) is not None
        assert sql._rows(database, query, enough - 10_000) is None


def test_several_are_their_weighted_mean() -> None:
    both = opened({"type": "exact", "weight": 3.0}, {"type": "number"})
    assert both("72", "#### 72") == 0.25
    assert both("#### 72", "#### 72") == 1.0


@given(st.text())
def test_whatever_is_said_a_reward_is_a_number_from_0_to_1(answer: str) -> None:
    every = [{"type": "exact"}, {"type": "number"}, {"type": "json_schema", "accepts": {}}]
    for one in every:
        assert 0.0 <= opened(one)(answer, "7") <= 1.0
    assert 0.0 <= opened({"type": "sql", "database": SHOP, "steps": 10_000})(answer, "SELECT 1") <= 1.0


@pytest.mark.parametrize(
    ("section", "expected", "words"),
    [
        ({"type": "number"}, "none at all", "the expected answer has no number: 'none at all'"),
        ({"type": "sql", "database": SHOP}, "SELEKT 1", "the expected query cannot be run"),
        ({"type": "sql", "database": SHOP}, "", "the expected query cannot be run"),
        ({"type": "sql", "database": SHOP}, "SELECT random()", "the expected query cannot be run"),
    ],
)
def test_an_expected_answer_that_cannot_be_compared_with_is_an_error(
    section: dict[str, Any], expected: str, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        opened(section)("1", expected)


def test_one_step_cannot_take_long() -> None:
    """What takes the square of a text's length has no long text to take it of."""
    reward = opened({"type": "sql", "database": SHOP})
    query = "SELECT instr(replace(hex(zeroblob(400000)), '00', 'a'), replace(hex(zeroblob(200000)), '00', 'a') || 'b')"
    began = time.monotonic()
    assert reward(query, "SELECT 1") == 0.0
    assert time.monotonic() - began < 1.0


def test_no_query_takes_long_by_comparing_or_before_it_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "_SECONDS", 0.5)
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 10000) SELECT sum("
    text, some = (f"replace(hex(zeroblob({size})), '0', 'a')" for size in (4900, 40))
    compared = f"{numbers}({text} || i) LIKE ('%' || {some} || 'b%' || i)) FROM n"
    doubled = ", ".join(["a0 AS (SELECT 1 x)", *(f"a{n + 1} AS (SELECT p.x FROM a{n} p, a{n} q)" for n in range(30))])
    reward = opened({"type": "sql", "database": SHOP, "runs": 0.5})
    for query in (compared, f"WITH {doubled} SELECT x FROM a30"):
        began = time.monotonic()
        assert reward(query, "SELECT 1") == 0.0
        assert time.monotonic() - began < 5.0
    assert reward("SELECT 1", "SELECT 1") == 1.0


def test_a_function_of_an_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("short", "odd", "numpys", "text", "gone")
    made = {name: f"rewards_of_a_user:{name}" for name in names} | {"lost": "no_such_module_of_a_user:f"}
    points = [EntryPoint(name=name, value=value, group=function.GROUP) for name, value in made.items()]
    monkeypatch.setattr(function, "entry_points", lambda group: [point for point in points if point.group == group])
    module = type(sys)("rewards_of_a_user")
    module.short = lambda answer, expected: len(answer) < 5  # type: ignore[attr-defined]
    module.odd = lambda answer, expected: 7  # type: ignore[attr-defined]
    module.numpys = lambda answer, expected: np.float32(0.25)  # type: ignore[attr-defined]
    module.text = "no function"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rewards_of_a_user", module)
    assert opened({"type": "function", "name": "short"})("abc", "") == 1.0
    assert opened({"type": "function", "name": "short"})("abcdef", "") == 0.0
    with pytest.raises(RecipeError, match="'odd' gave 7"):
        opened({"type": "function", "name": "odd"})("a", "")
    assert opened({"type": "function", "name": "numpys"})("abc", "") == 0.25
    for name, words in (("text", "is no function"), ("gone", "cannot be had"), ("lost", "cannot be had")):
        with pytest.raises(RecipeError, match=f"'{name}' .*{words}"):
            opened({"type": "function", "name": name})
    with pytest.raises(RecipeError, match="'none' is no entry point") as said:
        opened({"type": "function", "name": "none"})
    assert "odd, short" in said.value.way_out


def test_what_cannot_be_is_said_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="accepts is no schema"):
        opened({"type": "json_schema", "accepts": {"type": "nothing"}})
    with pytest.raises(RecipeError, match="database cannot be made"):
        opened({"type": "sql", "database": "CREATE TABEL"})
    with pytest.raises(RecipeError, match="database cannot be made"):
        opened({"type": "sql", "database": "ATTACH 'other.db' AS o"})
    for name in ("#/$defs/x", "https://example.org/schema"):
        with pytest.raises(RecipeError, match="there is nothing of that name in it"):
            opened({"type": "json_schema", "accepts": {"properties": {"a": {"$ref": name}}}})
    with pytest.raises(ValidationError, match="at least 1 character"):
        opened({"type": "number", "after": ""})
    monkeypatch.setattr(rewards.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="jsonschema") as said:
        opened({"type": "json_schema", "accepts": {}})
    assert "luthier[rewards]" in str(said.value)


def test_every_type_has_its_implementation() -> None:
    folder = Path(rewards.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == set(REWARDS.names())
