"""The whole evaluation on a small real model: numbers agree with each other, with the file, and with direct asking."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from echo_engine import LABELS, TOKENIZER, asker, chat_example, contract, example, rows

from luthier.engines.ask import Asker
from luthier.errors import DataError
from luthier.eval_records import EvalReport, Look
from luthier.evals.evaluate import Beside, Material, evaluate
from luthier.evals.general import paragraph_losses, paragraphs
from luthier.evals.metrics import bleu, chrf
from luthier.evals.score import score, validation_metrics
from luthier.records import Answer, Message
from luthier.spec.recipe import Evaluate
from luthier.systems import PARENT

TEXT = (
    "A luthier makes and mends instruments.\n\nThe top is spruce.\nThe back is maple.\r\n\r\n"
    "Strings are steel or gut.\n\nA bow has hair.\n\nVarnish keeps water out.\n\nGlue lets go when it is warm.\n"
)
SETTINGS = Evaluate(baselines=("majority", "tfidf_logreg", "base"), resamples=300, level=0.95)
OPEN = contract(task="generation", labels=(), system="", max_new_tokens=4)


def silent(what: str, done: int, total: int) -> None:
    pass


def material(made=None, **changes) -> Material:
    values = {
        "contract": made or contract(),
        "train": rows(80, seed=1),
        "validation": rows(10, seed=2),
        "test": rows(60, seed=3, groups=40),
        "general_text": TEXT,
        "general_source": "violins",
        "data_sha256": "d" * 64,
        "weights_sha256": "e" * 64,
    }
    return Material(**(values | changes))


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> tuple[EvalReport, list[dict], list[tuple[str, int, int]]]:
    out = tmp_path_factory.mktemp("eval")
    told: list[tuple[str, int, int]] = []
    ticks = iter(range(1000))
    report = evaluate(
        material(),
        base=asker(0.0),
        tuned=asker(2.0),
        settings=SETTINGS,
        seed=0,
        out=out,
        progress=lambda *step: told.append(step),
        clock=lambda: float(next(ticks)),
    )
    lines = (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return report, [json.loads(line) for line in lines], told


def metric(report: EvalReport, system: str, name: str) -> float:
    return next(found for found in report.systems if found.system == system).metrics[name].point


def test_systems_stand_in_order_and_the_tuned_model_beats_the_base(judged):
    report, _, _ = judged
    assert [system.system for system in report.systems] == ["majority", "tfidf_logreg", "base", "tuned"]
    assert metric(report, "tuned", "macro_f1") > 0.8 > metric(report, "base", "macro_f1")
    assert (report.num_items, report.split, report.labels) == (60, "test", LABELS)
    assert report.num_groups == len({row.group for row in material().test}) < 60
    assert (report.data_sha256, report.weights_sha256) == ("d" * 64, "e" * 64)


def test_the_report_survives_its_own_json(judged, tmp_path):
    report, _, _ = judged
    path = tmp_path / "report.json"
    path.write_text(report.to_json(), encoding="utf-8")
    assert EvalReport.read(path).to_json() == report.to_json()


def test_predictions_on_disk_are_those_that_were_counted(judged):
    report, lines, _ = judged
    assert [line["line"] for line in lines] == [row.line for row in material().test]
    for system in report.systems:
        right = np.mean([line["predicted"][system.system] == line["expected"] for line in lines])
        assert system.metrics["accuracy"].point == pytest.approx(right)
    agreement = np.mean([line["predicted"]["tuned"] == line["greedy"]["tuned"].strip() for line in lines])
    assert metric(report, "tuned", "free_text_agreement") == pytest.approx(agreement)
    assert all(sum(line["probabilities"]["tuned"].values()) == pytest.approx(1) for line in lines)
    assert set(lines[0]["probabilities"]) == {"base", "tuned"}


def test_every_prediction_is_what_the_asker_says(judged):
    _, lines, _ = judged
    tuned = asker(2.0)
    for line, row in list(zip(lines, material().test, strict=True))[:10]:
        assert tuned.answer_prepared(row.text).label == line["predicted"]["tuned"]
        assert tuned.answer_text(row.text).probabilities == line["probabilities"]["tuned"]


def test_degrees_are_judged_by_their_distance_for_every_system_on_the_same_items(tmp_path):
    made = contract(label_order=LABELS[::-1], labels=LABELS[::-1])
    report = evaluate(
        material(made), base=asker(0.0, made), tuned=asker(2.0, made), settings=SETTINGS, seed=0,
        out=tmp_path, progress=silent,
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    place = {label: number for number, label in enumerate(LABELS[::-1])}
    for system in ("majority", "tfidf_logreg", "base", "tuned"):
        steps = [abs(place[line["expected"]] - place[line["predicted"][system]]) for line in lines]
        assert metric(report, system, "mae") == pytest.approx(np.mean(steps))
    assert metric(report, "majority", "quadratic_kappa") == pytest.approx(0, abs=1e-9)
    tuned = next(one for one in report.systems if one.system == "tuned").metrics["quadratic_kappa"]
    assert 0 < tuned.low <= tuned.point <= tuned.high <= 1
    gap = next(g for g in report.differences if (g.metric, g.against) == ("mae", "base"))
    found = metric(report, "tuned", "mae") - metric(report, "base", "mae")
    assert gap.interval.point == pytest.approx(found)
    assert found < 0
    assert report.labels == LABELS[::-1]
    assert "quadratic_kappa" in validation_metrics(asker(2.0, made), material().validation)


def test_confusion_classes_and_mistakes_count_the_same_items(judged):
    report, _, _ = judged
    counts = np.array(report.confusion)
    assert counts.sum() == report.num_items
    assert np.trace(counts) / report.num_items == pytest.approx(metric(report, "tuned", "accuracy"))
    assert len(report.mistakes) == report.num_items - np.trace(counts)
    assert [found.support for found in report.classes] == counts.sum(axis=1).tolist()
    assert np.mean([found.f1 for found in report.classes]) == pytest.approx(metric(report, "tuned", "macro_f1"))
    confidence = [found.probability for found in report.mistakes]
    assert confidence == sorted(confidence, reverse=True)
    texts = {row.line: row for row in material().test}
    assert all((texts[m.line].text, texts[m.line].answer) == (m.text, m.expected) for m in report.mistakes)


def test_differences_are_paired_with_every_other_system_and_start_with_the_base(judged):
    report, _, _ = judged
    assert [(gap.metric, gap.against) for gap in report.differences] == [
        ("macro_f1", "base"),
        ("macro_f1", "majority"),
        ("macro_f1", "tfidf_logreg"),
        ("accuracy", "base"),
        ("accuracy", "majority"),
        ("accuracy", "tfidf_logreg"),
        ("exact_match", "base"),
        ("perplexity", "base"),
        ("log_loss", "base"),
        ("calibration_error", "base"),
    ]
    for gap in report.differences:
        expected = metric(report, "tuned", gap.metric) - metric(report, gap.against, gap.metric)
        assert gap.interval.point == pytest.approx(expected)
        assert math.isnan(gap.p_value) == (gap.metric != "accuracy")
    assert report.differences[3].p_value < 0.001
    assert "a sign-flip test by group, 10,000 flips" in report.interval_method


def test_progress_is_told_for_each_system_up_to_its_end(judged):
    _, _, told = judged
    ends = [(what, total) for what, done, total in told if done == total]
    assert ends == [
        ("baseline majority", 1),
        ("baseline tfidf_logreg", 1),
        ("base model, not tuned", 60),
        ("tuned model", 60),
        ("base model on the general text", 6),
        ("tuned model on the general text", 6),
    ]


def test_durations_come_from_the_given_clock_and_memory_is_measured(judged):
    report, _, _ = judged
    assert all(system.seconds == 1.0 for system in report.systems)
    assert report.seconds == 9.0
    assert 0.05 < report.peak_memory_gib < 64


def test_a_model_against_itself_differs_by_exactly_nothing(tmp_path):
    report = evaluate(
        material(), base=asker(1.0), tuned=asker(1.0), settings=SETTINGS, seed=0, out=tmp_path, progress=silent
    )
    for gap in report.differences:
        if gap.against == "base":
            assert (gap.interval.point, gap.interval.low, gap.interval.high) == (0.0, 0.0, 0.0)
            assert gap.p_value == 1.0 or math.isnan(gap.p_value)
    assert (report.general.ratio.point, report.general.ratio.low, report.general.ratio.high) == (1.0, 1.0, 1.0)
    assert "no difference to the base model is shown" in report.headline or "TF-IDF" in report.headline


def test_settings_and_seed_are_obeyed(tmp_path):
    few = rows(20, seed=3)

    def judge(seed=0, **settings):
        chosen = Evaluate(**({"baselines": ("base",), "resamples": 300, "level": 0.95} | settings))
        return evaluate(
            material(test=few),
            base=asker(0.0),
            tuned=asker(1.0),
            settings=chosen,
            seed=seed,
            out=tmp_path,
            progress=silent,
            clock=lambda: 0.0,
        ).model_copy(update={"peak_memory_gib": 0.0})

    usual = judge()
    assert judge() == usual
    assert judge(seed=1).systems != usual.systems
    assert judge(resamples=200).resamples == 200
    wide = judge(level=0.99).systems[-1].metrics["macro_f1"]
    assert wide.level == 0.99
    assert wide.low < usual.systems[-1].metrics["macro_f1"].low
    assert [system.system for system in usual.systems] == ["base", "tuned"]
    assert [system.system for system in judge(baselines=("base", "majority")).systems] == ["majority", "base", "tuned"]


def test_general_perplexity_is_that_of_each_token_after_the_first(judged):
    report, _, _ = judged
    parts = [
        "A luthier makes and mends instruments.",
        "The top is spruce.\nThe back is maple.",
        "Strings are steel or gut.",
        "A bow has hair.",
        "Varnish keeps water out.",
        "Glue lets go when it is warm.",
    ]
    assert paragraphs(TEXT) == parts
    engine = asker(2.0).engine
    nats, tokens = 0.0, 0
    for part in parts:
        ids = TOKENIZER.encode(part).ids
        nats -= engine.logprobs(ids).sum()
        tokens += len(ids) - 1
    assert report.general.num_tokens == tokens
    assert report.general.tuned.point == pytest.approx(math.exp(nats / tokens))
    assert report.general.ratio.point == pytest.approx(report.general.tuned.point / report.general.base.point)
    assert (report.general.source, report.general.ratio.n) == ("violins", 6)


def test_a_long_paragraph_is_read_in_windows_and_none_is_lost():
    small = contract(max_length=10)
    losses = paragraph_losses(asker(0.5, small), "x" * 25 + "\n\n" + "y", lambda done, total: None)
    assert losses[:, 1].tolist() == [9 + 9 + 4], "a paragraph of one token says nothing"


def test_perplexity_of_answers_is_the_engines_score_with_and_without_the_mass_of_the_labels():
    class WithoutMass(Asker):
        """An asker that does not tell the total probability of its labels."""

        def answer_prepared(self, text: str, *, after: Sequence[Message] = ()) -> Answer:
            return super().answer_prepared(text, after=after).model_copy(update={"log_mass": None})

    plain = asker(1.0)
    assert plain.answer_prepared("g").log_mass is not None
    test = rows(12, seed=4)
    by_hand = [
        -asker(1.0).engine.score(row.prompt_ids, [row.input_ids[len(row.prompt_ids) :]])[0].logprob for row in test
    ]
    for model in (plain, WithoutMass(plain.contract, plain.renderer, plain.engine)):
        seen = score(model, test)
        assert seen.answer_nll == pytest.approx(by_hand, rel=1e-9)
        assert seen.answer_tokens.tolist() == [len(row.input_ids) - len(row.prompt_ids) for row in test]


def test_validation_agrees_with_the_evaluation(judged):
    report, _, _ = judged
    values = validation_metrics(asker(2.0), material().test)
    assert list(values) == ["accuracy", "macro_f1", "perplexity"]
    for name, value in values.items():
        assert value == pytest.approx(metric(report, "tuned", name))


def test_validation_without_examples_is_our_own_mistake():
    with pytest.raises(ValueError, match="without examples"):
        validation_metrics(asker(1.0), [])


def open_rows(count: int):
    return [
        example(letter * 9, letter * 4, line=index, made=OPEN)
        for index, letter in enumerate((["g", "h", "k"] * count)[:count])
    ]


def test_open_tasks_are_judged_by_exact_match_and_perplexity(tmp_path):
    given = material(OPEN, train=[], validation=[], test=open_rows(12))
    report = evaluate(
        given,
        base=asker(0.0, OPEN),
        tuned=asker(3.0, OPEN),
        settings=Evaluate(baselines=("base",), resamples=300, level=0.95),
        seed=0,
        out=tmp_path,
        progress=silent,
    )
    assert [sorted(system.metrics) for system in report.systems] == [
        ["exact_match", "perplexity", "rouge_l", "token_f1"]
    ] * 2
    assert (metric(report, "base", "exact_match"), metric(report, "tuned", "exact_match")) == (0.0, 1.0)
    assert (report.labels, report.confusion, report.classes, report.mistakes) == ((), (), (), ())
    assert [gap.metric for gap in report.differences] == ["exact_match", "token_f1", "rouge_l", "perplexity"]
    assert report.differences[0].p_value == pytest.approx(2 * 0.5**12)
    assert "McNemar's exact test" in report.interval_method
    assert "exact match 1.000" in report.headline
    assert "perplexity of the expected answers" in report.headline


def test_translations_are_judged_by_chrf_and_the_report_says_which(tmp_path):
    made = OPEN.model_copy(update={"task": "translation"})
    report = evaluate(
        material(made, train=[], validation=[], test=open_rows(12)),
        base=asker(0.0, made),
        tuned=asker(3.0, made),
        settings=Evaluate(baselines=("base",), resamples=300, level=0.95),
        seed=0,
        out=tmp_path,
        progress=silent,
    )
    assert [sorted(system.metrics) for system in report.systems] == [["bleu", "chrf", "exact_match", "perplexity"]] * 2
    assert metric(report, "tuned", "chrf") == 100.0
    assert report.headline.startswith("On 12 test items the tuned model reaches chrF 100.000")
    assert report.interval_method.endswith(f"; {chrf.SIGNATURE}; {bleu.SIGNATURE}")
    assert validation_metrics(asker(3.0, made), open_rows(12)).keys() == {"chrf", "perplexity"}


def test_wrong_free_texts_are_mistakes_without_a_probability(tmp_path):
    given = material(OPEN, train=[], validation=[], test=open_rows(4))
    report = evaluate(
        given,
        base=asker(0.0, OPEN),
        tuned=asker(0.0, OPEN),
        settings=Evaluate(baselines=("base",), resamples=200, level=0.9),
        seed=0,
        out=tmp_path,
        progress=silent,
    )
    assert [found.line for found in report.mistakes] == [0, 1, 2, 3]
    assert all(math.isnan(found.probability) for found in report.mistakes)


def test_a_conversation_is_continued_after_all_its_turns():
    made = contract(task="generation", labels=(), input="", max_new_tokens=4)
    turns = (
        Message(role="user", content="z"),
        Message(role="assistant", content="k" * 40),
        Message(role="user", content="and now"),
        Message(role="assistant", content="kkkk"),
    )
    seen = score(asker(3.0, made), [chat_example(turns, line=2, made=made)])
    assert seen.predicted == ("kkkk",), "the letters of the earlier turn are what the model repeats"
    assert seen.answer_tokens.tolist() == [6.0]


def test_what_training_has_seen_is_asked_and_does_not_count(tmp_path):
    """Every number is that of the clean rows alone, whatever stands in the marked ones; both scores are told."""
    clean, seen = rows(40, seed=3, groups=25), rows(30, seed=9)
    marked = [replace(row, contaminated=("exact", "near", "group")[at % 3]) for at, row in enumerate(seen)]
    mixed = [row for pair in zip(clean, marked, strict=False) for row in pair] + clean[30:]
    reports = {}
    for name, test in (("clean", clean), ("mixed", mixed)):
        (tmp_path / name).mkdir()
        reports[name] = evaluate(
            material(test=test), base=asker(0.0), tuned=asker(2.0), settings=SETTINGS, seed=0, out=tmp_path / name,
            progress=silent, clock=lambda: 0.0,
        )  # fmt: skip
    varying = {"with_contaminated": None, "peak_memory_gib": 0.0}
    one, two = (reports[name].model_copy(update=varying).to_json() for name in ("clean", "mixed"))
    assert one == two
    assert reports["clean"].with_contaminated is None
    both = reports["mixed"].with_contaminated
    assert both is not None
    assert both.num_items == 70
    (tmp_path / "all").mkdir()
    unmarked = [replace(row, contaminated="") for row in mixed]
    whole = evaluate(
        material(test=unmarked), base=asker(0.0), tuned=asker(2.0), settings=SETTINGS, seed=0, out=tmp_path / "all",
        progress=silent,
    )  # fmt: skip
    for name, value in both.metrics.items():
        assert value == pytest.approx(metric(whole, "tuned", name))
    lines = [json.loads(line) for line in (tmp_path / "mixed" / "predictions.jsonl").read_text().splitlines()]
    assert [line["contaminated"] for line in lines] == [row.contaminated for row in mixed]


def test_a_test_split_that_training_has_seen_whole_is_refused(tmp_path):
    seen = [replace(row, contaminated="near") for row in rows(4, seed=3)]
    with pytest.raises(DataError, match=r"seen every one of the 4 rows of the test split\n  -> give other rows"):
        evaluate(
            material(test=seen), base=asker(0.0), tuned=asker(1.0), settings=SETTINGS, seed=0, out=tmp_path,
            progress=silent,
        )  # fmt: skip


def test_an_empty_test_split_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"letter: the test split has no rows\n  -> raise data\.split\.test"):
        evaluate(
            material(test=[]),
            base=asker(0.0),
            tuned=asker(1.0),
            settings=SETTINGS,
            seed=0,
            out=tmp_path,
            progress=silent,
        )


def test_a_general_text_of_one_paragraph_is_refused_before_any_model_is_asked(tmp_path):
    told = []
    with pytest.raises(
        DataError, match=r"'violins': 1 usable paragraphs found, [^$]* at least 6\n[^$]*separate paragraphs"
    ):
        evaluate(
            material(general_text="One.\n\n2"),
            base=asker(0.0),
            tuned=asker(1.0),
            settings=SETTINGS,
            seed=0,
            out=tmp_path,
            progress=lambda *step: told.append(step),
        )
    assert told == []


def test_label_baselines_of_an_open_task_are_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"'majority' predicts labels, and generation has no closed set[^$]*\[few_shot, base\]"
    ):
        evaluate(
            material(OPEN, test=open_rows(3)),
            base=asker(0.0, OPEN),
            tuned=asker(1.0, OPEN),
            settings=SETTINGS,
            seed=0,
            out=tmp_path,
            progress=silent,
        )


def test_merged_runs_answer_the_same_items_and_are_compared_with_the_tuned_model(tmp_path):
    opened: list[str] = []

    def beside(name: str, strength: float) -> Beside:
        return Beside(f"{PARENT}{name}", lambda: opened.append(name) or asker(strength))

    report = evaluate(
        material(),
        base=asker(0.0),
        tuned=asker(2.0),
        settings=SETTINGS.model_copy(update={"baselines": ("base",)}),
        seed=0,
        out=tmp_path,
        progress=silent,
        beside=[beside("weak/1", 0.0), beside("strong/2", 2.0)],
    )
    assert opened == ["weak/1", "strong/2"]
    names = ["base", "parent weak/1", "parent strong/2", "tuned"]
    assert [system.system for system in report.systems] == names
    assert metric(report, "parent weak/1", "accuracy") == metric(report, "base", "accuracy")
    assert metric(report, "parent strong/2", "accuracy") == metric(report, "tuned", "accuracy")
    gaps = {one.against: one for one in report.differences if one.metric == "accuracy"}
    assert gaps["parent strong/2"].interval.point == 0
    assert gaps["parent weak/1"].interval == gaps["base"].interval
    assert "the best of the merged runs, strong/2, reaches" in report.headline
    line = json.loads((tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert set(line["predicted"]) == set(names)


def test_a_later_look_leaves_the_report_as_it_is_and_brings_stricter_bounds(judged, tmp_path):
    first, _, _ = judged
    ask = {"base": asker(0.0), "tuned": asker(2.0), "settings": SETTINGS, "seed": 0, "progress": silent}
    reports = {}
    for number in (1, 4):
        look = Look(number=number, test_sha256="5" * 64)
        reports[number] = evaluate(material(look=look), out=tmp_path, **ask)
    assert first.look is None
    assert first.bounds is None is reports[1].bounds
    same = {"seconds", "peak_memory_gib", "look", "bounds", "systems"}
    for report in reports.values():
        assert report.model_dump(exclude=same) == first.model_dump(exclude=same)
        assert [one.metrics for one in report.systems] == [one.metrics for one in first.systems]
    bounds, usual = reports[4].bounds, reports[4].systems[-1].metrics
    assert bounds.metrics.keys() == usual.keys()
    assert bounds.glossary is None
    for name, found in {**bounds.metrics, "general": bounds.general}.items():
        mild = usual.get(name, reports[4].general.ratio)
        assert found.point == mild.point
        assert found.level == pytest.approx(1 - 0.05 / 12)
        assert found.low <= mild.low <= mild.high <= found.high
        assert (found.low, found.high) != (mild.low, mild.high) or mild.low == mild.high
