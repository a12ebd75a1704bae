"""Baselines: what they predict, how C is chosen, and that they repeat."""

from __future__ import annotations

import random

import echo_engine
import numpy as np
import pytest
from echo_engine import example

from luthier.data.answers import joined
from luthier.data.shards import Example
from luthier.evals.baselines import (
    REGULARISATIONS,
    Baseline,
    baselines_of,
    majority,
    mean,
    tfidf_each,
    tfidf_logreg,
    tfidf_ridge,
)
from luthier.records import Scale

WORDS = {
    "refund": ["money back", "refund please", "pay me back"],
    "late": ["where is it", "still waiting", "not here"],
    "praise": ["lovely sound", "great guitar", "well made"],
}


def messages(count: int, *, seed: int) -> list:
    """Messages whose label is carried by a phrase in noise; separable by words."""
    rng = np.random.default_rng(seed)
    found = []
    for line in range(count):
        label = str(rng.choice(list(WORDS), p=[0.5, 0.3, 0.2]))
        noise = " ".join(rng.choice(["hello", "the", "my", "order", "and", "today", "you"], size=5))
        found.append(example(f"{noise} {rng.choice(WORDS[label])}", label, line=line + 2))
    return found


def share_right(baseline: Baseline, test: list) -> float:
    return float(np.mean([said == row.answer for said, row in zip(baseline.predicted, test, strict=True)]))


def test_majority_says_the_commonest_training_label_to_everything():
    train = [example("a", "x"), example("b", "y"), example("c", "y")]
    assert majority(train, [], train[:2]) == Baseline("majority class (y)", ("y", "y"))


def test_majority_of_equals_is_the_first_in_the_alphabet():
    train = [example("a", "y"), example("b", "x")]
    assert majority(train, [], train).predicted == ("x", "x")
    assert majority(train[::-1], [], train).predicted == ("x", "x")


@pytest.mark.parametrize("held_out", [0, 40])
def test_tfidf_beats_majority_where_words_tell_the_label(held_out):
    train, validation, test = messages(90, seed=0), messages(held_out, seed=1), messages(60, seed=2)
    linear = tfidf_logreg(train, validation, test)
    assert share_right(linear, test) > 0.95 > share_right(majority(train, [], test), test)
    assert linear == tfidf_logreg(train, validation, test), "the same rows give the same predictions"
    assert linear.title in {f"TF-IDF + logistic regression (C = {c:g})" for c in REGULARISATIONS}


def test_test_rows_have_no_part_in_the_fit():
    train, test = messages(60, seed=0), messages(20, seed=2)
    alone = tfidf_logreg(train, [], test[:1])
    among = tfidf_logreg(train, [], test)
    assert alone.predicted == among.predicted[:1]


def test_classes_too_rare_for_folds_are_learned_all_the_same():
    train = [*messages(40, seed=0), example("please call me by phone", "call")]
    assert tfidf_logreg(train, [], [example("please call me by phone", "call")]).predicted == ("call",)


def test_a_row_for_each_class_is_enough():
    train = [example("money back", "refund"), example("lovely sound", "praise")]
    assert tfidf_logreg(train, [], train).predicted == ("refund", "praise")


def test_texts_without_letters_and_scripts_without_spaces_are_no_trouble():
    train = [example("", "empty"), example("!!!", "marks"), example("退款 谢谢", "refund"), example("?", "marks")] * 4
    assert tfidf_logreg(train, [], train[:4]).predicted == ("empty", "marks", "refund", "marks")


def test_each_kind_of_answer_has_its_own():
    kinds = {
        ("majority", "tfidf_logreg"): {"labels": ("a", "b")},
        ("mean", "tfidf_ridge"): {"labels": (), "scale": Scale(mean=0.0, spread=1.0)},
        (): {"labels": ()},
    }
    for names, said in kinds.items():
        assert tuple(baselines_of(echo_engine.contract(**said))) == names
    several = baselines_of(echo_engine.contract(labels=(), tags=("a",), separator=","))
    assert tuple(several) == ("majority", "tfidf_logreg")


@pytest.mark.parametrize("held", [0, 40])
def test_a_model_a_label_and_ridge_learn_what_words_say(held: int) -> None:
    rng = random.Random(0)
    words = {"late": "delayed", "broken": "cracked", "refund": "money"}

    def rows(count: int) -> tuple[list[Example], list[Example]]:
        labelled, numbered = [], []
        for _ in range(count):
            labels = [label for label in words if rng.random() < 0.4]
            text = " ".join([*(words[label] for label in labels), rng.choice(["cello", "drum"])])
            labelled.append(example(text, joined(labels, ",")))
            numbered.append(example(text, str(2.5 * len(labels) - 1)))
        return labelled, numbered

    train, numbered_train = rows(120)
    validation, numbered_validation = rows(held)
    test, numbered_test = rows(60)
    each = tfidf_each(train, validation, test, separator=",")
    assert np.mean([said == one.answer for said, one in zip(each.predicted, test, strict=True)]) > 0.95
    ridge = tfidf_ridge(numbered_train, numbered_validation, numbered_test)
    off = [abs(float(said) - float(one.answer)) for said, one in zip(ridge.predicted, numbered_test, strict=True)]
    assert np.mean(off) < 0.2
    flat = mean(numbered_train, [], numbered_test)
    assert float(flat.predicted[0]) == pytest.approx(np.mean([float(one.answer) for one in numbered_train]))


def test_a_label_that_every_row_has_needs_no_model() -> None:
    train = [example(f"text {number}", "a, b" if number % 2 else "a") for number in range(12)]
    made = tfidf_each(train, [], train, separator=",")
    assert all("a" in said for said in made.predicted)
