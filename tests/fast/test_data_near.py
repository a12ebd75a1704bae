"""What is found is exactly true, what is true is nearly always found, nothing chains, and crowds stay cheap."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest
from data_kit import resolved
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data import near
from luthier.data.dedupe import near_repeated, without_wording
from luthier.data.near import SHINGLE, NearPairs, bands_for, jaccard, shingles
from luthier.spec.recipe import Recipe

WORDS = ["parcel", "refund", "late", "where", "order", "broken", "guitar", "please", "invoice", "my", "card", "again"]
TEXT = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)
ANY = st.text(st.characters(), max_size=30)  # lone surrogates too


def corpus(count: int, seed: int) -> list[str]:
    """Messages of which a third is an earlier one with a word exchanged."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(3000)]
    texts: list[str] = []
    for _ in range(count):
        if texts and draw.random() < 0.33:
            copy = draw.choice(texts).split()
            copy[draw.randrange(len(copy))] = draw.choice(words)
            texts.append(" ".join(copy))
        else:
            texts.append(" ".join(draw.choices(words, k=draw.randint(4, 18))))
    return texts


@settings(deadline=None)
@given(text=ANY)
def test_shingles_are_all_parts_of_the_text(text: str) -> None:
    found = shingles(text)
    if len(text) < SHINGLE:
        assert found == {text.ljust(SHINGLE, "\0")}
    else:
        assert found == {text[at : at + SHINGLE] for at in range(len(text)) if at + SHINGLE <= len(text)}
    assert jaccard(found, found) == 1.0


def found_in(pairs: NearPairs) -> dict[tuple[int, int], float]:
    values = zip(pairs.earlier.tolist(), pairs.later.tolist(), pairs.jaccard.tolist(), strict=True)
    return {(earlier, later): value for earlier, later, value in values}


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXT | ANY, max_size=25), threshold=st.sampled_from([0.5, 0.6, 0.8, 0.9, 1.0]))
def test_what_is_found_is_true_and_equal_sets_are_always_found(texts: list[str], threshold: float) -> None:
    pairs = NearPairs(texts, threshold)
    sets = [shingles(text) for text in texts]
    found = found_in(pairs)
    assert len(found) == len(pairs.later)
    for (earlier, later), value in found.items():
        assert earlier < later
        assert value == jaccard(sets[earlier], sets[later]) >= threshold
    # Of many equal texts the first are not compared with the last; those between link them.
    equal = {(a, b) for a, b in combinations(range(len(texts)), 2) if sets[a] == sets[b]}
    assert equal <= set(found) or pairs.crowded
    assert {b for _, b in equal} <= {b for _, b in found}, "who has an equal one is compared with the likeliest"
    before = pairs.before()
    assert {(match.index, later) for later, matches in before.items() for match in matches} == set(found)
    assert all(
        [match.index for match in matches] == sorted(match.index for match in matches) for matches in before.values()
    )


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXT, max_size=14), left=st.integers(0, 14))
def test_pairs_between_two_sides_are_those_of_all_pairs(texts: list[str], left: int) -> None:
    every = found_in(NearPairs(texts, 0.6))
    assert found_in(NearPairs(texts, 0.6, left=left)) == {
        pair: value for pair, value in every.items() if pair[0] < left <= pair[1]
    }


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXT, max_size=14), keep=st.sets(st.integers(0, 13)))
def test_pairs_among_some_texts_are_those_of_the_texts_alone(texts: list[str], keep: set[int]) -> None:
    places = [place for place in sorted(keep) if place < len(texts)]
    some = [texts[place] for place in places]
    whole = NearPairs(texts, 0.6).among(np.array(places, dtype=np.int64), some)
    assert found_in(whole) == found_in(NearPairs(some, 0.6))
    assert all(whole.compare(*pair) == value for pair, value in found_in(whole).items())


@pytest.mark.parametrize("threshold", [0.6, 0.7, 0.8])
def test_recall_against_all_pairs(threshold: float) -> None:
    texts = corpus(700, seed=1)
    sets = [shingles(text) for text in texts]
    true = {(a, b) for a, b in combinations(range(len(texts)), 2) if jaccard(sets[a], sets[b]) >= threshold}
    pairs = NearPairs(texts, threshold)
    found = set(found_in(pairs))
    assert found <= true
    assert len(true) > 20
    assert len(found) >= 0.99 * len(true)
    assert pairs.compared < 0.05 * len(texts) ** 2


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.95, 1.0])
def test_bands_miss_seldom_and_are_as_long_as_the_hashes_allow(threshold: float) -> None:
    bands, rows = bands_for(threshold)
    assert bands * rows <= 160
    assert (1 - threshold**rows) ** bands <= 0.005
    longer = rows + 1
    assert longer > 16 or (1 - threshold**longer) ** (160 // longer) > 0.005


def test_equal_least_hashes_are_as_frequent_as_the_jaccard_index() -> None:
    """One hash a band: the share of equal keys estimates J, with the spread of independent draws."""
    texts = ["the quick brown fox jumps over the lazy dog today", "the quick brown fox jumps over a lazy cat today"]
    draws = 4000
    keys = near._least_hashes(texts, draws, 1)[0]
    exact = jaccard(shingles(texts[0]), shingles(texts[1]))
    share = float(np.mean(keys[:, 0] == keys[:, 1]))
    assert abs(share - exact) < 4 * (exact * (1 - exact) / draws) ** 0.5


@settings(deadline=None)
@given(texts=st.lists(ANY, min_size=1, max_size=12), order=st.randoms(use_true_random=False))
def test_keys_depend_on_the_text_alone(texts: list[str], order: random.Random) -> None:
    alone = [near._least_hashes([text], 3, 2)[0][:, 0].tolist() for text in texts]
    places = list(range(len(texts)))
    order.shuffle(places)
    together = near._least_hashes([texts[place] for place in places], 3, 2)[0]
    assert [together[:, at].tolist() for at in range(len(places))] == [alone[place] for place in places]


def test_batches_do_not_change_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*corpus(60, seed=2), "x" * 3000, ""]
    whole = near._least_hashes(texts, 4, 3)
    monkeypatch.setattr(near, "_BATCH", 100)  # the longest text alone is more than that
    for part, again in zip(whole, near._least_hashes(texts, 4, 3), strict=True):
        assert (part == again).all()


def test_likeness_does_not_chain() -> None:
    first = "one two three four five six seven eight nine ten eleven twelve"
    second = first.replace("twelve", "dozens")
    third = second.replace("one two", "uno dos")
    one, two, three = (shingles(text) for text in (first, second, third))
    threshold = 0.7
    assert min(jaccard(one, two), jaccard(two, three)) >= threshold > jaccard(one, three)
    found = near_repeated(NearPairs([first, second, third], threshold), ["", "", ""])
    assert [match and match.index for match in found.first] == [None, 0, None]
    found = near_repeated(NearPairs([second, first, third], threshold), ["", "", ""])
    assert [match and match.index for match in found.first] == [None, 0, 0]


def test_another_label_is_a_conflict_and_never_a_repetition() -> None:
    base = "please tell me where the parcel with my guitar is now"
    texts = [base, base.replace("now", "not"), base.replace("now", "new"), "something else altogether, thank you"]
    found = near_repeated(NearPairs(texts, 0.8), ["a", "b", "a", "a"])
    assert [match and match.index for match in found.first] == [None, None, 0, None]
    assert [(row, match.index) for row, match in found.conflicts] == [(1, 0)]


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(TEXT, st.sampled_from("ab")), max_size=20))
def test_every_dropped_row_is_like_a_kept_one_of_its_label(rows: list[tuple[str, str]]) -> None:
    texts, labels = [text for text, _ in rows], [label for _, label in rows]
    found = near_repeated(NearPairs(texts, 0.6), labels)
    for row, match in enumerate(found.first):
        if match is not None:
            assert found.first[match.index] is None
            assert labels[match.index] == labels[row]
            assert jaccard(shingles(texts[row]), shingles(texts[match.index])) >= 0.6


def test_a_crowd_costs_linear_time() -> None:
    texts = [f"your order number {number:07} has been sent to you today" for number in range(0, 3_000_000, 1000)]
    pairs = NearPairs(texts, 0.8)
    assert pairs.crowded > 0
    assert pairs.compared <= near._MOST_COMPARED * len(texts)


def test_of_many_like_texts_the_likeliest_are_compared() -> None:
    base = "please tell me where the parcel with my guitar is now and when it will come"
    like = [base.replace("guitar", word) for word in ("guitars", "cello", "violin", "fiddle", "banjo", "flute", "harp")]
    pairs = NearPairs([*like, base], 0.6)
    mine = [(match.index, match.jaccard) for match in pairs.before()[len(like)]]
    values = sorted((jaccard(shingles(base), shingles(text)) for text in like), reverse=True)
    assert len(mine) == near._MOST_COMPARED
    assert mine[0][0] == 0, "the likeliest of all is among them"
    assert sum(value for _, value in mine) >= 0.95 * sum(values[: near._MOST_COMPARED])
    assert pairs.crowded >= 1


def test_a_crowd_of_one_text_leaves_one_row() -> None:
    texts = ["where is my parcel " + "!" * (number % 2) for number in range(300)]
    found = near_repeated(NearPairs(texts, 0.8), [""] * len(texts))
    assert [match and match.index for match in found.first] == [None] + [0] * 299


def test_a_sketch_spares_comparisons_and_loses_no_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    halves = [text[: len(text) // 2] for text in corpus(40, seed=5)]
    texts = [f"{one} {other}" for one in halves for other in halves]  # many are half alike
    monkeypatch.setattr(near, "_MOST_COMPARED", 10**6)
    pairs = NearPairs(texts, 0.7)
    monkeypatch.setattr(near, "_equal_hashes", lambda pairs, sketches: np.full(len(pairs), 10**6))
    every = NearPairs(texts, 0.7)  # no sketch speaks against anything
    assert found_in(pairs) == found_in(every)
    assert pairs.compared < every.compared / 2


@settings(deadline=None)
@given(pairs=st.lists(st.tuples(ANY, ANY | TEXT), max_size=6))
def test_likenesses_of_many_pairs_are_those_of_each(pairs: list[tuple[str, str]]) -> None:
    assert near.likenesses(pairs) == [jaccard(shingles(one), shingles(other)) for one, other in pairs]


def test_batches_of_pairs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = corpus(200, seed=3)
    whole = found_in(NearPairs(texts, 0.7))
    monkeypatch.setattr(near, "_PAIRS", 3)
    monkeypatch.setattr(near, "_BATCH", 7)
    assert found_in(NearPairs(texts, 0.7)) == whole != {}


def test_the_templates_own_words_do_not_make_rows_alike() -> None:
    template = "Subject: {title}\nText of the customer's message, as it was written: {body}"
    keys = [
        f"subject: {title} text of the customer's message, as it was written: {body}"
        for title, body in (("cello", "broken"), ("bow", "late"))
    ]
    bare = [without_wording(key, template) for key in keys]
    assert [text.split() for text in bare] == [["cello", "broken"], ["bow", "late"]]
    assert without_wording("a", "") == "a"


@pytest.mark.parametrize("value", [True, 0, 1.01, 0.49, "0.8", [0.8], {}])
def test_a_likeness_out_of_range_is_refused(value: object) -> None:
    data = {"train": [{"path": "d.csv"}], "dedupe": {"near": value}}
    with pytest.raises(ValueError, match=r"data\.dedupe\.near\n.*likeness from 0\.5 to 1, such as 0\.8, or off"):
        Recipe.model_validate({"name": "r", "model": {"name": "m"}, "data": data})


@pytest.mark.parametrize(("value", "threshold"), [(False, None), (None, None), (0.8, 0.8), (1, 1.0)])
def test_off_is_no_threshold(tmp_path: object, value: object, threshold: float | None) -> None:
    rules = resolved(tmp_path, dedupe={"near": value}).recipe.data.dedupe  # type: ignore[arg-type]
    assert rules is not None
    assert rules.threshold == threshold
