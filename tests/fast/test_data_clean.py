"""Cleaning repairs what is broken and leaves alone what is meant."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from luthier.data import clean
from luthier.data.contract import prepare_text
from luthier.data.items import Item, Ledger
from luthier.data.privacy import find
from luthier.data.privacy.profiles import Detector
from luthier.data.privacy.spans import Span
from luthier.errors import DataError
from luthier.spec.recipe import CleanStep
from luthier.spec.resolve import CLEAN_CLOSED, CLEAN_OPEN

MESSY = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("&;#<>brp/ÃÂâ€™Ð©\n\t \u200b[]@.0123456789+-"))
)


@pytest.mark.parametrize(
    ("garbled", "meant"),
    [
        ("cafÃ©", "café"), ("itâ€™s", "it’s"), ("Â£25", "£25"), ("5 â‚¬", "5 €"), ("Ã¼ber", "über"), ("ðŸ˜€", "😀"),
        ("Å‚ódka", "łódka"), ("æ—¥æœ¬èªž", "日本語"), ("Ð¼Ð¸Ñ€", "мир"), ("say â€œhiâ€\u009d", "say “hi”"),
    ],
)  # fmt: skip
def test_mojibake_is_repaired(garbled: str, meant: str) -> None:
    assert clean.repair_mojibake(garbled) == meant


@pytest.mark.parametrize(
    "meant",
    ["Siobhán", "Spaß”", "CAFÉ…", "« VOILÀ\u00a0»", "AMANHÃ”", "Tomáš", "日本語", "Ä”", "naïve – déjà vu", "10 °C"],
)
def test_what_is_meant_is_not_repaired(meant: str) -> None:
    assert clean.repair_mojibake(meant) == meant


WIDE = st.characters(min_codepoint=0xA1, max_codepoint=0xFFFF, exclude_categories=["Cs", "Cn"])


@given(st.text(WIDE, min_size=2, max_size=8))
def test_utf8_read_as_latin_1_is_repaired(text: str) -> None:
    garbled = text.encode().decode("latin-1")
    if len(garbled) > len(text) + 1:
        assert clean.repair_mojibake(garbled) == text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a &amp; b &#39;c&#x27; &pound;5", "a & b 'c' £5"), ("?a=1&copy=2", "?a=1&copy=2"), ("R&D;", "R&D;"),
        ("<p>one</p><br/>two", "\none\n\ntwo"), ("<P class='x'>a", "\na"), ("1 < 2 <b>bold</b>", "1 < 2 <b>bold</b>"),
    ],
)  # fmt: skip
def test_unescape_html(text: str, cleaned: str) -> None:
    assert clean.unescape_html(text) == cleaned


def test_the_small_steps() -> None:
    assert clean.strip_control("a\r\nb\x00\x07\ufeff\u200bc\rd\ud800") == "a\nbc\nd"
    assert clean.strip_control("👩\u200d🚀") == "👩\u200d🚀"
    assert clean.normalise_unicode("e\u0301") == "é"
    assert clean.collapse_whitespace("  a \u00a0 b \n\n \n c\t") == "a b\nc"
    assert clean.strip_ends("\n  def f():\n    pass\n") == "def f():\n    pass"
    with pytest.raises(DataError, match="unknown transform 'polish'\n  -> known in this version: unescape_html"):
        clean.apply(["polish"], "x")


@given(st.text(st.sampled_from("ab\u200b \n\t\r\v\f\x1c\x1f\x85\u00a0\u2003\u2028\u3000"), max_size=12))
def test_collapsed_white_space_is_what_two_patterns_say(text: str) -> None:
    assert clean.collapse_whitespace(text) == re.sub(r"[^\S\n]+", " ", re.sub(r"\s*\n\s*", "\n", text)).strip()


@pytest.mark.parametrize("transforms", [CLEAN_CLOSED, CLEAN_OPEN])
@pytest.mark.parametrize("redact", [True, False])
@given(text=MESSY)
@example(text="&amp;amp;lt;br&gt;")
@example(text="mail a@b.de call +44 20 7946 0123 Ã¢â‚¬â„¢")
def test_a_prepared_text_stays_as_it_is(transforms: tuple[str, ...], redact: bool, text: str) -> None:
    def prepared(text: str) -> str:
        return prepare_text(text, transforms=transforms, redact_personal=redact, redact_secrets=redact)

    assert prepared(prepared(text)) == prepared(text)


def test_the_steps_of_a_recipe_are_those_of_the_table() -> None:
    assert get_args(CleanStep) == tuple(clean.TRANSFORMS)


def test_no_more_than_a_hundred_changes_are_looked_at_for_those_that_are_shown() -> None:
    """Where every text holds a find nothing may be shown; a million such rows must not be searched for it."""
    asked: list[str] = []

    def find_watched(text: str) -> list[Span]:
        asked.append(text)
        return find(text)

    ledger = Ledger(Detector("fast", find_watched, find_watched))
    for n in range(300):
        ledger.changed(Item("f.csv", n, None, {}, text=f"mail ana{n}@example.org"), f"mail&nbsp;ana{n}@example.org")
    assert (len(asked), ledger.changes) == (100, [])
    ledger = Ledger()
    for n in range(300):
        ledger.changed(Item("f.csv", n, None, {}, text=f"parcel {n}"), f"parcel&nbsp;{n}")
        ledger.changed(Item("f.csv", n, None, {}, text="same"), " same ")
    assert [change.line for change in ledger.changes] == list(range(8)), (
        "the first; white space at the ends is no change"
    )
