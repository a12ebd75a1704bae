"""Expressions of `data.features`: DuckDB's own parse tree is looked at, and only what stays in its row passes.

What may occur is listed, not what may not: a new version of DuckDB adds functions and kinds of nodes. The catalogue's
own word for it is not enough, it calls functions of the clock (`current_localtime`, `age`) consistent.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from luthier.errors import MissingExtra, RecipeError

_WORDS = """
    concat concat_ws lower lcase upper ucase trim ltrim rtrim length len char_length character_length strlen
    left right substr substring replace translate reverse split_part split string_split str_split
    starts_with ends_with prefix suffix contains instr strpos position strip_accents nfc_normalize ascii chr
    unicode ord regexp_matches regexp_full_match regexp_replace regexp_extract regexp_extract_all regexp_escape
    regexp_split_to_array string_split_regex str_split_regex format printf url_decode url_encode
    levenshtein damerau_levenshtein jaccard jaro_similarity jaro_winkler_similarity hamming md5 sha256
    like_escape ilike_escape not_like_escape not_ilike_escape overlay hex to_hex
"""
_NUMBERS = """
    abs ceil ceiling floor round round_even trunc sign sqrt cbrt exp ln log log10 log2 pow power mod fmod fdiv
    greatest least even gcd lcm pi isnan isinf isfinite format_bytes
    add subtract multiply divide
"""
_TIMES = """
    date_part datepart date_trunc datetrunc date_diff datediff date_sub datesub date_add last_day dayname monthname
    year month day hour minute second millisecond microsecond quarter week weekday dayofweek isodow dayofmonth dayofyear
    weekofyear isoyear yearweek decade century millennium era days_in_month strftime strptime try_strptime make_date
    make_time make_timestamp epoch epoch_ms julian time_bucket to_years to_months to_weeks to_days to_hours to_minutes
    to_seconds to_milliseconds to_microseconds to_quarters
"""
_CHOICES = "if nullif typeof"
_LISTS = """
    list_value list_extract list_element array_extract list_slice array_slice list_contains list_has array_contains
    list_position list_sort list_reverse_sort list_concat array_length array_to_string cardinality flatten
    list_has_any list_has_all list_min list_max list_sum list_avg list_count
    json_extract json_extract_string json_extract_path json_extract_path_text json_array_length json_exists json_keys
    json_type json_valid json_value json_contains
"""
_OPERATORS = "+ - * / // % ^ ** || ~~ !~~ ~~* !~~* ~~~ & | ~ << >> ->> ^@ @ xor"

FUNCTIONS = frozenset(" ".join((_WORDS, _NUMBERS, _TIMES, _CHOICES, _LISTS, _OPERATORS)).split())
"""Functions of one row, without clock, chance, session, files, network or results of any wished-for size."""

_WRITTEN_OUT = frozenset({"format", "printf"})
"""Functions whose first argument says how wide the result is: what a row holds must not say it."""

_TYPES_WORDS = """
    varchar text string char bpchar boolean bool logical tinyint smallint integer int int1 int2 int4 int8 bigint hugeint
    short long signed utinyint usmallint uinteger ubigint uhugeint float real float4 float8 double decimal numeric dec
    date time timestamp datetime timestamp_s timestamp_ms timestamp_ns interval json list array
"""
TYPES = frozenset(_TYPES_WORDS.split())
"""Types to cast to. Those with a time zone depend on where the machine is."""

_NODES = frozenset({
    "CASE", "CAST", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION", "OPERATOR", "BETWEEN", "TYPE",
})  # fmt: skip
_OPERATORS_OF_A_ROW_WORDS = """
    OPERATOR_NOT OPERATOR_IS_NULL OPERATOR_IS_NOT_NULL OPERATOR_COALESCE OPERATOR_NULLIF OPERATOR_TRY COMPARE_IN
    COMPARE_NOT_IN ARRAY_EXTRACT ARRAY_SLICE ARRAY_CONSTRUCTOR
"""
_OPERATORS_OF_A_ROW = frozenset(_OPERATORS_OF_A_ROW_WORDS.split())
_REFUSED = {
    "SUBQUERY": "a query inside an expression",
    "WINDOW": "a window function, which looks at other rows",
    "STAR": "a star, which stands for no single column",
    "PARAMETER": "a parameter, which nothing fills in",
    "POSITIONAL_REFERENCE": "a column by its number",
    "LAMBDA": "a lambda",
    "COLLATE": "a collation",
    "DEFAULT": "DEFAULT",
}


@dataclass(frozen=True)
class Expression:
    """One that passed."""

    name: str
    sql: str
    columns: tuple[str, ...]
    """That it names, in order, each once."""


def duckdb() -> Any:
    """The package, imported when it is first needed.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import duckdb as package
    except ModuleNotFoundError as error:
        if error.name != "duckdb":
            raise
        raise MissingExtra("duckdb", extra="features", purpose="data.features") from error
    return package


def connect() -> Any:
    """An engine in memory that can reach no file, no network and no extension, and cannot be told otherwise."""
    engine = duckdb().connect(
        ":memory:",
        config={
            "enable_external_access": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "allow_community_extensions": "false",
            "allow_persistent_secrets": "false",
            "temp_directory": "",
            "threads": "1",
            "memory_limit": MEMORY_LIMIT,
        },
    )
    engine.execute("SET TimeZone = 'UTC'")
    engine.execute("SET error_on_division_by_zero = true")
    # DuckDB 2.0 computes what occurs twice once, outside of the TRY that should have caught its error.
    engine.execute("SET disabled_optimizers = 'common_subexpressions'")
    engine.execute("SET lock_configuration = true")
    return engine


MEMORY_LIMIT = "512MB"


def parse(engine: Any, name: str, sql: str) -> Expression:
    """Look at the structure of an expression.

    Raises:
        RecipeError: it cannot be read, or it is more than a scalar expression of its own row.
    """
    if any("\ud800" <= char <= "\udfff" for char in sql):
        raise _refuse(name, "half of a character", way_out="write the character itself")
    for token in _tokens(sql):
        if token == "comment":
            raise _refuse(name, "a comment", way_out="write it as a comment of the recipe (# ...)")
    root = _select(engine, name, sql)
    columns: dict[str, None] = {}
    for node in _walk(root):
        columns |= dict.fromkeys(_check(name, node))
    return Expression(name, sql, tuple(columns))


def refuse_unknown(
    expression: Expression, known: Collection[str], later: Collection[str], *, is_complete: bool = True
) -> None:
    """Check that what the expression names is there.

    Args:
        expression: that passed.
        known: columns, and features above this one.
        later: features below it.
        is_complete: whether the file has no other columns than those that are known.

    Raises:
        RecipeError: a column is not, or is a feature that is computed later, or by this very expression.
    """
    for column in expression.columns:
        if column in known:
            continue
        key = f"data.features.{expression.name}"
        if column == expression.name:
            raise RecipeError(
                f"{key} names itself", way_out="name columns of the file, or features that stand above it"
            )
        if column in later:
            raise RecipeError(
                f"{key} names {column!r}, a feature that stands below it",
                way_out=f"write {column!r} above {expression.name!r}; features that need each other cannot be computed",
            )
        if column.casefold() in _OF_THE_MOMENT:
            raise _refuse(expression.name, f"{column}, which is another one at another time or place")
        if not is_complete:
            continue
        near = difflib.get_close_matches(column, list(known), 1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise RecipeError(
            f"{key} names the column {column!r}, which is not there",
            way_out=f"{hint}there are: {', '.join(known)} (a text stands in 'single quotes')",
        )


_OF_THE_MOMENT_WORDS = """
    current_date current_time current_timestamp localtime localtimestamp current_user session_user user current_role
    current_catalog current_schema current_database
"""
_OF_THE_MOMENT = frozenset(_OF_THE_MOMENT_WORDS.split())


def first_line(error: Exception) -> str:
    """DuckDB's message without the copy of the query that follows it."""
    return str(error).partition("\n")[0].strip()


def _tokens(sql: str) -> Iterator[str]:
    for _, kind in duckdb().tokenize(sql):
        yield kind.name


def _select(engine: Any, name: str, sql: str) -> Mapping[str, Any]:
    """The parse tree of an expression that is all that its query selects, with and without parentheses around it."""
    trees = []
    for query in (f"SELECT {sql}", f"SELECT ({sql}\n)"):
        found = json.loads(engine.execute("SELECT json_serialize_sql(?)", [query]).fetchone()[0])
        if found["error"]:
            message = str(found["error_message"]).partition("\n")[0]
            raise RecipeError(
                f"data.features.{name}: not an SQL expression: {message}",
                way_out="write one expression over the columns, such as \"upper(product) || ', ' || price\"",
            )
        statements = found["statements"]
        node = statements[0]["node"]
        if len(statements) != 1 or node.get("type") != "SELECT_NODE":
            raise _refuse(name, "more than one statement")
        extras = [key for key, value in node.items() if key not in _PLAIN_SELECT and value]
        if node["from_table"]["type"] != "EMPTY" or node["cte_map"]["map"] or extras:
            raise _refuse(name, "a query of its own")
        if len(node["select_list"]) != 1:
            raise _refuse(name, "several values", way_out="write a feature for each")
        if node["select_list"][0]["alias"]:
            raise _refuse(name, "a name for its result", way_out="take AS out: the key of the recipe is the name")
        trees.append(node["select_list"][0])
    return dict(trees[0])


_PLAIN_SELECT = frozenset({"type", "select_list", "from_table", "cte_map", "aggregate_handling"})


def _walk(tree: Any) -> Iterator[Mapping[str, Any]]:
    """Every node of a parse tree, whatever the fields are called that hold it."""
    stack = [tree]
    while stack:
        one = stack.pop()
        if isinstance(one, dict):
            if "class" in one:
                yield one
            stack += reversed(list(one.values()))
        elif isinstance(one, list):
            stack += reversed(one)


def _check(name: str, node: Mapping[str, Any]) -> tuple[str, ...]:
    """Refuse a node that may not stand here.

    Returns:
        The column that it names, if it does.
    """
    kind = str(node["class"])
    if kind not in _NODES:
        raise _refuse(name, _REFUSED.get(kind, f"{kind.lower()}, which is not known here"))
    if kind == "COLUMN_REF":
        return (_column(name, node["column_names"]),)
    if kind == "TYPE" and str(node["type_name"]).casefold() not in TYPES:
        way_out = "cast to VARCHAR, BIGINT, DOUBLE, DECIMAL, BOOLEAN, DATE or TIMESTAMP"
        raise _refuse(name, f"the type {node['type_name']}", way_out=way_out)
    if kind == "OPERATOR" and node["type"] not in _OPERATORS_OF_A_ROW:
        raise _refuse(name, f"the operator {str(node['type']).lower()}")
    if kind == "FUNCTION":
        _check_function(name, node)
    return ()


def _column(name: str, path: Collection[str]) -> str:
    if len(path) != 1:
        joined = ".".join(path)
        raise _refuse(name, f"{joined!r}, a name with a dot", way_out=f'write "{joined}" for a column of that name')
    return next(iter(path))


def _check_function(name: str, node: Mapping[str, Any]) -> None:
    function = str(node["function_name"]).casefold()
    if node["schema"] or node["catalog"] or function not in FUNCTIONS:
        near = difflib.get_close_matches(function, sorted(FUNCTIONS), 1, cutoff=0.7)
        hint = f"did you mean {near[0]}? " if near else ""
        raise _refuse(
            name,
            f"the function {function}()",
            way_out=f"{hint}docs/features.md lists what computes one row from itself",
        )
    if node["distinct"] or node["filter"] or node["order_bys"]["orders"]:
        raise _refuse(name, f"{function}() over several rows")
    if function in _WRITTEN_OUT and node["arguments"][:1] and _kind_of_first(node) != "CONSTANT":
        raise _refuse(name, f"{function}() with a format that is computed", way_out="write the format as 'text'")


def _kind_of_first(node: Mapping[str, Any]) -> str:
    return str(node["arguments"][0]["expression"]["class"])


def _refuse(
    name: str, what: str, *, way_out: str = "an expression may use the columns of its own row only"
) -> RecipeError:
    return RecipeError(f"data.features.{name} holds {what}", way_out=way_out)
