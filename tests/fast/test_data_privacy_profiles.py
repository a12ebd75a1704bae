"""Patterns win, a model may only add, what is learned from a sample is found again, nothing works with less."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_kit import renderer
from hypothesis import given
from hypothesis import strategies as st

from luthier.data import privacy
from luthier.data.contract import Renderer
from luthier.data.privacy import crf, ner
from luthier.data.privacy.annotations import learn, read_annotations
from luthier.data.privacy.dates import looks_like_a_date
from luthier.data.privacy.features import BUCKETS, Word
from luthier.data.privacy.profiles import FAST, Detector, open_detector, teachers, with_scanner
from luthier.data.privacy.settle import LEAST_CHANCE, settle
from luthier.data.privacy.spans import OPEN_ENDED, Span, add_cut, add_extended, joined, placeholders
from luthier.data.privacy.tagger import Example, Said, Tagger, train
from luthier.errors import DataError, MissingExtra, RecipeError, RunError

installed = pytest.mark.skipif(bool(ner.missing_package()), reason="needs the extra 'privacy'")


def values(text: str, find: Callable[[str], list[Span]]) -> list[tuple[str, str]]:
    return [(span.kind, text[span.start : span.end]) for span in find(text)]


TEXT = "Dear team, Robert Johnson of Chicago, ana@example.org, born on 3/2/1984, came on 12 May 2020 for two days."


@pytest.fixture(scope="module")
def balanced() -> Detector:
    return open_detector("balanced")


@installed
def test_a_model_adds_what_patterns_cannot_see(balanced: Detector) -> None:
    assert values(TEXT, FAST.find) == [("email", "ana@example.org"), ("date_of_birth", "3/2/1984")]
    assert values(TEXT, balanced.find) == [
        ("name", "Robert Johnson"), ("location", "Chicago"), ("email", "ana@example.org"),
        ("date_of_birth", "3/2/1984"), ("date", "12 May 2020"),
    ]  # fmt: skip
    assert balanced.find(TEXT)[0].detector.startswith("presidio/")
    assert balanced.scrub(TEXT, personal=True, secrets=True) == (
        "Dear team, [NAME] of [LOCATION], [EMAIL], born on [DATE], came on [DATE] for two days."
    )
    assert balanced.scrub(TEXT, personal=False, secrets=True) == TEXT


@installed
def test_redaction_by_a_model_comes_to_an_end(balanced: Detector) -> None:
    for text in (TEXT, "Ana Ana Ana [NAME] London [LOCATION] Smith", "[NAME] [DATE] [PERSONAL] said John Smith"):
        clean = balanced.scrub(text, personal=True, secrets=True)
        assert balanced.find(clean) == []
        assert balanced.scrub(clean, personal=True, secrets=True) == clean


@installed
def test_keys_that_only_the_scanner_knows() -> None:
    text = "use SG." + "a" * 22 + "." + "b" * 43 + " and https://ana:hunter2pass@example.org/x"
    assert {kind for kind, _ in values(text, with_scanner)} >= {"secret.sendgrid", "secret.basic_auth"}
    assert with_scanner("a benign line of text with nothing in it, 1234, isn't it?") == []


@pytest.mark.parametrize("package", ner.PACKAGES.values())
def test_nothing_works_with_less(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real = ner.find_spec

    def without(module: str) -> object:
        return None if ner.PACKAGES.get(module) == package else real("json")

    monkeypatch.setattr(ner, "find_spec", without)
    assert ner.missing_package() == package
    with pytest.raises(
        MissingExtra, match=rf"needs the package '{package}', .*\n  -> pip install 'luthier\[privacy\]'"
    ):
        open_detector("balanced")
    assert open_detector("fast") is FAST


def test_a_contract_that_needs_a_model_is_not_opened_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = renderer(tmp_path)
    frozen = ours.contract.model_copy(update={"privacy_profile": "balanced"})
    (tmp_path / "contract.json").write_text(frozen.to_json())
    monkeypatch.setattr(ner, "find_spec", lambda module: None)
    with pytest.raises(MissingExtra):
        Renderer.open(tmp_path / "contract.json", tmp_path / "tokenizer" / "tokenizer.json")


def test_a_profile_and_its_tagger_belong_together() -> None:
    with pytest.raises(RecipeError, match=r"'maximum' needs a trained tagger\n  -> set data\.privacy\.annotations"):
        open_detector("maximum")
    tagger = Tagger((), np.zeros((BUCKETS, 1), np.float32), np.zeros((1, 1), np.float32))
    with pytest.raises(RecipeError, match="'fast' does not use a trained tagger"):
        open_detector("fast", tagger=tagger)


@pytest.mark.parametrize("text", ["1984-03-02", "March 2020", "Tuesday", "2019", "2 March", "12/5/20", "May"])
def test_dates(text: str) -> None:
    assert looks_like_a_date(text)


@pytest.mark.parametrize("text", ["two weeks", "the night shift", "24", "30 days", "this morning", "May Smith", ""])
def test_what_is_no_date(text: str) -> None:
    assert not looks_like_a_date(text)


SPANS = st.lists(
    st.tuples(st.integers(0, 38), st.integers(1, 12), st.sampled_from(["name", "address", "location"])).map(
        lambda one: Span(one[0], min(40, one[0] + one[1]), one[2])
    ),
    max_size=6,
)


@given(st.text("ab [NAME],\n", min_size=40, max_size=40), SPANS, SPANS)
def test_later_detectors_only_add(text: str, first: list[Span], second: list[Span]) -> None:
    for add in (add_cut, add_extended):
        taken: list[Span] = []
        add(taken, first, [], text)
        before = {place for span in taken for place in range(span.start, span.end)}
        kinds = {(place, span.kind) for span in taken for place in range(span.start, span.end)}
        add(taken, second, placeholders(text), text)
        taken = joined(taken, text) if add is add_cut else taken
        covered = [place for span in taken for place in range(span.start, span.end)]
        assert before <= set(covered)
        assert len(covered) == len(set(covered)), "no two overlap"
        if add is add_extended:
            assert kinds <= {(place, span.kind) for span in taken for place in range(span.start, span.end)}


# --- what is learned --------------------------------------------------------------------------------------------------

CREW = ("Zorblat", "Quixnar", "Vlimtor", "Plontik", "Drabzel", "Wexomir", "Klatuvi", "Mripsan", "Jolbrek", "Snavtig")


def sample() -> list[dict[str, Any]]:
    rows = []
    for number, name in enumerate(CREW * 4):
        frame = ("the cabin of {} is locked", "please wake {} at six", "the tea was cold", "tell {} that we wait")[
            number % 4
        ]
        text = frame.format(name)
        start = text.find(name)
        rows.append(
            {"text": text, "spans": [{"start": start, "end": start + len(name), "type": "CREW"}] if start >= 0 else []}
        )
    return rows


def patterns_only(text: str) -> tuple[list[Span], list[Word]]:
    return privacy.find(text), []


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_what_the_sample_marks_is_found_elsewhere(tmp_path: Path) -> None:
    tagger = learn(write(tmp_path / "s.jsonl", sample()), patterns_only)
    text = "please wake Hubrant at six, the tea was cold"
    (said,) = tagger(text)
    assert (said.span.kind, text[said.span.start : said.span.end]) == ("crew", "Hubrant")
    assert LEAST_CHANCE < said.chance <= 1
    path = tmp_path / "tagger.safetensors"
    tagger.save(path)
    assert list(Tagger.open(path)(text)) == list(tagger(text))
    assert not any(name.encode() in path.read_bytes() for name in CREW)
    again = learn(tmp_path / "s.jsonl", patterns_only)
    again.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b"tagger/3", b"tagger/2"))
    with pytest.raises(RunError, match="is not of tagger/3: another version learned it"):
        Tagger.open(path)
    path.write_bytes(path.read_bytes()[:99])
    with pytest.raises(RunError, match="is damaged"):
        Tagger.open(path)
    with pytest.raises(RunError, match="is missing"):
        Tagger.open(tmp_path / "none")


def test_spans_that_meet_within_a_token_leave_no_find_without_its_beginning() -> None:
    """'AB12' is one token: the second find begins with the next."""
    spans = [Span(7, 12, "b"), Span(0, 7, "a")]  # 'see AB1', '2 now'
    tagger = train([Example("see AB12 now", spans)] * 20)
    assert [one.span.kind for one in tagger("see AB12 now")] == ["a", "b"]


@installed
def test_maximum_masks_all_that_balanced_masks(tmp_path: Path, balanced: Detector) -> None:
    tagger = learn(write(tmp_path / "s.jsonl", sample()), teachers())
    maximum = open_detector("maximum", tagger=tagger)
    texts = (
        TEXT, "please wake Hubrant at six, said Mrs. Ana Smith of 12 Low Street, Porto", "[NAME] met Zorblat in Oslo",
        ">Gyala Antall\n>3369 24 Clarke Avenue\n>Apt. 805\n>Pines Beach\n>New Zealand 34694", "", "\n\n \ud800",
    )  # fmt: skip
    for text in texts:
        found = maximum.find(text)
        covered = {place for span in found for place in range(span.start, span.end)}
        for span in balanced.find(text):
            assert {place for place in range(span.start, span.end) if text[place].isalnum()} <= covered
        assert [place for span in found for place in range(span.start, span.end)] == sorted(covered), "no two overlap"
        clean = maximum.scrub(text, personal=True, secrets=True)
        assert maximum.find(clean) == []
    assert ("crew", "Hubrant") in values(texts[1], maximum.find)


@given(st.text(max_size=60))
def test_a_tagger_reads_any_text(text: str) -> None:
    tagger = train([Example("wake Ana now", [Span(5, 8, "name")])])
    for span, chance in tagger(text, [Span(0, 2, "address")][: len(text) // 2], [Word(0, 1, "NOUN", "NN", "")]):
        assert 0 <= span.start < span.end <= len(text)
        assert 0 <= chance <= 1 + 1e-9


TEXTS = st.text("ab1 [NAME],\n", min_size=40, max_size=40)
KINDS = ["name", "address", "location", "email", "secret.key", "crew"]
FINDS = st.lists(
    st.tuples(st.integers(0, 38), st.integers(1, 12), st.sampled_from(KINDS)).map(
        lambda one: Span(one[0], min(40, one[0] + one[1]), one[2])
    ),
    max_size=6,
)


@given(TEXTS, FINDS, FINDS, st.lists(st.floats(0, 1), min_size=6, max_size=6))
def test_a_tagger_masks_nothing_less(text: str, found: list[Span], said: list[Span], chances: list[float]) -> None:
    known: list[Span] = []
    add_cut(known, found, placeholders(text), text)
    taken = settle(known, [Said(span, chance) for span, chance in zip(said, chances, strict=False)], text)
    before = [place for span in known for place in range(span.start, span.end) if text[place].isalnum()]
    covered = [place for span in taken for place in range(span.start, span.end)]
    assert set(before) <= set(covered)
    assert len(covered) == len(set(covered)), "no two overlap"
    certain = [span for span in known if span.kind not in OPEN_ENDED]
    assert all(span in taken for span in certain), "what a pattern found stays as it is"


def test_what_the_sample_may_say() -> None:
    text = "Quixnar met Zorblat at 12 Low Street, Porto, call 0160 123456"
    name, who, where, call = (
        Span(0, 7, "organization"),
        Span(12, 19, "name"),
        Span(23, 43, "address"),
        Span(50, 61, "phone"),
    )

    def settled(*said: tuple[int, int, str, float]) -> list[tuple[str, str]]:
        spans = settle([name, where, call], [Said(Span(*one[:3]), one[3]) for one in said], text)
        return [(span.kind, text[span.start : span.end]) for span in spans]

    kept = [("organization", "Quixnar"), ("address", "12 Low Street, Porto"), ("phone", "0160 123456")]
    assert settled() == kept
    assert settled((0, 7, "name", 0.1))[0] == ("name", "Quixnar"), "of what kind a find is"
    assert settled((50, 61, "name", 1.0)) == kept, "but not of a pattern's"
    assert settled((23, 25, "address", 0.5), (26, 36, "address", 0.5), (38, 43, "location", 0.5))[1:4] == [
        ("address", "12"), ("address", "Low Street"), ("location", "Porto"),
    ], "in how many pieces an address is"  # fmt: skip
    assert settled((26, 36, "address", 1.0), (38, 43, "location", 1.0)) == kept, "but not with a number left out"
    assert settled((who.start, who.end, "name", LEAST_CHANCE))[1] == ("name", "Zorblat")
    assert settled((who.start, who.end, "name", LEAST_CHANCE - 0.01)) == kept, "what is not likely is not added"
    assert ("badge", "met") in settled((8, 11, "badge", 0.4)), "but of a kind that nobody else looks for it is"


def test_the_gradient_is_that_of_the_likelihood() -> None:
    """And the likelihood is that of the definition, summed over every way to tag."""
    generator = np.random.Generator(np.random.PCG64(0))
    sample = [(generator.integers(0, 5, (length, 2)), np.array([0, 1, 2, 0][:length])) for length in (4, 1, 3)]
    function = crf._Likelihood(sample, 1, 5)
    weights = generator.normal(size=function.num_weights)
    value, slope = function(weights)
    for place in range(len(weights)):
        step = np.zeros_like(weights)
        step[place] = 1e-6
        assert (function(weights + step)[0] - function(weights - step)[0]) / 2e-6 == pytest.approx(
            slope[place], abs=1e-4
        )
    table, move = np.zeros((5, 3)), function.parts(weights)[1]
    table[function.used] = function.parts(weights)[0]
    paths = move + crf.allowed(1)
    loss = crf.L2 / 2 * float(weights @ weights)
    for rows, tags in sample:
        scores = table[rows].sum(1)
        scores[0, 2] += crf.FORBIDDEN
        ways = {
            way: sum(scores[t, k] for t, k in enumerate(way)) + sum(paths[a, b] for a, b in pairwise(way))
            for way in product(range(3), repeat=len(rows))
        }
        total = np.logaddexp.reduce(list(ways.values()))
        loss += total - ways[tuple(tags)]
        assert tuple(crf.decode(table[rows].sum(1), paths)) == max(ways, key=lambda way: ways[way])
        chances = crf.marginals(table[rows].sum(1), paths)
        for t, k in product(range(len(rows)), range(3)):
            exact = sum(np.exp(score - total) for way, score in ways.items() if way[t] == k)
            assert chances[t, k] == pytest.approx(exact, abs=1e-9)
    assert value == pytest.approx(loss)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], r"s\.jsonl:1 is not JSON"),
        (["[]"], r"s\.jsonl:1 has no 'text' with 'spans'"),
        (['{"text": "a", "spans": [{"start": 0, "end": 2, "type": "PERSON"}]}'], "is not a piece of its text"),
        (['{"text": "a", "spans": [{"start": 0, "end": 1, "type": "a b"}]}'], "is not a piece of its text"),
        (
            ['{"text": "abc", "spans": [{"start": 1, "end": 3, "type": "A"}, {"start": 0, "end": 2, "type": "B"}]}'],
            r"s\.jsonl:1 has overlapping spans, 0 to 2 and 1 to 3",
        ),
        (['{"text": "a", "spans": [7]}'], "is not a piece of its text"),
        (['{"text": "secret words", "spans": []}'] * 30, r"has 30 annotated texts with 0 spans"),
        (['{"text": "a", "spans": [{"start": 0, "end": 1, "type": "PERSON"}]}'], r"has 1 annotated texts with 1 spans"),
    ],
)
def test_samples_that_cannot_be_used(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=message) as error:
        read_annotations(path)
    assert error.value.way_out
    assert "secret words" not in str(error.value)


def test_usual_names_of_types_become_our_kinds(tmp_path: Path) -> None:
    row = {
        "text": "Ana Ana",
        "spans": [{"start": 0, "end": 3, "type": "PERSON"}, {"start": 4, "end": 7, "type": "email"}],
    }
    (_, spans), *_ = read_annotations(write(tmp_path / "s.jsonl", [row] * 20))
    assert [span.kind for span in spans] == ["name", "email"]
    with pytest.raises(DataError, match="is missing"):
        read_annotations(tmp_path / "none")
