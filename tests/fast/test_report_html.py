from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import samples

from luthier.data_report import BenchmarkOverlap, Leakage, MeaningReport, NearConflict, NearReport
from luthier.eval_records import AllItems, Difference, GlossaryTerm, GlossaryUse, Mistake, SystemScore
from luthier.plan_records import Expected
from luthier.records import GateLine, Interval
from luthier.report import charts
from luthier.report import html as report
from luthier.report.evidence import Evidence
from luthier.train_records import LossSpike

VOID = {"meta", "br", "line", "rect", "circle", "polyline"}


class Page(HTMLParser):
    """Tags, attributes and the texts of the body, in order; fails on tags that do not close."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.styles: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            self.styles.append(data)
        elif "body" in self.open and data.strip():
            self.texts.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def page(**changes: Any) -> Page:
    return Page(report.render(samples.evidence(**changes)))


def assert_self_contained(shown: Page) -> None:
    assert not shown.tags & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "video",
        "image",
        "use",
    }
    names = {name for name, _ in shown.attributes}
    assert not names & {"src", "href", "xlink:href", "srcset", "action", "poster", "background", "style"}
    assert not [name for name in names if name.startswith("on")]
    style = "".join(shown.styles)
    assert "url(" not in style
    assert "@import" not in style
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in shown.attributes


def test_the_page_has_no_external_reference() -> None:
    assert_self_contained(page())


def test_the_verdict_comes_first() -> None:
    assert page().texts[:2] == ["Passed.", "support-intents may be served: it meets all 7 conditions of its gate."]
    refused = page(gate=samples.gate(passed=False))
    assert refused.texts[:2] == [
        "Refused.",
        "support-intents must not be served: 1 of 7 conditions failed (intent.macro_f1).",
    ]
    assert "luthier serve runs/support-intents/1a2b3c\n" not in refused.text
    assert "refuses this run too" in refused.text


def test_a_baseline_that_wins_is_the_first_line() -> None:
    beaten = page(evaluation=samples.eval_report(tuned=0.731, tfidf=0.771))
    said = "TF-IDF + logistic regression beats the tuned model: macro-F1 0.771 against 0.731"
    assert beaten.texts[0].startswith(said)
    assert "may be chance" in beaten.texts[0]
    clearly = page(evaluation=samples.eval_report(tuned=0.6, tfidf=0.771))
    assert "may be chance" not in clearly.texts[0]
    useless = page(evaluation=samples.eval_report(tuned=0.01, tfidf=0.2))
    assert [text.split(" beats")[0] for text in useless.texts[:3]] == [
        "TF-IDF + logistic regression",
        "The base model without tuning",
        "Always answering the most frequent label",
    ]


def test_the_plans_advice_against_tuning_is_said_first() -> None:
    candidates = samples.plan().candidates
    advised = page(plan=samples.plan(candidates=(candidates[1], candidates[0])))
    assert advised.texts[0].startswith("The plan ranked 'do not fine-tune: TF-IDF + logistic regression' first")


def test_the_page_says_what_it_must() -> None:
    text = page().text
    for part in (
        "dequantized from 4 bits (Q4_1)",
        "The data is synthetic:",
        "Names of people are not looked for",
        "+70.4 points [+64.9, +75.9]",
        "p < 0.001",
        "1,190 rows were read and 1,143 are used",
        "asked ≥ 0.75, bound 0.802",
        "1.028 [1.009, 1.047]",
        "5 min 34 s, predicted 5 min 12 s (+7 %)",
        "luthier serve runs/support-intents/1a2b3c",
        "License: Apache-2.0",
        "secret.aws_access_key",
        "damaged_item",
        samples.sha("6"),
        "paired by paragraph",
        "would write exactly the label that it scores highest for 0.986",
        "The recipe's budget: time 30 min, kept; memory 6.0 GiB, kept.",
        "kept: step 68",
        "2026-01-15 10:42 UTC",
    ):
        assert part in text, part
    plain = page(
        shape=samples.shape(quantisation=""), data=samples.data_report(synthetic=False, findings={}, dropped={})
    )
    assert "dequantized" not in plain.text
    assert "synthetic" not in plain.text
    assert "None was found." in plain.text
    assert "Rows set aside" not in plain.text


def test_overlap_with_training_and_benchmarks_is_told() -> None:
    leaks = (Leakage(split="validation", exact=1, group=2, near=3), Leakage(split="test", exact=4, group=5, near=12))
    conflict = NearConflict(file="support.csv", line=17, of_file="more.csv", of_line=5, likeness=0.9)
    shown = page(
        data=samples.data_report(
            leakage=leaks,
            benchmarks=(BenchmarkOverlap(file="bench.jsonl", rows=1200, exact=6, near=7),),
            rows_left_apart=31,
            near=NearReport(threshold=0.8, compared=9, crowded=0, num_conflicts=1, conflicts=(conflict,)),
        ),
        evaluation=samples.eval_report(with_contaminated=AllItems(num_items=301, metrics={"macro_f1": 0.861})),
    )
    for part in (
        "Of the validation split, 1 rows have a text that training has, 3 nearly such a text, and 2 a group that "
        "training has; they were set aside.",
        "Of the test split, 4 rows have a text that training has, 12 nearly such a text, and 5 a group that training "
        "has; they are marked and do not count.",
        "Benchmark bench.jsonl (1,200 rows): 6 rows of train stand in it and 7 nearly; they were set aside.",
        "31 rows form chains of near-duplicates too long to be kept in one split.",
        "1 rows nearly say the same as another one of another label; both were kept. For review: "
        "support.csv:17 and more.csv:5.",
        "21 of 301 test items overlap with training and do not count",
    ):
        assert part in shown.text, part
    assert "overlap with training" not in page().text.replace("rows overlap", "")


def test_spikes_stand_beside_the_curve_with_the_lines_of_their_rows() -> None:
    spikes = tuple(
        LossSpike(step=step, loss=2.5, usual_low=0.2, usual_high=0.9, lines=(7, 19)) for step in range(40, 48)
    )
    shown = page(train=samples.train_result(spikes=spikes))
    assert "The loss of 8 steps lies far above those before" in shown.text
    assert "loss spike at step 40: 2.5, usual 0.2 to 0.9; its rows stand on lines 7, 19; loss spike at" in shown.text
    assert any(name == "aria-label" and "spikes at 40, 41" in str(value) for name, value in shown.attributes)
    assert ("class", "miss") in shown.attributes
    assert "far above" not in page().text


def test_what_was_found_by_meaning_is_told_where_it_was_looked_for() -> None:
    told = MeaningReport(
        model="m", model_sha256="0" * 64, dedupe=None, leakage=0.9, texts=9, too_long=0, num_conflicts=0,
        rows_left_apart=0, pairs=(),
    )  # fmt: skip
    found = {
        "leakage": (Leakage(split="test", exact=4, group=5, near=12, meaning=1234),),
        "benchmarks": (BenchmarkOverlap(file="bench.jsonl", rows=1200, exact=6, near=7, meaning=8),),
    }
    shown = page(data=samples.data_report(meaning=told, **found)).text
    assert "a group that training has (1,234 more the meaning of a row that it has); they are marked" in shown
    assert "stand in it and 7 nearly, 8 more by meaning; they were set aside." in shown
    without = page(data=samples.data_report(**found)).text
    assert "more the meaning" not in without
    assert "by meaning" not in without


def test_every_dropped_row_is_counted_and_placed() -> None:
    text = page().text
    data = samples.data_report()
    for reason, rows in data.dropped.items():
        assert f"{reason.replace('_', ' ')} −{rows}" in text
    assert "1055, 1080, 1105" in text
    assert "and 12 more" in text


HOSTILE = (
    "</text></svg><script>alert(1)</script>\"'><img src=x onerror=alert(1)> {{ 7 * 7 }} {% raw %} "
    "\x00\x1b[2J\u202e&amp;"
)


def hostile() -> dict[str, Any]:
    labels = (HOSTILE, "plain")
    line = GateLine(
        line=HOSTILE, kind="target", asked=HOSTILE, observed=HOSTILE, bound=None, passed=False, evidence=HOSTILE
    )
    score = samples.classes()[0]
    return {
        "evaluation": samples.eval_report(
            mistakes=(Mistake(line=1, text=HOSTILE, expected=HOSTILE, predicted=HOSTILE, probability=0.5),),
            labels=labels,
            confusion=((1, 2), (3, 4)),
            headline=HOSTILE,
            interval_method=HOSTILE,
            classes=tuple(score.model_copy(update={"label": label}) for label in labels),
        ),
        "data": samples.data_report(
            dropped={HOSTILE: 1},
            findings={HOSTILE: 1},
            license=HOSTILE,
            split_rule=HOSTILE,
            source_sha256={HOSTILE: HOSTILE},
        ),
        "gate": samples.gate(lines=(line,), passed=True, decided_at=HOSTILE),
        "plan": samples.plan(notes=(HOSTILE,)),
        "shape": samples.shape(name=HOSTILE, license=HOSTILE, license_source=HOSTILE, quantisation=HOSTILE),
        "profile": samples.profile(path=HOSTILE),
        "stage_seconds": {HOSTILE: 1.0},
        "run": HOSTILE,
    }


def test_hostile_text_stays_text() -> None:
    shown = page(**hostile())
    assert_self_contained(shown)
    assert "<script>alert(1)</script>" in shown.text
    assert "{{ 7 * 7 }}" in shown.text
    assert "&amp;" in shown.text
    assert any(text.startswith("</text>") and not set("\x00\x1b") & set(text) for text in shown.texts)


def test_a_long_text_is_cut() -> None:
    mistake = Mistake(line=1, text="word " * 500, expected="a", predicted="b", probability=0.5)
    source = report.render(samples.evidence(evaluation=samples.eval_report(mistakes=(mistake,) * 50)))
    assert source.count("<bdi>") == report.MOST_MISTAKES
    assert f"({report.MOST_MISTAKES} of 50)" in source
    assert max(len(text) for text in re.findall(r"<bdi>(.*?)</bdi>", source)) <= report.MOST_TEXT + 2


def free_text() -> Evidence:
    """A run whose answers are free text: no labels, no baselines but the base."""

    def score(system: str, match: float, perplexity: float) -> SystemScore:
        metrics = {"exact_match": samples.interval(match, 0.03), "perplexity": samples.interval(perplexity, 0.4)}
        return SystemScore.model_validate({"system": system, "title": system, "metrics": metrics, "seconds": 60.0})

    differences = (
        samples.eval_report().differences[0].model_copy(update={"metric": "exact_match"}),
        samples.eval_report()
        .differences[1]
        .model_copy(update={"metric": "perplexity", "interval": samples.interval(-5.2, 0.5)}),
    )
    entry = {"path": "a.csv", "name": "channel", "task": "translation", "input": "{message}", "label": "channel"}
    resolved = samples.resolved(data={"train": [entry]}, objective={"targets": {"channel.perplexity": "<= 4"}})
    evaluation = samples.eval_report(
        task="translation",
        systems=(score("base", 0.02, 8.1), score("tuned", 0.31, 2.9)),
        differences=differences,
        classes=(),
        labels=(),
        confusion=(),
        mistakes=(),
    )
    evidence: Evidence = samples.evidence(resolved=resolved, evaluation=evaluation)
    return evidence


def test_a_task_of_free_text_has_its_own_scales() -> None:
    shown = Page(report.render(free_text()))
    assert shown.texts[0] == "Passed."
    assert "perplexity: −5.200 [−5.700, −4.700]" in shown.text
    assert "Where it is wrong" not in shown.text
    assert "target 4" in shown.text
    assert "/v1/chat/completions" in shown.text


def test_many_labels_and_undefined_numbers_are_shown_without_a_matrix() -> None:
    labels = tuple(f"label_{number:02}" for number in range(77))
    counts = tuple(tuple(int(row in (column, column + 1)) for column in range(77)) for row in range(77))
    nothing = Interval(point=math.nan, low=math.nan, high=math.nan, n=0)
    systems = tuple(
        score.model_copy(update={"metrics": score.metrics | {"accuracy": nothing}}) for score in samples.systems()
    )
    differences = tuple(d.model_copy(update={"interval": nothing}) for d in samples.eval_report().differences)
    shown = page(
        evaluation=samples.eval_report(labels=labels, confusion=counts, systems=systems, differences=differences)
    )
    assert "confusion matrix" not in " ".join(value for _, value in shown.attributes)
    assert "label_05 label_04 1" in shown.text
    assert "not defined" in shown.text
    assert "nan" not in shown.text


def test_a_run_without_validation_or_with_stages_taken_over() -> None:
    steps = tuple(event for event in samples.history() if event.kind == "step")
    train = samples.train_result(history=steps, best_step=70, best_metric="", best_value=math.nan)
    shown = page(train=train).text
    assert "kept: step" not in shown.lower()
    assert "There were no validation rows; the last weights were kept, those of step 70" in shown
    taken = page(stage_seconds={"gate": 0.1}, train=samples.train_result(history=(), resumed_from=(20, 40)))
    assert "whole run" not in taken.text
    assert "Taken up again at step 20, 40." in taken.text


def test_a_difference_is_drawn_as_a_gain_where_it_is_one() -> None:
    """Less is more of an error that is a share."""

    def kind(metric: str, point: float) -> str:
        gap = Difference(
            system="tuned", against="base", metric=metric, interval=samples.interval(point, 0.01), p_value=math.nan
        )
        (found,) = re.findall(r'class="whisker (\w+)"', str(charts.differences([gap])))
        return str(found)

    assert [kind("macro_f1", 0.1), kind("macro_f1", -0.1), kind("macro_f1", 0.005)] == ["tuned", "other", "other"]
    assert [kind("hamming_loss", 0.1), kind("hamming_loss", -0.1)] == ["other", "tuned"]


def test_drawings_are_labeled_for_those_who_do_not_see_them() -> None:
    shown = page()
    labels = [value for name, value in shown.attributes if name == "aria-label"]
    assert len(labels) == sum(name == "viewbox" for name, _ in shown.attributes)
    assert all(labels)
    assert "confusion matrix of 12 labels: 230 of 280 on the diagonal" in labels


def luminance(color: str) -> float:
    """Relative luminance of '#rrggbb' (WCAG 2.2)."""
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", [0, 1])
def test_text_has_contrast_in_light_and_dark(mode: int) -> None:
    css = (Path(report.__file__).parent / "report.css").read_text()
    block = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[mode]
    colors = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))
    paper = luminance(colors["paper"])

    def contrast(name: str) -> float:
        light, dark = sorted((luminance(colors[name]), paper), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    assert all(contrast(name) >= 4.5 for name in ("ink", "soft", "accent", "bad"))
    assert contrast("other") >= 3.0  # drawings only


def test_what_was_expected_stands_beside_each_technique() -> None:
    known = Expected(metric="macro_f1", point=0.771, low=0.7, high=0.8, source="measured in run a/1", data="d")
    first, *others = samples.plan().candidates
    first = first.model_copy(update={"why": "rows are many", "expected": known})
    page = report.render(samples.evidence(plan=samples.plan(candidates=(first, *others))))
    assert "lora sft <b>(run)</b>: rows are many</td><td>macro_f1 0.771, measured in run a/1</td>" in page
    assert page.count("<td>unknown</td>") == len(others)


def test_terms_of_a_glossary_stand_in_the_report() -> None:
    kept = {"base": samples.interval(0.25, 0.1), "tuned": samples.interval(0.75, 0.1)}
    made = samples.eval_report()
    systems = tuple(
        one.model_copy(update={"metrics": {**one.metrics, "term_accuracy": kept[one.system]}})
        if one.system in kept
        else one
        for one in made.systems
    )
    missed = GlossaryTerm(term="<bow>", accepted=("Bogen", "Bügel"), occurrences=7, base=1, tuned=3)
    use = GlossaryUse(
        source="terms.tsv",
        num_terms=9,
        met=5,
        occurrences=40,
        num_items=30,
        ratio=None,
        num_missed=50,
        missed=(missed,),
    )
    made = made.model_copy(update={"systems": systems, "glossary": use})
    texts = " ".join(Page(report.render(samples.evidence(evaluation=made))).texts)
    assert "5 of the 9 terms of terms.tsv stand in 30 test items, 40 times." in texts
    assert "tuned model: 0.750 [0.650, 0.850]" in " ".join(texts.split())
    assert "Terms that the tuned model misses most (1 of 50)" in texts
    assert "<bow>" in texts
    assert "Bogen, Bügel" in texts
    none = made.model_copy(update={"systems": samples.systems(), "glossary": use.model_copy(update={"met": 0})})
    said = " ".join(Page(report.render(samples.evidence(evaluation=none))).texts)
    assert "Term accuracy was not measured: the test items hold none of the 9 terms of terms.tsv." in said
    assert "erms of the glossary" not in " ".join(Page(report.render(samples.evidence())).texts)
