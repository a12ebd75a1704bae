"""The page, the card and the last lines about several tasks, and the transfer matrix."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
import samples

from luthier.eval_records import TransferCell, TransferMatrix
from luthier.govern.gate import combine, verify_seal
from luthier.pipeline.transfer import subsets, transfer_lines
from luthier.records import GateDecision, Interval
from luthier.report.evidence import Evidence
from luthier.report.task_charts import task_losses
from luthier.report.tasks import overview, render_tasks, tasks_card, tasks_summary
from luthier.report.transfer import render_transfer
from luthier.train_records import StepEvent


def two(*, passed: bool = True) -> tuple[list[Evidence], GateDecision]:
    one = samples.evidence()
    other = samples.evidence(
        evaluation=samples.eval_report().model_copy(update={"name": "mood"}), gate=samples.gate(passed=passed)
    )
    gate = combine(
        {"intent": one.gate, "mood": other.gate}, recipe_sha256="r", eval_sha256="e", artifacts_sha256="a",
        now=datetime(2026, 1, 15, tzinfo=UTC),
    )  # fmt: skip
    return [one, other], gate


def test_one_task_that_fails_fails_all() -> None:
    assert two()[1].passed
    evidence, gate = two(passed=False)
    assert not gate.passed
    assert verify_seal(gate)
    failed = [line.line for line in gate.lines if not line.passed]
    assert len(failed) == len(evidence[1].failed)
    page = render_tasks(evidence, gate)
    assert "Refused." in page
    assert "NOT MET" in "\n".join(tasks_summary(evidence, gate))


def test_what_is_of_the_model_stands_once_and_what_is_of_a_task_names_it() -> None:
    _, gate = two()
    lines = [line.line for line in gate.lines]
    assert lines.count("license of the base model") == lines.count("general.perplexity") == 1
    assert len([line for line in lines if line.endswith(": personal data")]) == 2
    assert all(line.evidence.startswith("tasks/") for line in gate.lines if line.kind == "data")


def test_the_page_links_to_each_task_and_loads_nothing() -> None:
    page = render_tasks(*two())
    for name in ("intent", "mood"):
        assert f'href="tasks/{name}/report.html"' in page
    assert not re.findall(r"(?:src|href)\s*=\s*['\"]?(?:http|//)", page)
    assert [row[0] for row in overview(two()[0])[1:]] == ["intent", "mood"]


def test_the_card_names_each_task() -> None:
    evidence, gate = two()
    card = tasks_card(evidence[0].resolved, evidence, gate)
    assert "## intent (classification)" in card
    assert "(tasks/mood/card.md)" in card


def test_a_task_without_a_step_is_said_to_have_none() -> None:
    events = [
        StepEvent(
            kind="step", step=step, epoch=0.1, loss=1.0, learning_rate=0.1, grad_norm=1.0, num_tokens=1,
            supervised_tokens=1, seconds=1.0, memory_gib=1.0, metrics={"a.loss": 2.0 / step},
        )
        for step in (1, 2)
    ]  # fmt: skip
    chart = str(task_losses(events, ["a", "b"]))
    assert "1.00 at step 2" in chart
    assert "no step had rows of it" in chart


def cell(task: str, low: float, high: float, **changes: object) -> TransferCell:
    values = {
        "task": task, "together": ("a", "b"), "metric": "macro_f1", "higher_is_better": True, "alone": 0.5,
        "difference": Interval(point=(low + high) / 2, low=low, high=high, n=9), "p_value": 0.04, "num_items": 9,
    }  # fmt: skip
    return TransferCell.model_validate(values | changes)


@pytest.mark.parametrize(
    ("made", "word", "kind"),
    [
        (cell("a", 0.1, 0.2), "gains", "pass"),
        (cell("a", -0.2, -0.1), "loses", "fail"),
        (cell("a", -0.1, 0.1), "no difference is shown", "chance"),
        (cell("a", -0.2, -0.1, metric="perplexity", higher_is_better=False), "gains", "pass"),
        (cell("a", 0.1, 0.2, metric="perplexity", higher_is_better=False), "loses", "fail"),
    ],
)
def test_only_what_the_interval_shows_is_said(made: TransferCell, word: str, kind: str) -> None:
    matrix = TransferMatrix(recipe="r", tasks=("a", "b"), cells=(made, cell("b", -0.1, 0.1)), runs={})
    assert f": {word} (alone 0.500; 9 rows)" in transfer_lines(matrix)[0]
    assert f'class="{kind}"' in render_transfer(matrix)


def test_the_subsets_are_each_alone_every_pair_and_all() -> None:
    assert subsets("ab") == [("a",), ("b",), ("a", "b")]
    assert subsets("abc") == [("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")]
