"""Several labels, or a number: what a cell says is what a row teaches, and what does not is set aside with a reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.answers import NO_LABEL, divided, joined, labels_in, number_of
from luthier.errors import DataError

LABELS = st.text("abc xyz-", min_size=1, max_size=8).map(str.strip).filter(lambda one: one not in ("", NO_LABEL))


@given(st.lists(LABELS, max_size=5), st.sampled_from([",", ";", "|", "//"]))
def test_labels_survive_a_list_a_cell_and_a_row(labels: list[str], separator: str) -> None:
    wanted = tuple(sorted(set(labels)))
    assert labels_in(labels, separator) == wanted
    assert labels_in(f" {separator} ".join(labels), separator) == wanted
    assert divided(joined(labels, separator), separator) == wanted


def test_no_label_has_a_word() -> None:
    assert joined((), ",") == NO_LABEL
    assert labels_in("", ",") == labels_in([], ",") == labels_in(None, ",") == labels_in(NO_LABEL, ",") == ()
    assert divided("none", ",") == ()
    assert divided("none, a", ",") == ("a", "none"), "what a model writes is counted as it stands"
    with pytest.raises(DataError, match="beside others"):
        labels_in("none, a", ",")


@pytest.mark.parametrize(
    ("cell", "words"), [(["a,b"], "holds ','"), ([{"a": 1}], "is no label"), ([""], "is no label")]
)
def test_labels_that_cannot_be_are_refused(cell: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        labels_in(cell, ",")


@pytest.mark.parametrize(
    ("text", "number"),
    [("3", 3.0), (" -2.5e1 ", -25.0), ("1_000", None), ("nan", None), ("inf", None), ("3,5", None), ("", None)],
)
def test_numbers(text: str, number: float | None) -> None:
    assert number_of(text) == number


def test_a_list_that_a_text_holds_is_a_list() -> None:
    assert labels_in('["delivery", "refund"]', ",") == ("delivery", "refund")
    assert labels_in("[draft], other", ",") == ("[draft]", "other")
