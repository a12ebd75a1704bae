"""Each filter sets aside what it names and nothing else."""

from __future__ import annotations

import itertools
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data import filters
from luthier.data.filters import FEWEST_WORDS, filtered, repetition, tell_languages
from luthier.data.items import Item
from luthier.errors import MissingExtra, RecipeError
from luthier.records import Message
from luthier.spec.recipe import Filter

GERMAN = "Wo bleibt meine Bestellung, sie sollte doch schon am Montag ankommen?"
FRENCH = "Où est ma commande, elle devait arriver lundi et je ne l'ai toujours pas reçue."
ENGLISH = "Where is my order, it was to arrive on Monday and I have not received it."


def item(text: str) -> Item:
    return Item("f.csv", 2, None, {}, text=text)


def reasons(texts: list[str], **rules: object) -> list[str | None]:
    verdicts = filtered([item(text) for text in texts], Filter.model_validate(rules))
    return [verdict[0] if verdict else None for verdict in verdicts]


@given(st.text(max_size=40))
def test_lengths_are_bounds_that_are_allowed_themselves(text: str) -> None:
    size = len(text)
    assert reasons([text], min_chars=size or 1, max_chars=max(size, 1)) == [None if size else "too_short"]
    assert reasons([text], min_chars=size + 1) == ["too_short"]
    if size > 1:
        assert reasons([text], max_chars=size - 1) == ["too_many_characters"]


def test_languages() -> None:
    texts = [GERMAN, FRENCH, ENGLISH, "ok", "40912 1123 5581 9921 3321"]
    assert reasons(texts, languages=["en"]) == ["other_language", "other_language", None, None, None]
    assert reasons(texts, languages=["de", "fr"]) == [None, None, "other_language", None, None]
    with pytest.raises(RecipeError, match=r"data\.filter\.languages: 'xx' is not known\n  -> .*ISO 639-1: .*de"):
        reasons(texts, languages=["xx"])


def test_the_language_package_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    filters._model.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid", None)
    with pytest.raises(MissingExtra, match=r"needs the package 'py3langid'.*\n  -> pip install 'luthier\[data\]'"):
        reasons([GERMAN], languages=["de"])
    filters._model.cache_clear()


def test_repetition() -> None:
    assert repetition("buy now " * 20) == pytest.approx(1 - 2 / 40)
    assert repetition("word " * (FEWEST_WORDS - 1)) == 0.0
    assert repetition(ENGLISH) < 0.3
    assert reasons(["buy now " * 20, ENGLISH], max_repetition=0.6) == ["repetitive", None]


def test_a_conversation_is_looked_at_whole() -> None:
    turns = (Message(role="user", content="hi"), Message(role="assistant", content=GERMAN))
    chat = Item("f.jsonl", 1, None, {}, turns=turns)
    (verdict,) = filtered([chat], Filter(languages=("en",)))
    assert verdict is not None
    assert verdict[0] == "other_language"
    assert GERMAN not in verdict[1]


def test_languages_of_many_rows_are_told_from_a_thousand_evenly_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    classified: list[str] = []

    class Model:
        def classify(self, text: str) -> tuple[str, float]:
            classified.append(text)
            return ("de" if int(text.split()[-1]) < 1250 else "en"), 1.0

    monkeypatch.setattr(filters, "_model", Model)
    monkeypatch.setattr(filters, "find_spec", lambda name: object())
    for rows, most in ((2500, 1000), (1001, 1000), (1000, 1000), (7, 7)):
        classified.clear()
        told = tell_languages([item(f"{ENGLISH} {n}") for n in range(rows)])
        assert told is not None
        assert told.looked_at == len(classified) == sum(told.rows.values()) <= most
        assert told.looked_at > most // 2
        places = [int(text.split()[-1]) for text in classified]
        assert len({two - one for one, two in itertools.pairwise(places)}) == 1
        assert rows - places[-1] <= places[1] - places[0], "up to the last rows"
        if rows == 2500:
            assert abs(told.rows["de"] - told.rows["en"]) <= 1
