"""A run of several tasks: one page, one card and some lines about all of them; each task has its own beside."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from luthier.approval_records import Standing
from luthier.plan.words import duration, memory
from luthier.records import GateDecision
from luthier.report import charts
from luthier.report.evidence import (
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
from luthier.systems import LINEAR

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
    if (pruned := evidence[0].pruned) is not None:
        lines += ["", f"The base was pruned first. {pruned.words}"]
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


def render_tasks(
    evidence: Sequence[Evidence], gate: GateDecision, standing: Standing | None = None, *, own_adapters: bool = False
) -> str:
    """The page about all tasks; it links to that of each, which lies beside it.

    With `own_adapters` each task has one of its own, and the course of its training is that of the task alone.
    """
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
            own=[(one.evaluation.name, kept_words(one), _course(one)) for one in evidence] if own_adapters else [],
            training="" if own_adapters else _course(first),
            losses="" if own_adapters else task_losses(first.train.history, [one.evaluation.name for one in evidence]),
        )
    )


def _course(one: Evidence) -> Markup:
    return charts.training(one.train.history, metric=one.train.best_metric, best_step=one.train.best_step)


def kept_words(one: Evidence) -> str:
    """At which of its own steps a task's adapter was kept, and why there."""
    train = one.train
    early = ", where it stopped early" if train.stopped_early else ""
    if not train.best_metric:
        return f"kept at step {train.best_step}, the last: it has no validation rows"
    return (
        f"kept at step {train.best_step} of {train.steps}{early}: {title(train.best_metric)} {train.best_value:.3f} on "
        "its validation split"
    )


def _targets(one: Evidence) -> dict[str, float]:
    return {limit.metric: limit.value for limit in one.resolved.limits if not limit.relative}


def tasks_card(
    resolved: ResolvedRecipe, evidence: Sequence[Evidence], gate: GateDecision, standing: Standing | None = None
) -> str:
    """The card of a run of several tasks: what it can do in each, and where the card of each is."""
    own = resolved.recipe.has_own_adapters
    form = "Whole weights" if resolved.recipe.adapter.type == "full" else "One adapter"
    base = evidence[0].shape.name
    lines = [
        f"# {resolved.recipe.name}",
        "",
        f"{len(evidence)} adapters of `{base}`, one for each task; none has learned from the rows of another."
        if own
        else f"{form} of `{base}` for {len(evidence)} tasks.",
        "",
    ]
    if (merge := evidence[0].train.merge) is not None:
        lines += [merged_words(merge), ""]
    if (pruned := evidence[0].pruned) is not None:
        lines += [f"The base was pruned before it was trained. {pruned.words}", ""]
    for one in evidence:
        name = one.evaluation.name
        lines += [f"## {name} ({one.evaluation.task})", "", one.evaluation.headline, ""]
        lines += [f"Its adapter was {kept_words(one)}.", ""] if own else []
        lines += [f"[card](tasks/{name}/card.md), [report](tasks/{name}/report.html)", ""]
    word, sentence = verdict_of(resolved.recipe.name, gate, standing)
    return "\n".join([*lines, "## Gate", "", f"**{word}** {sentence}", ""])
