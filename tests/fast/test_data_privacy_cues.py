"""The words around a model's find, its shape and other mentions say where it ends and what it is."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.privacy import cues, ner
from luthier.data.privacy.profiles import open_detector
from luthier.data.privacy.spans import Span

installed = pytest.mark.skipif(bool(ner.missing_package()), reason="needs the extra 'privacy'")
Finds = list[tuple[str, str]]


def marked(text: str, finds: Finds) -> list[Span]:
    """Spans of the first place where each value stands."""
    return [Span(text.index(value), text.index(value) + len(value), kind) for kind, value in finds]


def shown(text: str, spans: Iterable[Span]) -> Finds:
    return [(span.kind, text[span.start : span.end]) for span in spans]


@pytest.mark.parametrize(
    ("text", "kind", "found", "kept"),
    [
        ("Name: Ana Silva\nAddress: x", "name", "Ana Silva\nAddress", ["Ana Silva"]),
        ("The Alder Group is", "organization", "The Alder Group", ["Alder Group"]),
        ("Ana Silva's bike", "name", "Ana Silva's", ["Ana Silva"]),
        ("Ana:\"I'm Daniel's\"", "name", "Ana:\"I'm Daniel", ["Ana", "Daniel"]),
        ("this IBAN please", "organization", "IBAN", []),
        ("Phone: 12", "name", "Phone", []),
        ("on 3 May", "date", "3 May", ["3 May"]),
    ],
)
def test_a_find_ends_where_the_name_does(text: str, kind: str, found: str, kept: list[str]) -> None:
    assert [value for _, value in shown(text, cues.tidy(marked(text, [(kind, found)]), text))] == kept


@pytest.mark.parametrize(
    ("text", "said", "value", "kind"),
    [
        ("they flew to Alder on Monday", "name", "Alder", "location"),
        ("she works for Alder now", "name", "Alder", "organization"),
        ("my kid Alder is ill", "organization", "Alder", "name"),
        ("Alder lives at home", "organization", "Alder", "name"),
        ("Alder's daughter came", "location", "Alder", "name"),
        ("Juliusz A Kwiat spoke", "organization", "Juliusz A Kwiat", "name"),
        ("Alder Ltd. spoke", "name", "Alder Ltd.", "organization"),
        ("the stop is at Hoge Wei 32", "name", "Hoge Wei 32", "address"),
        ("Alder said so", "organization", "Alder", "organization"),
        ("it is 3 May", "date", "3 May", "date"),
    ],
)
def test_the_words_around_say_the_kind(text: str, said: str, value: str, kind: str) -> None:
    assert shown(text, cues.retyped(marked(text, [(said, value)]), text)) == [(kind, value)]


def test_a_house_number_makes_an_address() -> None:
    text = "he lives on Grossgasse 50 there"
    assert shown(text, cues.retyped(marked(text, [("name", "Grossgasse")]), text)) == [("address", "Grossgasse 50")]


@pytest.mark.parametrize(
    ("find", "text", "values"),
    [
        (cues.firms, "we asked Alder Systems Ltd. about Cole and Sons", ["Alder Systems Ltd.", "Cole and Sons"]),
        (cues.firms, "a limited offer, Inc", []),
        (cues.said, "my daughter Zora and I", ["Zora"]),
        (cues.said, "my wife I love", []),
        (cues.said, "I was born in Zorbia in May", ["Zorbia"]),
        (cues.said, "I was born in May", []),
    ],
)
def test_what_needs_no_model(find: Callable[[str], Iterable[Span]], text: str, values: list[str]) -> None:
    assert [value for _, value in shown(text, find(text))] == values


def test_mentions_of_one_thing_agree() -> None:
    text = "Zora Quix met Bel. Zora, Bel and Dimo left for Zorbia, said Bel."
    spans = [*marked(text, [("name", "Zora Quix"), ("organization", "Bel"), ("location", "Zorbia")])]
    second = text.index("Zora,")
    spans.append(Span(second, second + 4, "organization"))
    found = cues.agreed(spans, text)
    assert ("name", "Dimo") not in shown(text, found), "one of the three alone is no list of names"
    assert shown(text, found)[2] == ("name", "Zora"), "a word of a longer name"
    spans.append(Span(text.index("Bel and"), text.index("Bel and") + 3, "name"))
    found = cues.agreed(spans, text)
    assert shown(text, found) == [
        ("name", "Zora Quix"), ("name", "Bel"), ("name", "Zora"), ("name", "Bel"), ("name", "Dimo"),
        ("location", "Zorbia"),
    ]  # fmt: skip
    assert shown(text, cues.again(found, text))[-1] == ("name", "Bel")


def test_words_that_are_also_written_small_are_not_looked_for() -> None:
    text = "Your Order has come. Order it, and the order comes; Your turn."
    found = cues.again(marked(text, [("name", "Your Order")]), text)
    assert [value for _, value in shown(text, found)] == ["Your Order", "Your", "Your"]
    text = "Press Create Account to create an account. Ask Alder."
    kept = cues.unusual(marked(text, [("organization", "Create Account"), ("organization", "Alder")]), text)
    assert shown(text, kept) == [("organization", "Alder")]


@pytest.mark.parametrize(
    ("text", "kind", "value", "stays"),
    [
        ("Your Order: the order has come", "organization", "Order", False),
        ("Your Order: the order has come", "name", "Order", False),
        ("Young Order: the order of young men", "name", "Young Order", True),
        ("We don't", "location", "n't", False),
        ("we met ana at noon", "name", "ana", True),
        ("Hello {Website Name}", "name", "Website Name", False),
        ("in HTML it is", "name", "HTML", False),
        ("in USA it is", "location", "USA", True),
    ],
)
def test_what_the_text_speaks_against(text: str, kind: str, value: str, stays: bool) -> None:
    assert bool(list(cues.unusual(marked(text, [(kind, value)]), text))) == stays


def test_titles_stand_before_names() -> None:
    text = "Mr. Silva and Dr Bel, no mr at all"
    assert shown(text, cues.titles(marked(text, [("name", "Silva"), ("name", "Bel")]), text)) == [
        ("title", "Mr."),
        ("title", "Dr"),
    ]


def test_a_learned_find_loses_signs_and_small_words() -> None:
    text = "Hi Zora, and the 42) of"
    assert shown(text, cues.trimmed([Span(0, len(text), "name"), Span(9, 16, "name")], text)) == [
        ("name", "Zora, and the 42)")
    ]
    text = "badge AB-20 or AB-21-x, -7"
    for start, end, whole in ((6, 9, "AB-20"), (9, 10, "AB-20"), (15, 18, "AB-21-x"), (18, 20, "AB-21-x")):
        assert shown(text, cues.trimmed([Span(start, end, "badge")], text)) == [("badge", whole)]


@given(st.text(st.sampled_from("ABÉßŉab >|#-\n.İǆ"), max_size=40))
def test_what_the_model_reads_is_as_long_as_the_text(text: str) -> None:
    assert len(ner.readable(text)) == len(text)
    assert [char for char in ner.readable(text) if char == "\n"] == [char for char in text if char == "\n"]


def test_the_model_reads_no_marks_of_quoting_and_no_capitals() -> None:
    assert ner.readable("> flew to HORTEN with\n> NASAX, said NASAX") == "  flew to Horten with\n  NASAX, said NASAX"
    assert ner.readable("ALL IN CAPITALS") == "ALL IN CAPITALS"


PIECES = st.sampled_from(
    ["Mr. ", "Ana Silva", ", ", " and ", "lives in ", "my son ", "Alder Ltd.", "\n> ", "[NAME]", "[TITLE] ", "flew to ",
     "Robert Johnson", "London", "'s ", "12 High Street", "the corner of ", "GB82 WEST 1234 5698 7654 32", ": ", "Name",
     "on 12 May 2020 "]
)  # fmt: skip


@installed
@settings(max_examples=15, deadline=None)
@given(st.lists(PIECES, max_size=10).map("".join))
def test_redaction_comes_to_an_end_and_finds_do_not_overlap(text: str) -> None:
    detector = open_detector("balanced")
    spans = detector.find(text)
    assert all(one.end <= two.start for one, two in pairwise(spans))
    assert not any(re.search(r"\[[A-Z]*$", text[: span.start]) for span in spans), "placeholders stay as they are"
    assert detector.find(detector.scrub(text, personal=True, secrets=True)) == []


@pytest.mark.parametrize("piece", ["A, ", "Aa ", "Aa, ", "my son ", "Aa and ", "A" * 9, "lives in Aa ", "\n> ", "I A "])
def test_long_texts_take_linear_time(piece: str) -> None:
    def seconds(times: int) -> float:
        text, best = piece * times, 9.0
        for _ in range(3):
            began = time.process_time()
            found = [*cues.firms(text), *cues.said(text)]
            list(cues.again(found[:3], text))
            ner.readable(text)
            list(cues.tidy([Span(0, len(text), "name")], text))
            cues.agreed([Span(0, 2, "name")], text)
            best = min(best, time.process_time() - began)
        return best

    seconds(100)
    assert seconds(16_000) < 16 * max(seconds(2_000), 0.002)
