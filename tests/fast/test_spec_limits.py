"""Lines of the objective, and the tables that names come from."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import RecipeError
from luthier.spec.limits import parse_limit
from luthier.spec.plugins import ADAPTERS, EXPORTS, METHODS, METRICS


@given(value=st.floats(0, 1), blanks=st.lists(st.sampled_from(["", " ", "  "]), min_size=3, max_size=3))
def test_a_limit_reads_as_it_is_written(value: float, blanks: list[str]) -> None:
    shown = f"{value:.6f}"
    limit = parse_limit("a.b.accuracy", f"{blanks[0]}>={blanks[1]}{shown}{blanks[2]}", section="targets")
    assert (limit.subject, limit.metric, limit.key) == ("a.b", "accuracy", "a.b.accuracy")
    assert (limit.op, limit.value, limit.relative) == (">=", float(shown), False)
    assert limit.holds(limit.value)
    assert not limit.holds(math.nextafter(limit.value, -1))
    assert not limit.holds(math.nan)
    assert parse_limit(limit.key, limit.text.partition(" ")[2], section="targets").text == limit.text


@pytest.mark.parametrize(("text", "value"), [("<= 1.05x", 1.05), ("<=2 x", 2.0), ("<= 1e0x", 1.0), ("<= 0.9x", 0.9)])
def test_a_relative_limit(text: str, value: float) -> None:
    limit = parse_limit("general.perplexity", text, section="non_regression")
    assert (limit.op, limit.value, limit.relative) == ("<=", value, True)
    assert limit.holds(value)
    assert not limit.holds(math.nextafter(value, 9))


def test_terms_may_be_held_to_the_base_too() -> None:
    limit = parse_limit("a.term_accuracy", ">= 0.95x", section="non_regression")
    assert (limit.subject, limit.metric, limit.value, limit.relative) == ("a", "term_accuracy", 0.95, True)


@pytest.mark.parametrize(
    ("key", "text", "section", "what", "way_out"),
    [
        ("accuracy", ">= 0.8", "targets", "the key must be NAME.METRIC", "write e.g. 'general.accuracy'"),
        ("kind.f1", ">= 0.8", "targets", "kind.f1: unknown metric 'f1'", ", ".join(METRICS.names())),
        ("kind.accuracy", "0.8", "targets", "'0.8' is not a limit", "write e.g. '>= 0.80'"),
        ("kind.accuracy", "> 0.8", "targets", "'> 0.8' is not a limit", ""),
        ("kind.accuracy", ">= 80 %", "targets", "'>= 80 %' is not a limit", ""),
        ("kind.accuracy", ">= nan", "targets", "is not a limit", ""),
        ("kind.perplexity", "<= 1e999", "targets", "'<= 1e999' is not a limit", ""),
        ("kind.accuracy", ">= 80", "targets", "accuracy is a share between 0 and 1", "write e.g. 0.80 for 80 %"),
        ("kind.accuracy", "<= 0.8", "targets", "limits accuracy on the wrong side, higher is better", "use >="),
        ("kind.perplexity", ">= 3", "targets", "on the wrong side, lower is better for it", "use <="),
        ("kind.accuracy", ">= 0.9x", "targets", "a target is an absolute value", "drop the x"),
        ("general.perplexity", "<= 9", "non_regression", "is relative to the base model", "write a factor"),
        ("kind.accuracy", ">= 0.9x", "non_regression", "cannot be measured", "known here: general.perplexity"),
        ("kind.term_accuracy", ">= 0.9", "non_regression", "is relative to the base model", "write a factor"),
        ("general.term_accuracy", ">= 0.9x", "non_regression", "cannot be measured", "NAME.term_accuracy"),
        ("kind.perplexity", "<= 1.1x", "non_regression", "cannot be measured", ""),
        ("general.perplexity", "<= 9", "targets", "cannot be measured", ""),
        ("general.accuracy", ">= 0.9", "targets", "cannot be measured", "known here: NAME.METRIC of a data entry"),
    ],
)
def test_lines_that_make_no_sense(key: str, text: str, section: str, what: str, way_out: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_limit(key, text, section=section)
    assert what in caught.value.what
    assert way_out in caught.value.way_out
    assert caught.value.what.startswith(f"objective.{section}.{key}")


@pytest.mark.parametrize("table", [METHODS, ADAPTERS, EXPORTS, METRICS], ids=["method", "adapter", "export", "metric"])
def test_a_table_is_sorted_lists_what_it_has_and_knows_nothing_else(table: object) -> None:
    names = table.names()  # type: ignore[attr-defined]
    assert names == tuple(sorted(names))
    for name in names:
        assert table.get(name).name == name  # type: ignore[attr-defined]
        assert table.get(name).summary  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match=rf"unknown .* 'none'\n  -> known in this version: {', '.join(names)}"):
        table.get("none")  # type: ignore[attr-defined]
