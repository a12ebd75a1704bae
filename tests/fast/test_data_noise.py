"""Noise changes what it may and nothing else, by chance that hangs on its arguments alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data import noise

FIXED = ["https://shop.example/a?b=1", "ana@acme.com", "[EMAIL]", "[PERSON]", "12.50", "AB-77", "{field}", "`x = y`",
         "<b>", "@ana", "#late", "www.example.org"]  # fmt: skip
WORDS = ["where", "Order", "naïve", "заказ", "订单", "हिन्दी", "it's", "money,", "late!", "a"]
texts = st.lists(st.sampled_from(FIXED + WORDS), min_size=1, max_size=12).map(" ".join)


def changed(technique: str, text: str, seed: int, template: str = "") -> str | None:
    kept, chance = noise.keep(text, template=template), noise.dice(seed, technique, text)
    if technique == "typos":
        return noise.typos(text, kept, chance, rate=0.3)
    return getattr(noise, technique)(text, kept, chance)


@settings(max_examples=150, deadline=None)
@given(text=texts, seed=st.integers(0, 9), technique=st.sampled_from(["typos", "case", "punctuation"]))
def test_fixed_parts_stay_and_the_same_dice_give_the_same(text: str, seed: int, technique: str) -> None:
    made = changed(technique, text, seed)
    assert made == changed(technique, text, seed)
    if made is None:
        return
    assert made != text
    fixed = [word for word in text.split() if word in FIXED]
    for part in set(fixed):
        assert made.count(part) >= fixed.count(part), (text, made)
    if technique == "case":
        assert made.casefold() == text.casefold()
    if technique == "punctuation":
        assert noise.words_of(made.replace("'", "")) == noise.words_of(text.replace("'", ""))


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60), seed=st.integers(0, 3), technique=st.sampled_from(["typos", "case", "punctuation"]))
def test_any_text_goes(text: str, seed: int, technique: str) -> None:
    made = changed(technique, text, seed)
    assert made is None or made != text


def test_typing_errors_come_at_the_rate_asked_for() -> None:
    text = "where is the parcel that was ordered last month by the customer " * 40
    letters = sum(char.isalpha() for char in text)
    made = noise.typos(text, noise.keep(text), noise.dice(0, "x"), rate=0.05)
    assert made is not None
    # Left out and doubled letters shift what follows, so words are compared: 5 % of 5 letters are about 22 % of words.
    wrong = sum(one != two for one, two in zip(text.split(), made.split(), strict=True))
    assert 0.5 * letters * 0.05 < wrong < letters * 0.05 * 1.1
    assert (
        noise.typos("[EMAIL] 12 https://a.org", noise.keep("[EMAIL] 12 https://a.org"), noise.dice(0), rate=1) is None
    )
    once = noise.typos("ab", noise.keep("ab"), noise.dice(1), rate=0.001)
    assert once is not None, "one error at least"


def test_every_letter_has_neighbours_that_have_it() -> None:
    assert len(noise.NEIGHBOURS) == 26
    assert [sorted(noise.NEIGHBOURS[letter]) for letter in "qgm"] == [
        ["a", "w"],
        ["b", "f", "h", "t", "v", "y"],
        ["j", "k", "n"],
    ]
    for letter, near in noise.NEIGHBOURS.items():
        assert all(letter in noise.NEIGHBOURS[other] for other in near), letter


def test_wording_of_the_template_and_what_the_answer_repeats_stay() -> None:
    text = "Title: broken neck\nMessage: it broke"
    kept = noise.keep(text, template="Title: {title}\nMessage: {body}", words={"neck"})
    assert "".join("-" if stays else char for char, stays in zip(text, kept, strict=True)) == (
        "------ broken ----\n-------- it broke"
    )
    assert noise.keep("buy it, do buy_it", phrase="buy") == bytearray([1] * 3 + [0] * 14)


def test_swaps_keep_borders_case_and_fixed_parts() -> None:
    swaps = noise.Swaps.over([["guitar", "cello"], ["New York", "Rome"], ["New", "old"]])

    def swap(text: str, **more: object) -> noise.Pair | None:
        return swaps.swap(text, noise.keep(text), noise.dice(0, text), **more)  # type: ignore[arg-type]

    assert swap("my guitar, the GUITAR, a Guitar and guitars") == ("my cello, the CELLO, a Cello and guitars", "")
    assert swap("guitar to me@guitar.org, code guitar/1") == ("cello to me@guitar.org, code guitar/1", "")
    assert swap("me@guitar.org") is None
    assert swap("to New York") == ("to Rome", "")
    assert swap("nothing here") is None
    assert swap("who plays guitar?", answer="Guitar is played") == ("who plays cello?", "Cello is played")
    assert swap("who plays guitar?", answer="nobody", both=True) is None


def test_a_chance_is_spread_over_all_choices() -> None:
    swaps = noise.Swaps.over([["ask", "buy", "sell", "rent"]])
    seen = {swaps.swap("ask", noise.keep("ask"), noise.dice(seed, "swap")) for seed in range(60)}
    assert seen == {("buy", ""), ("sell", ""), ("rent", "")}


@pytest.mark.parametrize("text", ["हिन्दी", "é̂"])
def test_letters_that_carry_a_mark_are_not_taken_apart(text: str) -> None:
    for seed in range(20):
        made = changed("typos", text, seed)
        marks = [at for at in range(1, len(text)) if noise.unicodedata.category(text[at]).startswith("M")]
        assert made is None or all(text[at - 1 : at + 1] in made for at in marks)
