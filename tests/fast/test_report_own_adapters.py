"""What is told of a run whose tasks each have an adapter of their own, and its gate."""

from __future__ import annotations

from datetime import UTC, datetime

import samples

from luthier.govern.gate import combine, joined_lines
from luthier.records import GateDecision
from luthier.report.evidence import Evidence
from luthier.report.tasks import kept_words, render_tasks, tasks_card
from luthier.spec.multi_task import MultiTask


def two() -> tuple[list[Evidence], dict[str, GateDecision]]:
    one = samples.evidence()
    other = samples.evidence(
        evaluation=samples.eval_report().model_copy(update={"name": "mood"}),
        train=samples.train_result(best_step=34, best_value=0.5, steps=70, stopped_early=True),
    )
    return [one, other], {"intent": one.gate, "mood": other.gate}


def decided(decisions: dict[str, GateDecision], *, own: bool) -> GateDecision:
    return combine(
        decisions, recipe_sha256="r", eval_sha256="e", artifacts_sha256="a", now=datetime(2026, 1, 15, tzinfo=UTC),
        own_adapters=own,
    )  # fmt: skip


def test_what_was_measured_of_a_model_is_a_line_of_its_task() -> None:
    _, decisions = two()
    lines = [line.line for line in joined_lines(decisions, own_adapters=True)]
    for task in ("intent", "mood"):
        assert {f"{task}: general.perplexity", f"{task}: parity of adapter", f"{task}: parity of merged"} <= set(lines)
    assert lines.count("license of the base model") == 1
    shared = [line.line for line in joined_lines(decisions)]
    assert "general.perplexity" in shared
    assert "intent: general.perplexity" not in shared


def test_page_and_card_say_at_which_step_each_adapter_was_kept() -> None:
    evidence, decisions = two()
    words = "kept at step 34 of 70, where it stopped early: macro-F1 0.500 on its validation split"
    assert kept_words(evidence[1]) == words
    gate = decided(decisions, own=True)
    page = render_tasks(evidence, gate, own_adapters=True)
    assert f"mood: {words}." in page
    assert "an adapter of" in page
    assert "Loss of each task" not in page
    assert page.count("kept: step") == 2, "a chart for each"
    mixed = evidence[0].resolved.recipe.model_copy(update={"multi_task": MultiTask(adapters="per_task")})
    card = tasks_card(evidence[0].resolved.model_copy(update={"recipe": mixed}), evidence, gate)
    assert f"Its adapter was {words}." in card
    assert "2 adapters of" in card
    assert "has learned from the rows of another" in card
    assert "Its adapter was" not in tasks_card(evidence[0].resolved, evidence, gate)


def test_without_validation_rows_the_last_step_is_kept_and_said() -> None:
    one = samples.evidence(train=samples.train_result(best_metric="", best_step=70))
    assert kept_words(one) == "kept at step 70, the last: it has no validation rows"
