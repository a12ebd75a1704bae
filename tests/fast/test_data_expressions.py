"""What an expression may be, what its engine may reach, and the types of cells: strict, and fixed for a column."""

from __future__ import annotations

import math
import re
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data import expressions
from luthier.data.columns import WrongCell, common_type, convert, type_of
from luthier.data.expressions import connect, parse
from luthier.errors import RecipeError
from luthier.records import ColumnType

ENGINE = connect()
BAND = "CASE WHEN TRY_CAST(price AS DOUBLE) < 20 THEN 'cheap' ELSE 'dear' END"
PIECES = (
    "a", "(", ")", "'", '"', "--", "/*", "*/", ";", ",", "SELECT", "FROM", "1", "::INT", "CASE WHEN a THEN", "END", "+",
    "||", "lower(", "read_csv('x')", "glob ('*')", "now()", "random()", "[", "]", "{", "$1", "?", "#1", "*", "OVER ()",
    "AS b", "TRY(", "\ud800", "\0", "$$", "é",
)  # fmt: skip


@pytest.mark.parametrize(
    "sql",
    [
        BAND, "upper(a) || ', ' || b", "strftime(CAST(d AS DATE), '%B')", "length(a)", "a ->> '$.name'", "a[1:3]",
        "a IN ('x', 'y') AND NOT b IS NULL", "coalesce(nullif(trim(a), ''), 'none')", "a BETWEEN 1 AND 2",
        "extract(year FROM CAST(d AS DATE))", "a LIKE 'x%'", "regexp_extract(a, '(\\d+)', 1)", "TRY(a::INT)",
        "CAST(d AS DATE) + INTERVAL 1 DAY", "printf('%.2f', b::DOUBLE)", "array_to_string(string_split(a, '|'), ', ')",
        "a IS DISTINCT FROM b", "date_diff('day', DATE '2024-01-01', CAST(d AS DATE))", '"a ""b"" c"', "'a;b -- c'",
    ],
)  # fmt: skip
def test_expressions_of_one_row_pass(sql: str) -> None:
    assert set(parse(ENGINE, "f", sql).columns) <= {"a", "b", "d", "price", 'a "b" c'}


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("(SELECT 1)", "a query inside an expression"), ("EXISTS (SELECT 1)", "a query inside"),
        ("a IN (SELECT b FROM t)", "a query inside"), ("(FROM read_csv('x'))", "a query inside"),
        ("sum(a)", r"the function sum\(\)"), ("count(*)", "a star|count_star"), ("first(a)", r"first\(\)"),
        ("max(a) FILTER (b)", r"max\(\)"), ("lower(a ORDER BY b)", "over several rows"),
        ("row_number() OVER ()", "a window function"), ("sum(a) OVER (ORDER BY b)", "a window function"),
        ("lag(a) OVER ()", "a window function"), ("grouping(a)", "the operator grouping"),
        ("random()", r"random\(\)"), ("now()", r"now\(\)"), ("today()", r"today\(\)"), ("uuid()", r"uuid\(\)"),
        ("gen_random_uuid()", "gen_random_uuid"), ("get_current_timestamp()", "get_current_timestamp"),
        ("current_localtime()", "current_localtime"), ("age(CAST(a AS TIMESTAMP))", "age"), ("nextval('s')", "nextval"),
        ("getenv('HOME')", "getenv"), ("getvariable('x')", "getvariable"), ("current_setting('threads')", "setting"),
        ("read_text('/etc/passwd')", "read_text"), ("read_csv('x')", "read_csv"), ("glob('*')", "glob"),
        ("query('SELECT 1')", "query"), ("unnest([1, 2])", "unnest"), ("generate_series(1, 9)", "generate_series"),
        ("range(9)", "range"), ("repeat(a, 9)", "repeat"), ("sleep_ms(9)", "sleep_ms"), ("version()", "version"),
        ("list_aggregate([1], 'sum')", "list_aggregate"), ("json_serialize_plan('x')", "json_serialize_plan"),
        ("main.lower(a)", "lower"), ("system.main.lower(a)", "lower"), ("format(a, b)", "a format that is computed"),
        ("x -> x + 1", "a lambda"), ("[x FOR x IN a]", "list_apply"), ("*", "a star"), ("COLUMNS('a')", "a star"),
        ("?", "a parameter"), ("$name", "a parameter"), ("#1", "a column by its number"), ("a.b", "a name with a dot"),
        ("rows.a", "a name with a dot"), ("a COLLATE NOCASE", "a collation"), ("a::TIMESTAMPTZ", "the type TIMESTAMP"),
        ("a::my_type", "the type my_type"), ("a -- why", "a comment"), ("a /* why */ + 1", "a comment"),
        ("a;", "syntax error"), ("a; DROP TABLE t", "SELECT statements|syntax"), ("a, b", "several values"),
        ("a AS b", "a name for its result"), ("a FROM t", "a query of its own"), ("a WHERE b", "a query of its own"),
        ("DISTINCT a", "a query of its own"), ("a LIMIT 1", "a query of its own"), ("a GROUP BY b", "a query of its"),
        ("a UNION SELECT 1", "more than one|of its own"), ("1) FROM read_csv('x'", "syntax error"), ("(a", "syntax"),
        ("1), (2", "syntax error"), ("1) + (2", "syntax error"), ("COPY a TO 'x'", "syntax"), ("a b", "a name for"),
        ("ATTACH 'x.db'", "the type ATTACH"), ("INSTALL httpfs", "a name for"), ("PRAGMA version", "a name for"),
        ("SELECT a", "syntax error"), ("lower(", "syntax error"), ("uper(a)", r"did you mean upper\?"),
    ],
)  # fmt: skip
def test_everything_else_is_refused(sql: str, found: str) -> None:
    with pytest.raises(RecipeError, match=r"data\.features\.f") as error:
        parse(ENGINE, "f", sql)
    assert re.search(found, str(error.value)), str(error.value)
    assert error.value.way_out


def test_every_function_that_may_be_used_is_one_of_one_row_in_this_duckdb() -> None:
    found: dict[str, set[tuple[str, str | None]]] = {}
    catalogue = "SELECT function_name, function_type, stability, parameter_types FROM duckdb_functions()"
    for name, kind, stability, types in connect().execute(catalogue).fetchall():
        # No column and no cast gives a time with a zone, and the engine's zone is UTC.
        if not any("TIME ZONE" in str(one) or "TIMESTAMPTZ" in str(one) for one in types or ()):
            found.setdefault(name.casefold(), set()).add((kind, stability))
    for name in expressions.FUNCTIONS:
        assert found[name] <= {("scalar", "CONSISTENT"), ("macro", None)}, name


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM read_csv('{file}')", "SELECT * FROM '{file}'", "SELECT * FROM read_text('{file}')",
        "COPY (SELECT 1) TO '{file}.out'", "ATTACH '{file}.db'", "INSTALL httpfs", "LOAD httpfs", "SET threads = 4",
        "SET enable_external_access = true", "SELECT * FROM 'https://example.org/x.csv'", "EXPORT DATABASE '{file}.d'",
        "RESET lock_configuration",
    ],
)  # fmt: skip
def test_the_engine_itself_reaches_nothing(tmp_path: Path, statement: str) -> None:
    """Even were an expression let through."""
    (tmp_path / "there.csv").write_text("a\n1\n")
    secret = "a python variable"  # noqa: F841 (a replacement scan would find it)
    with pytest.raises(expressions.duckdb().Error):
        connect().execute(statement.format(file=tmp_path / "there.csv"))
    with pytest.raises(expressions.duckdb().Error):
        connect().execute("SELECT * FROM secret")
    assert [path.name for path in tmp_path.iterdir()] == ["there.csv"]


# --- types ------------------------------------------------------------------------------------------------------------


def test_the_type_of_a_column_is_that_of_its_cells() -> None:
    day, noon = date(2026, 3, 1), datetime(2026, 3, 1, 12)
    assert [type_of(cell) for cell in (True, 1, 2**63, 1.5, Decimal("1.50"), day, noon, "1", [1], {}, b"x")] == [
        "boolean", "integer", "text", "number", "number", "date", "time", "text", "text", "text", "text",
    ]  # fmt: skip
    assert common_type({"integer", "number"}) == "number"
    assert common_type({"date", "time"}) == "time"
    assert common_type({"integer", "boolean"}) == common_type({"number", "text"}) == common_type(set()) == "text"


@pytest.mark.parametrize(
    ("cell", "to", "made"),
    [
        ("19.90", "number", 19.9),
        (19, "number", 19.0), (" 7 ", "integer", 7), (7.0, "integer", 7), ("", "number", None),
        (" ", "date", None), ("", "text", ""), (None, "text", None), (math.nan, "number", None), (19.9, "text", "19.9"),
        ([1, "é"], "text", '[1, "é"]'), ("TRUE", "boolean", True), ("2026-03-01", "date", date(2026, 3, 1)),
        (date(2026, 3, 1), "time", datetime(2026, 3, 1)), ("2026-03-01T12:00:00", "time", datetime(2026, 3, 1, 12)),
        (datetime(2026, 3, 1, 12, tzinfo=timezone(timedelta(hours=2))), "time", datetime(2026, 3, 1, 10)),
        (Decimal("19.90"), "text", "19.90"), (Decimal("2"), "integer", 2),
    ],
)  # fmt: skip
def test_cells_are_brought_to_the_type_of_their_column(cell: object, to: ColumnType, made: object) -> None:
    assert convert(cell, to) == made
    assert type(convert(cell, to)) is type(made)


@pytest.mark.parametrize(
    ("cell", "to", "message"),
    [
        ("x19", "number", "a text, not a finite number"), ("1_000", "integer", "a text"), ("nan", "number", "a text"),
        (1.5, "integer", "a number, not a whole number of 64 bits"), (2**63, "integer", "a whole number, not"),
        (True, "number", "a truth value"), (10**400, "number", "a whole number"), ("1e999", "number", "a text"),
        ("yes", "boolean", "true or false"), (1, "boolean", "true or false"), ("01/02/2026", "date", "a date such as"),
        (datetime(2026, 3, 1, tzinfo=UTC), "date", "of type datetime"), ([1], "number", "a list"),
        (5, "time", "a time"),
        ("2026-02-30", "date", "a text"), ("\ud800", "text", "half of a character"),
        (datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=2))), "time", "a time"),
    ],
)  # fmt: skip
def test_cells_of_another_type_are_refused_and_not_repeated(cell: object, to: ColumnType, message: str) -> None:
    with pytest.raises(WrongCell, match=message) as error:
        convert(cell, to)
    assert not isinstance(cell, str) or len(cell) < 3 or cell not in str(error.value).split("such as")[0]


@settings(max_examples=60, deadline=None)
@given(sql=st.lists(st.sampled_from(PIECES), max_size=9).map(" ".join) | st.text(max_size=12))
def test_whatever_stands_there_is_an_expression_or_is_refused(sql: str) -> None:
    try:
        made = parse(ENGINE, "f", sql)
    except RecipeError:
        return
    assert not {"read_csv", "glob", "now", "random"} & set(re.findall(r"\w+(?=\s*\()", sql.lower())), made
