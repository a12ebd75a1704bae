"""A run of several tasks: one page, one card and some lines about all of them; each task has its own beside."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.approval_records import Standing
from luthier.plan.words import duration, memory
from luthier.records import GateDecision
from luthier.report import charts
from luthier.report.evidence import (
    LINEAR,
    Evidence,
    brackets,
    budgets,
    contaminated_line,
    look_line,
    merged_words,
    signed,
    title,
    verdict_of,
    warnings,
)
from luthier.report.html import environment
from luthier.report.summary import columns, gate_lines_of
from luthier.report.task_charts import task_losses
from luthier.spec.resolve import ResolvedRecipe

HEAD = ["task", "metric", "tuned model", "base model", "tuned minus base", "TF-IDF"]


def overview(evidence: Sequence[Evidence]) -> list[list[str]]:
    """Head and one row a task: its own metric, tuned and base, their paired difference."""
    rows = []
    for one in evidence:
        metric = one.metric
        systems = {score.system: score.metrics for score in one.evaluation.systems}
        difference = one.difference("base")
        linear = next((systems[name] for name in LINEAR if name in systems), {})
        rows.append(
            [
                one.evaluation.name,
                title(metric),
                brackets(systems["tuned"][metric]),
                brackets(systems["base"][metric]) if metric in systems["base"] else "–",
                signed(difference.interval, metric) if difference is not None else "–",
                brackets(linear[metric]) if metric in linear else "–",
            ]
        )
    return [HEAD, *rows]


def told_first(evidence: Sequence[Evidence]) -> list[str]:
    """What must be said before anything else, with the task that it is about."""
    return list(dict.fromkeys(f"{one.evaluation.name}: {line}" for one in evidence for line in warnings(one)))


def tasks_summary(evidence: Sequence[Evidence], gate: GateDecision, standing: Standing | None = None) -> list[str]:
    """The last lines of a run of several tasks, for a terminal."""
    first, name = told_first(evidence), evidence[0].name
    word, sentence = verdict_of(name, gate, standing)
    lines = [*first, *([""] if first else []), f"{word.upper()} {sentence}", ""]
    lines += columns(overview(evidence))
    lines += [f"{one.evaluation.name}: {one.evaluation.headline}" for one in evidence]
    lines += [f"{one.evaluation.name}: {line}" for one in evidence if (line := contaminated_line(one))]
    looks = [f"{one.evaluation.name}: {line}" for one in evidence if (line := look_line(one))]
    lines += ["", *gate_lines_of(gate), *looks, "", *_predicted(evidence[0])]
    return lines + (["", *first] if first else [])


def _predicted(one: Evidence) -> list[str]:
    prediction, stated = one.plan.prediction, budgets(one)
    actual = duration(one.total_seconds) if one.is_whole else "stages taken over from an earlier run"
    return columns(
        [
            ["", "predicted", "actual", "budget"],
            ["time", duration(prediction.total_seconds), actual, stated.get("time", "none stated")],
            [
                "peak memory",
                memory(prediction.peak_memory_gib),
                memory(one.peak_memory_gib),
                stated.get("memory", "none stated"),
            ],
        ]
    )


def render_tasks(evidence: Sequence[Evidence], gate: GateDecision, standing: Standing | None = None) -> str:
    """The page about all tasks; it links to that of each, which lies beside it."""
    first = evidence[0]
    shown = [
        {
            "name": one.evaluation.name,
            "task": one.evaluation.task,
            "headline": one.evaluation.headline,
            "passed": one.gate.passed,
            "chart": charts.systems(one.evaluation.systems, [one.metric], targets=_targets(one)),
            "link": f"tasks/{one.evaluation.name}/report.html",
        }
        for one in evidence
    ]
    return (
        environment()
        .get_template("tasks.html.j2")
        .render(
            e=first,
            gate=gate,
            verdict=verdict_of(first.name, gate, standing),
            warnings=told_first(evidence),
            table=overview(evidence),
            tasks=shown,
            training=charts.training(
                first.train.history, metric=first.train.best_metric, best_step=first.train.best_step
            ),
            losses=task_losses(first.train.history, [one.evaluation.name for one in evidence]),
        )
    )


def _targets(one: Evidence) -> dict[str, float]:
    return {limit.metric: limit.value for limit in one.resolved.limits if not limit.relative}


def tasks_card(
    resolved: ResolvedRecipe, evidence: Sequence[Evidence], gate: GateDecision, standing: Standing | None = None
) -> str:
    """The card of a run of several tasks: what it can do in each, and where the card of each is."""
    form = "Whole weights" if resolved.recipe.adapter.type == "full" else "One adapter"
    lines = [
        f"# {resolved.recipe.name}",
        "",
        f"{form} of `{evidence[0].shape.name}` for {len(evidence)} tasks.",
        "",
    ]
    if (merge := evidence[0].train.merge) is not None:
        lines += [merged_words(merge), ""]
    for one in evidence:
        name = one.evaluation.name
        lines += [f"## {name} ({one.evaluation.task})", "", one.evaluation.headline, ""]
        lines += [f"[card](tasks/{name}/card.md), [report](tasks/{name}/report.html)", ""]
    word, sentence = verdict_of(resolved.recipe.name, gate, standing)
    return "\n".join([*lines, "## Gate", "", f"**{word}** {sentence}", ""])
