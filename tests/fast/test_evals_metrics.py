"""Metrics against scikit-learn, hand computations and their own algebra."""

from __future__ import annotations

import math
import pkgutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score

import luthier.evals.metrics
from luthier.errors import RecipeError
from luthier.evals.metric import load_metric
from luthier.evals.metrics import bleu, chrf
from luthier.evals.metrics.rouge_l import longest_common
from luthier.evals.observed import Observed
from luthier.spec.plugins import METRICS

PAIRS = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcde")), min_size=1, max_size=60)


def point(name: str, observed: Observed) -> float:
    metric = load_metric(name)
    return float(metric.value(metric.statistics(observed).sum(axis=0)))


def observed(pairs: list[tuple[str, str]]) -> Observed:
    return Observed(tuple(expected for expected, _ in pairs), tuple(predicted for _, predicted in pairs))


def test_every_described_metric_is_implemented_and_no_other():
    implemented = {module.name for module in pkgutil.iter_modules(luthier.evals.metrics.__path__)}
    assert implemented == set(METRICS.names())


def test_an_unknown_metric_lists_the_known_ones():
    with pytest.raises(RecipeError, match=rf"unknown metric 'bleurt'[^$]*{', '.join(METRICS.names())}"):
        load_metric("bleurt")


@settings(deadline=None)
@given(PAIRS)
def test_accuracy_and_macro_f1_are_those_of_scikit_learn(pairs):
    expected, predicted = zip(*pairs, strict=True)
    assert point("accuracy", observed(pairs)) == pytest.approx(accuracy_score(expected, predicted), abs=1e-12)
    reference = f1_score(expected, predicted, labels=sorted(set(expected)), average="macro", zero_division=0.0)
    assert point("macro_f1", observed(pairs)) == pytest.approx(reference, abs=1e-12)


@settings(deadline=None)
@given(PAIRS, st.lists(st.integers(0, 4), min_size=60, max_size=60))
def test_a_metric_of_weighted_sums_is_the_metric_of_repeated_items(pairs, times):
    times = times[: len(pairs)]
    repeated = [pair for pair, count in zip(pairs, times, strict=True) for _ in range(count)]
    if repeated:
        for name in ("accuracy", "macro_f1"):
            metric = load_metric(name)
            weighted = np.array(times, dtype=np.float64) @ metric.statistics(observed(pairs))
            assert float(metric.value(weighted)) == pytest.approx(point(name, observed(repeated)), abs=1e-12)


def test_a_class_that_is_never_predicted_counts_zero_and_one_that_never_occurs_counts_nothing():
    assert point("macro_f1", observed([("a", "a"), ("b", "c")])) == 0.5


def test_exact_match_compares_the_greedy_text_and_trims_it():
    seen = Observed(("yes", "no", "no"), ("no", "no", "no"), free_text=(" yes\n", "no way", "no"))
    assert point("exact_match", seen) == pytest.approx(2 / 3)


def test_perplexity_is_the_inverse_geometric_mean_probability_of_a_token():
    # Two answers: tokens of probability 1/2 and 1/8, and one of 1/4. exp(mean) = (2 * 8 * 4) ** (1/3) = 4.
    seen = Observed(
        ("x", "y"), ("x", "y"), answer_nll=np.array([math.log(16), math.log(4)]), answer_tokens=np.array([2.0, 1.0])
    )
    assert point("perplexity", seen) == pytest.approx(4.0)


def test_a_hopeless_perplexity_is_infinite_and_warns_of_nothing():
    seen = Observed(("x",), ("x",), answer_nll=np.array([1e6]), answer_tokens=np.array([1.0]))
    assert point("perplexity", seen) == math.inf


def test_fields_of_different_lengths_are_our_own_mistake():
    with pytest.raises(AssertionError, match="different lengths"):
        Observed(("a", "b"), ("a",))


DEGREES = st.lists(st.tuples(st.sampled_from("dbca"), st.sampled_from("dbca")), min_size=1, max_size=60)


def graded(pairs: list[tuple[str, str]]) -> Observed:
    """Of labels in an order that is not the alphabet's."""
    expected, predicted = zip(*pairs, strict=True)
    return Observed(expected, predicted, order=tuple("dbca"))


@settings(deadline=None)
@given(DEGREES)
def test_degrees_are_judged_as_scikit_learn_does(pairs):
    x, y = ([list("dbca").index(one) for one in side] for side in zip(*pairs, strict=True))
    assert point("mae", graded(pairs)) == pytest.approx(np.abs(np.subtract(x, y)).mean(), abs=1e-12)
    if len({*x, *y}) == 1:
        assert point("quadratic_kappa", graded(pairs)) == 1.0
        return
    reference = cohen_kappa_score(x, y, weights="quadratic", labels=range(4))
    assert point("quadratic_kappa", graded(pairs)) == pytest.approx(reference, abs=1e-9)


@settings(deadline=None)
@given(DEGREES, st.lists(st.integers(0, 4), min_size=60, max_size=60))
def test_of_degrees_weighted_sums_are_repeated_items(pairs, times):
    times = times[: len(pairs)]
    repeated = [pair for pair, count in zip(pairs, times, strict=True) for _ in range(count)]
    for name in ("mae", "quadratic_kappa") if repeated else ():
        metric = load_metric(name)
        weighted = np.array(times, dtype=np.float64) @ metric.statistics(graded(pairs))
        assert float(metric.value(weighted)) == pytest.approx(point(name, graded(repeated)), abs=1e-9)


def test_degrees_stay_with_their_items():
    seen = graded([("d", "a"), ("b", "b"), ("c", "d")])
    assert seen.degrees.tolist() == [[0, 3], [1, 1], [2, 0]]
    assert seen.only([2, 0]).degrees.tolist() == [[2, 0], [0, 3]]
    table = np.stack([load_metric("quadratic_kappa").statistics(seen).sum(axis=0)] * 2)
    assert load_metric("quadratic_kappa").value(table).shape == (2,)


TEXTS = st.lists(
    st.tuples(st.text("abc äß!.", max_size=14), st.text("abc äß!.", min_size=1, max_size=14)), min_size=1, max_size=8
)


@settings(deadline=None)
@given(TEXTS)
def test_chrf_of_a_corpus_is_sacrebleus(pairs: list[tuple[str, str]]) -> None:
    said, wanted = (list(part) for part in zip(*pairs, strict=True))
    reference = CHRF()
    score = reference.corpus_score(said, [wanted]).score
    assert point("chrf", Observed(tuple(wanted), tuple(said))) == pytest.approx(score, abs=1e-9)
    ours, theirs = set(chrf.SIGNATURE.split("|")), set(str(reference.get_signature()).split("|"))
    assert ours - theirs == {"chrF2"}
    assert all(part.startswith("version") for part in theirs - ours)


WORDS = st.sampled_from(
    ["a", "b", "c", "c.", "1.5", "2,", "3-4", "(d)", "e&amp;f", "-", "x-\n", "\n", "Ä", "…", "&quot;", "/", "<skipped>"]
)
LINES = st.lists(WORDS, max_size=12).map(" ".join)


@settings(deadline=None, max_examples=400)
@given(st.lists(st.tuples(LINES, LINES), min_size=1, max_size=6))
def test_bleu_of_a_corpus_is_sacrebleus(pairs: list[tuple[str, str]]) -> None:
    said, wanted = (list(part) for part in zip(*pairs, strict=True))
    reference = BLEU()
    score = reference.corpus_score(said, [wanted])
    assert bleu.words(said[0]) == Tokenizer13a()(said[0].rstrip()).split()
    assert point("bleu", Observed(tuple(wanted), tuple(said))) == pytest.approx(score.score, abs=1e-9)
    ours, theirs = set(bleu.SIGNATURE.split("|")), set(str(reference.get_signature()).split("|"))
    assert ours - theirs == {"BLEU"}
    assert all(part.startswith("version") for part in theirs - ours)


def test_bleu_of_many_resamples_is_that_of_each() -> None:
    said, wanted = ("a b c d e", "a b", "", "d"), ("a b c d f", "b a", "c", "e")
    table = load_metric("bleu").statistics(Observed(wanted, said))
    draws = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [2, 1, 1, 0], [0, 0, 0, 0]], dtype=float)
    together = load_metric("bleu").value(draws @ table)
    assert together.tolist() == [float(load_metric("bleu").value(one @ table)) for one in draws]
    assert together[0] > together[4] > 0 == together[2] == together[5]


@given(st.lists(st.sampled_from("abcd"), max_size=70), st.lists(st.sampled_from("abcde"), max_size=70))
def test_the_longest_common_subsequence_is_that_of_the_table(one: list[str], other: list[str]) -> None:
    lengths = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, ours in enumerate(one):
        for j, theirs in enumerate(other):
            lengths[i + 1][j + 1] = lengths[i][j] + 1 if ours == theirs else max(lengths[i][j + 1], lengths[i + 1][j])
    assert longest_common(one, other) == lengths[-1][-1]


@pytest.mark.parametrize(
    ("said", "wanted", "score"),  # as rouge-score 0.1.2 says, but for what is not ASCII
    [
        ("The cat_sat, on the mat.", "the mat on the cat sat", 0.5), ("a b c d", "a x b y d", 2 / 3),
        ("It's 3.5 items", "its 3 5 items", 2 / 3), ("", "a", 0.0), ("...", "...", 0.0),
        ("Où ÉTAIT l'été", "où était l'hiver", 0.75),
    ],
)  # fmt: skip
def test_rouge_l_reads_words_as_rouge_score_does(said: str, wanted: str, score: float) -> None:
    assert point("rouge_l", Observed((wanted,), (said,))) == pytest.approx(score)


@pytest.mark.parametrize(
    ("said", "wanted", "score"),
    [
        ("The cat!", "a cat", 1.0),
        ("cat cat sat", "cat sat sat", 2 / 3),
        ("dog", "cat", 0.0),
        ("the", "...", 1.0),
        ("the", "cat", 0.0),
        ("It is a cat", "cat", 0.5),
    ],
)
def test_f1_of_words_counts_as_squad_does(said: str, wanted: str, score: float) -> None:
    assert point("token_f1", Observed((wanted,), (said,))) == pytest.approx(score)
