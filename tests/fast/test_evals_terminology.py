"""Terms of a glossary in questions and answers: found, counted, compared and reported."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_evals_evaluate
from echo_engine import asker, contract, example
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import DataError
from luthier.eval_records import EvalReport
from luthier.evals.evaluate import evaluate
from luthier.evals.intervals import Bootstrap
from luthier.evals.metrics import term_accuracy
from luthier.evals.terminology import Glossary, fold, glossary_use, read_terminology

PAIRS = "bow\tBogen\nsound post\tStimme\tStimmstock\npost\tPfosten\nsound post setter\tStimmsetzer\n"


def read(text: str, *, name: str = "t.tsv", task: str = "translation") -> Glossary:
    return read_terminology(text, name=name, task=task)


def resampling(groups: Sequence[str], *, seed: int = 0) -> Bootstrap:
    return Bootstrap(groups, resamples=400, level=0.95, rng=np.random.default_rng(seed))


def points(report: EvalReport, metric: str = "term_accuracy") -> dict[str, float]:
    return {one.system: one.metrics[metric].point for one in report.systems if metric in one.metrics}


# --- what is found ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A bow, a BOW and elbows, bowing, bow_1.", ["bow", "bow"]),
        ("The sound  post\nstands.", ["sound post"]),
        ("A sound post setter beside a post", ["sound post setter", "post"]),
        ("post sound post", ["post", "sound post"]),
        ("sound", []),
        ("bow-maker's bow's", ["bow", "bow"]),
        ("b\u00adow", ["bow"]),
        ("", []),
    ],
)
def test_whole_words_are_found_in_any_case_the_longest_first_and_none_within_another(
    text: str, found: list[str]
) -> None:
    assert list(read(PAIRS).find(text)) == found


def test_of_terms_that_overlap_the_longer_one_counts_wherever_it_begins() -> None:
    terms = read("a b\tx\nb c d\ty\nd\tz\n")
    assert terms.find("a b c d") == ("b c d",)
    assert terms.find("a b c, d") == ("a b", "d")


@pytest.mark.parametrize(
    ("term", "text", "times"),
    [
        ("СМЫЧОК", "Новый смычок, смычки.", 1),
        ("βιολίΣ", "ΒΙΟΛΊΣ και βιολίς", 2),
        ("straße", "STRASSE, Straße, Straßen", 2),
        ("琴弓", "小提琴弓很新", 1),
        ("バイオリン", "新しいバイオリンを弾く", 1),
        ("か", "がか", 1),
        ("कल", "कल काल कला कल।", 2),
        ("किताब", "किताबें किताब", 1),
        ("ไวโอลิน", "ฉันมีไวโอลินเก่า", 1),
        ("قوس", "القوس قوس", 1),
        ("cafe", "café cafe", 1),
        ("활", "새 활, 활을", 1),
        ("C++", "C++ and C++17, C", 2),
        ("手机", "iPhone手机", 1),
        ("ก", "กี ก", 1),
    ],
)
def test_other_scripts_have_words_too(term: str, text: str, times: int) -> None:
    for form in ("NFC", "NFD"):
        found = read(f"{term}\tx\n").find(unicodedata.normalize(form, text))
        assert found == (fold(term),) * times


def test_a_term_is_kept_where_any_of_its_targets_is_a_whole_word_of_the_answer() -> None:
    terms = read(PAIRS)
    asked = ("bow", "sound post", "bow")
    assert terms.kept(asked, "Der STIMMSTOCK") == {"sound post"}
    assert terms.kept(asked, "Die Stimmen der Ellbogen") == frozenset()
    assert terms.statistics([asked, (), asked], ["Bogen", "Bogen", "Stimme, Bogen"]).tolist() == [
        [2, 3],
        [0, 0],
        [3, 3],
    ]


def test_without_pairs_a_term_of_question_or_expected_answer_must_stand_in_the_answer_once() -> None:
    terms = read("bow\nsound post # remark\nC#\n", task="generation")
    assert terms.accepted == {"bow": ("bow",), "sound post": ("sound post",), "c#": ("c#",)}
    assert terms.met(example("Which bow, what bow?", "A sound post.")) == ("bow", "sound post")
    assert read(PAIRS).met(example("Which bow, what bow?", "A sound post.")) == ("bow", "bow")


WORDS = st.lists(st.sampled_from(["bow", "sound", "post", "setter", "Bogen", "Stimme", "x", "弓"]), max_size=12)


@given(WORDS, WORDS, st.sampled_from([("bow", "Bogen"), ("sound post", "Stimme"), ("post", "Pfosten")]))
def test_adding_an_accepted_target_never_lowers_what_is_kept(
    question: list[str], answer: list[str], pair: tuple[str, str]
) -> None:
    terms = read(PAIRS)
    met = [terms.find(" ".join(question))]
    before = terms.statistics(met, [" ".join(answer)])[0]
    after = terms.statistics(met, [" ".join([*answer, pair[1]])])[0]
    assert after[0] >= before[0]
    assert after[1] == before[1]
    if pair[0] in met[0]:
        assert after[0] >= met[0].count(pair[0])


@given(WORDS)
def test_what_is_found_is_in_the_text_and_never_longer_than_it(question: list[str]) -> None:
    text = " ".join(question)
    found = read(PAIRS).find(text)
    assert all(term in fold(text) for term in found)
    assert sum(len(term.split()) for term in found) <= len(question)
    assert fold(fold(text)) == fold(text)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_tabs_commas_and_remarks() -> None:
    asked = {"sound post": ("stimme", "stimmstock"), "bow": ("bogen",)}
    assert read("\ufeff# ours\n\nSound  post\tStimme\tStimmstock\nbow\tBogen\t\t # ours\n").accepted == asked
    assert read('# ours,\n\n"Sound post",Stimme,Stimmstock\nbow,Bogen,\n', name="t.CSV").accepted == asked
    assert read("a, b\tx, y\n").accepted == {"a, b": ("x, y",)}
    assert read("bow\tBogen\nBOW\tbogen\n").accepted == {"bow": ("bogen",)}
    assert read("bow\n", name="t.csv", task="generation").accepted == {"bow": ("bow",)}


@pytest.mark.parametrize(
    ("text", "name", "task", "what", "way_out"),
    [
        ("# none\n", "t.tsv", "translation", "t.tsv holds no term", "write one term a line"),
        ("bow\npost\n", "t.tsv", "translation", "t.tsv holds terms without targets, and translation needs", "<tab>"),
        ("bow, Bogen\n", "t.txt", "translation", "t.txt holds terms without targets", ".csv"),
        ("bow\na\tb\n", "t.txt", "generation", "t.txt:2: a term with a target, and generation is", "task: translation"),
        ("a\tb\nbow\n", "t.tsv", "translation", "t.tsv:2: 'bow' has no target", "add one"),
        ("a\tb\n\tBogen\n", "t.tsv", "translation", "t.tsv:2: an empty term", "fill it in"),
        ("a\tb\nc\t \td\n", "t.tsv", "translation", "t.tsv:2: an empty target", "fill it in"),
        ("bow\tx\n\nBow\ty\n", "t.tsv", "translation", "t.tsv:3: 'bow' stands in line 1 with other", "one line"),
        ('a,"b\n', "t.csv", "translation", "t.csv:1: no CSV", "quotation mark"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(
    text: str, name: str, task: str, what: str, way_out: str
) -> None:
    with pytest.raises(DataError) as caught:
        read(text, name=name, task=task)
    assert caught.value.what.startswith(f"evaluate.glossary: {what}")
    assert way_out in caught.value.way_out


# --- the evaluation ---------------------------------------------------------------------------------------------------

OPEN = contract(task="translation", labels=(), system="", max_new_tokens=4)


def judged(out: Path, glossary: str | None, *, texts: Sequence[str], **changes: Any) -> EvalReport:
    rows = [
        example(text, "kkk", line=number + 2, group=f"g{number // 2}", made=OPEN) for number, text in enumerate(texts)
    ]
    given = test_evals_evaluate.material(
        OPEN, train=rows, test=rows, glossary=None if glossary is None else ("t.tsv", glossary), **changes
    )
    settings = test_evals_evaluate.SETTINGS.model_copy(update={"baselines": ("base",)})
    return evaluate(
        given, base=asker(0.0, OPEN), tuned=asker(2.0, OPEN), settings=settings, seed=0, out=out,
        progress=test_evals_evaluate.silent, clock=lambda: 0.0,
    )  # fmt: skip


TEXTS = ["hhhh", "hhhh bow", "bow gggg", "ggg", "kkkkkkk bow bow", "bow"]


def test_both_models_are_judged_on_the_same_occurrences_as_counted_by_hand(tmp_path: Path) -> None:
    targets = ["hhhh", "gggg"]
    report = judged(tmp_path, "bow\t" + "\t".join(targets) + "\n", texts=TEXTS)
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    times = [text.split().count("bow") for text in TEXTS]
    assert [line["terms"]["met"] for line in lines] == times
    for system in ("base", "tuned"):
        kept = [
            count * any(target in line["predicted"][system].split() for target in targets)
            for count, line in zip(times, lines, strict=True)
        ]
        assert [line["terms"]["kept"][system] for line in lines] == kept
        assert points(report)[system] == pytest.approx(sum(kept) / 5)
    tuned = next(one.metrics["term_accuracy"] for one in report.systems if one.system == "tuned")
    assert (tuned.n, tuned.low <= tuned.point <= tuned.high) == (4, True)
    assert 0 < points(report)["tuned"] < 1
    gap = next(one for one in report.differences if one.metric == "term_accuracy")
    assert (gap.against, gap.interval.point) == ("base", points(report)["tuned"] - points(report)["base"])
    assert report.glossary is not None
    assert (report.glossary.met, report.glossary.occurrences, report.glossary.num_items) == (1, 5, 4)
    assert report.glossary.missed[0].tuned == round(5 * points(report)["tuned"])
    assert "; term accuracy " in report.headline
    assert EvalReport.model_validate_json(report.to_json()).to_json() == report.to_json()


def test_where_no_term_is_met_nothing_is_measured_and_that_is_said(tmp_path: Path) -> None:
    report = judged(tmp_path, "peg\tWirbel\n", texts=TEXTS)
    assert points(report) == {}
    assert not [one for one in report.differences if one.metric == "term_accuracy"]
    assert report.glossary is not None
    assert (report.glossary.num_terms, report.glossary.met, report.glossary.ratio) == (1, 0, None)
    assert "terms" not in (tmp_path / "predictions.jsonl").read_text(encoding="utf-8")


def test_without_a_glossary_nothing_of_it_is_said(tmp_path: Path) -> None:
    report = judged(tmp_path, None, texts=TEXTS)
    assert (points(report), report.glossary) == ({}, None)


# --- intervals --------------------------------------------------------------------------------------------------------

COUNTS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(0, 4)), min_size=2, max_size=12
)


@given(COUNTS)
def test_items_without_a_term_change_nothing_and_intervals_hold_their_point(
    rows: list[tuple[int, int, int, int]],
) -> None:
    counts = np.array([[min(kept, met), met] for kept, met, _, _ in rows], dtype=np.float64)
    asked = counts[:, 1] > 0
    if not asked.any():
        return
    drawn = resampling([f"g{group}" for *_, group in rows]).only(asked)
    found = drawn.proportion(counts[asked], term_accuracy.value)
    assert found.low - 1e-12 <= found.point <= found.high + 1e-12
    assert found.point == pytest.approx(counts[:, 0].sum() / counts[:, 1].sum())
    assert found.n == asked.sum()


def test_groups_stay_whole_where_some_items_are_left_out() -> None:
    groups = ["a", "a", "b", "", "", "c"]
    drawn = resampling(groups).only(np.array([True, True, False, True, True, True]))
    assert (drawn.num_items, drawn.num_groups) == (5, 4)


def answers(kept: Sequence[int]) -> list[str]:
    return ["Bogen" if one else "" for one in kept]


def test_a_ratio_holds_the_tuned_model_to_the_base_item_by_item() -> None:
    terms, met = read("bow\tBogen\n"), [("bow",)] * 20 + [()] * 5
    drawn = resampling([""] * 25)
    same = glossary_use(terms, met, answers([1, 0] * 10 + [0] * 5), answers([1, 0] * 10 + [1] * 5), bootstrap=drawn)
    assert same.ratio is not None
    assert (same.ratio.low, same.ratio.point, same.ratio.high) == pytest.approx((1, 1, 1))
    assert (same.num_missed, same.missed[0].occurrences, same.missed[0].tuned) == (1, 20, 10)
    none = glossary_use(terms, met, answers([0] * 25), answers([1] * 25), bootstrap=drawn)
    assert (none.ratio, none.missed) == (None, ())
    rare = glossary_use(terms, met, answers([1] + [0] * 24), answers([1] + [0] * 24), bootstrap=drawn)
    assert rare.ratio is not None
    assert (rare.ratio.low, rare.ratio.point) == (0, 1), "where the base keeps none nor does the tuned one: no promise"
    more = glossary_use(terms, met, answers([1] + [0] * 24), answers([1] * 20 + [0] * 5), bootstrap=drawn)
    assert more.ratio is not None
    assert more.ratio.low > 1
    assert more.ratio.high == float("inf")


def test_the_most_missed_terms_come_first_and_what_is_always_kept_is_left_out() -> None:
    terms = read("bow\tBogen\npost\tPfosten\npeg\tWirbel\n")
    met = [("bow", "peg"), ("post", "bow"), ("post", "peg")]
    use = glossary_use(terms, met, ["", "", ""], ["Bogen", "", "Wirbel"], bootstrap=resampling([""] * 3))
    assert [(one.term, one.occurrences, one.tuned) for one in use.missed] == [
        ("post", 2, 0),
        ("bow", 2, 1),
        ("peg", 2, 1),
    ]
    assert use.missed[0].accepted == ("pfosten",)
