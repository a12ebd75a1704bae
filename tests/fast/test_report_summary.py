from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import samples
from hypothesis import given
from hypothesis import strategies as st

from luthier.approval_records import Standing
from luthier.eval_records import AllItems, SystemScore
from luthier.report.evidence import bits, number, shown_gap, verdict_of
from luthier.report.summary import may_be_used, summary
from luthier.report.svg import Scale, ticks


def test_the_summary_ends_with_how_to_serve_and_ask() -> None:
    lines = summary(samples.evidence())
    assert lines[0].startswith("PASSED. support-intents may be served")
    assert lines[-1] == "luthier predict runs/support-intents/1a2b3c FILE"
    text = "\n".join(lines)
    for part in (
        "macro-F1",
        "0.846 [0.802, 0.890]",
        "majority class",
        "+70.4 points [+64.9, +75.9]",
        "8 min 14 s",
        "8 min 21 s",
        "2.6 GiB",
        "2.4 GiB",
        "dequantized from 4 bits (Q4_1)",
        "95 % intervals",
        "luthier serve runs/",
    ):
        assert part in text, part


def test_a_refusal_is_as_plain_as_a_pass() -> None:
    lines = summary(samples.evidence(gate=samples.gate(passed=False)))
    assert lines[0] == "REFUSED. support-intents must not be served: 1 of 7 conditions failed (intent.macro_f1)."
    assert any(line.endswith("NOT MET") for line in lines)
    assert "refuses this run too" in lines[-1]


def test_a_warning_stands_first_and_last() -> None:
    lines = summary(samples.evidence(evaluation=samples.eval_report(tuned=0.7, tfidf=0.8)))
    assert lines[0] == lines[-1]
    assert lines[0].startswith("TF-IDF + logistic regression beats the tuned model")
    candidates = samples.plan().candidates
    advised = summary(samples.evidence(plan=samples.plan(candidates=(candidates[2], candidates[0]))))
    assert advised[0] == advised[-1]
    assert advised[0].startswith("The plan ranked 'do not fine-tune: zero-shot' first")


def numbers(**mae: float) -> Any:
    """Evidence of a task whose answers are numbers: errors of systems."""
    scores = tuple(
        SystemScore(system=name, title=name, metrics={"mae": samples.interval(one, 0.2)}, seconds=1.0)
        for name, one in mae.items()
    )
    targets = {"objective": {"targets": {"intent.mae": "<= 9"}}, "method": {"type": "regression"}}
    entry = {"data": {"train": [{"path": "support.csv", "label": "intent", "name": "intent", "task": "regression"}]}}
    evaluation = samples.eval_report().model_copy(update={"systems": scores, "differences": ()})
    return samples.evidence(resolved=samples.resolved(**targets, **entry), evaluation=evaluation)


def test_of_errors_the_smaller_is_the_better_and_counting_words_is_named_where_it_has_it() -> None:
    beaten = summary(numbers(mean=4.0, tfidf_ridge=2.0, base=9.0, tuned=3.0))
    assert beaten[0] == beaten[-1] == (
        "TF-IDF + ridge regression beats the tuned model: mean absolute error 2.000 against 3.000."
    )  # fmt: skip
    assert "beats the tuned model" not in "\n".join(summary(numbers(mean=4.0, tfidf_ridge=3.5, base=9.0, tuned=3.0)))
    worst = summary(numbers(mean=2.5, tfidf_ridge=2.0, base=9.0, tuned=3.0))
    assert [line.partition(" beats")[0] for line in worst if "beats the tuned model" in line][:2] == [
        "TF-IDF + ridge regression", "Always answering the mean of the training rows",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("state", "word", "said"),
    [("refused", "Refused.", "must not be served"), ("approved", "Approved.", "may be served by approval")],
)
def test_a_task_that_meets_its_lines_is_not_told_as_passed_where_the_run_was_refused(
    state: Any, word: str, said: str
) -> None:
    found = verdict_of("desk", samples.gate(), Standing(state=state))
    assert found[0] == word
    assert "this task meets all 7 of its conditions, and desk as a whole was refused by its gate" in found[1]
    assert said in found[1]
    assert may_be_used(samples.evidence(standing=Standing(state=state))) is (state == "approved")
    assert verdict_of("desk", samples.gate(), Standing(state="passed"))[0] == "Passed."


def test_both_numbers_are_told_where_training_has_seen_test_items() -> None:
    said = "items overlap with training and do not count"
    assert said not in "\n".join(summary(samples.evidence()))
    every = AllItems(num_items=301, metrics={"macro_f1": 0.861, "accuracy": 0.9})
    lines = summary(samples.evidence(evaluation=samples.eval_report(with_contaminated=every)))
    assert (
        "21 of 301 test items overlap with training and do not count: macro-F1 of the tuned model is 0.846 without "
        "them, 0.861 with them."
    ) in lines


def test_stages_taken_over_are_not_compared_with_the_plan() -> None:
    text = "\n".join(summary(samples.evidence(stage_seconds={})))
    assert "taken over from an earlier run" in text


def test_the_budget_stands_beside_what_was_predicted_and_what_happened() -> None:
    def shown(**changes: Any) -> list[str]:
        lines = summary(samples.evidence(**changes))
        head = next(index for index, line in enumerate(lines) if line.split() == ["predicted", "actual", "budget"])
        return [" ".join(line.split()) for line in lines[head + 1 : head + 3]]

    assert shown() == ["time 8 min 14 s 8 min 21 s 30 min, kept", "peak memory 2.6 GiB 2.4 GiB 6.0 GiB, kept"]
    tight = shown(plan=samples.plan(budget={"hours": 0.1, "ram_gib": 2.0}))
    assert [line.endswith("NOT KEPT") for line in tight] == [True, True]
    assert all(line.endswith("none stated") for line in shown(plan=samples.plan(budget={})))
    assert shown(stage_seconds={})[0].endswith("an earlier run 30 min"), "the time of a part is not held against it"


def test_bits_of_quantizations() -> None:
    assert [bits(name) for name in ("Q4_1", "IQ3_XS", "q8_0", "NF4", "")] == ["4 bits", "3 bits", "8 bits", "", ""]


def test_numbers() -> None:
    assert [number(x) for x in (0.8464, -0.019, 17.9, 12345.6, float("nan"))] == [
        "0.846",
        "−0.019",
        "17.90",
        "12,346",
        "–",
    ]


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e6), about=st.integers(3, 8))
def test_ticks_cover_their_range_with_few_round_numbers(low: float, span: float, about: int) -> None:
    marks = ticks(low, low + span, about=about)
    step = marks[1] - marks[0] if len(marks) > 1 else span
    assert marks[0] <= low + 1e-6 * step + 1e-9
    assert marks[-1] >= low + span - 1e-6 * step - 1e-9
    assert len(marks) <= 2 * about + 2


@given(value=st.floats(allow_nan=True, allow_infinity=True), low=st.floats(-10, 10), span=st.floats(0, 10))
def test_a_scale_never_leaves_the_drawing(value: float, low: float, span: float) -> None:
    assert 5.0 <= Scale(low, low + span, 5.0, 50.0)(value) <= 50.0


def test_reporting_needs_no_torch() -> None:
    code = """if True:
        import sys
        sys.path.insert(0, 'tests/fast')
        import samples
        from luthier.report.html import render
        from luthier.report.summary import summary
        render(samples.evidence()), summary(samples.evidence())
        heavy = {'torch', 'transformers', 'peft', 'sklearn'} & set(sys.modules)
        assert not heavy, heavy
    """
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_cell_shows_a_gain_where_less_is_better_too() -> None:
    def kind(metric: str, point: float) -> str:
        return shown_gap(samples.interval(point, 0.01), metric)[0]

    assert [kind("macro_f1", value) for value in (0.1, -0.1, 0.005)] == ["pass", "fail", "chance"]
    assert [kind("mae", value) for value in (0.1, -0.1, 0.005)] == ["fail", "pass", "chance"]
    assert shown_gap(samples.interval(0.1, 0.01), "macro_f1")[1:] == ("+10.0 points", "[+9.0, +11.0]")
