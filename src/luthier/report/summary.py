"""The last lines of a run, for a terminal."""

from __future__ import annotations

from luthier.plan.words import duration, memory, p_value
from luthier.records import GateDecision
from luthier.report.evidence import (
    Evidence,
    ask_commands,
    bits,
    brackets,
    budgets,
    contaminated_line,
    look_line,
    minus,
    signed,
    title,
    verdict,
    warnings,
)
from luthier.systems import LINEAR, PARENT, PRUNED


def table(evidence: Evidence) -> list[list[str]]:
    """Head and rows of the comparison: one row a system, one column a metric, each value with its interval."""
    metrics = shared_metrics(evidence)
    head = ["system", *(title(metric) for metric in metrics)]
    rows = [
        [score.title, *(brackets(score.metrics[metric]) if metric in score.metrics else "–" for metric in metrics)]
        for score in evidence.evaluation.systems
    ]
    return [head, *rows]


def shared_metrics(evidence: Evidence) -> list[str]:
    """Metrics that at least two systems have, the verdict's first."""
    names = list(evidence.system("tuned").metrics)
    shared = [name for name in names if sum(name in score.metrics for score in evidence.evaluation.systems) > 1]
    return sorted(shared, key=lambda name: name != evidence.metric)


def summary(evidence: Evidence) -> list[str]:
    """What `luthier run` says at its end: warnings, comparison, target, gate, prediction, commands; warnings again."""
    first = warnings(evidence)
    word, sentence = verdict(evidence)
    lines = [*first, *([""] if first else []), f"{word.upper()} {sentence}", evidence.evaluation.headline, ""]
    lines += columns(table(evidence))
    level = f"{100 * (evidence.resolved.recipe.evaluate.level or 0.95):g} %"
    evaluation = evidence.evaluation
    items = f"{evaluation.num_items:,} items of the {evaluation.split} split"
    lines += [f"{level} intervals: {evaluation.interval_method}, {items}"]
    lines += [*filter(None, [contaminated_line(evidence)]), ""]
    parents = [score.system for score in evaluation.systems if score.system.startswith(PARENT)]
    for against in ("base", PRUNED, *parents, *LINEAR, "length", "base_per_token"):
        difference = evidence.difference(against)
        if difference is not None:
            p = p_value(difference.p_value)
            what = f"{minus(difference)}, {title(difference.metric)}"
            lines.append(f"{what:<56}{signed(difference.interval, difference.metric)}{', ' + p if p else ''}")
    if evidence.pruned is not None:
        lines += ["", f"The base was pruned first. {evidence.pruned.words}"]
    lines += ["", *gate_lines(evidence), *filter(None, [look_line(evidence)]), "", *_predicted(evidence)]
    if evidence.shape.quantisation:
        width = bits(evidence.shape.quantisation) or evidence.shape.quantisation
        lines += ["", f"The base model was dequantized from {width} ({evidence.shape.quantisation})."]
    lines += ["", *(ask_commands(evidence) if may_be_used(evidence) else [refused_hint(evidence)])]
    return lines + (["", *first] if first else [])


def may_be_used(evidence: Evidence) -> bool:
    """Whether its gate passed, or it was approved all the same."""
    return evidence.where_it_stands.may_be_used


def refused_hint(evidence: Evidence) -> str:
    """What a refusal means for serving."""
    run = evidence.run
    if evidence.standing is not None and evidence.standing.state == "waiting":
        return f"`luthier serve {run}` refuses this run too until it is approved: `luthier gate {run} --approve`."
    return (
        f"`luthier serve {run}` refuses this run too, unless it is approved: `luthier gate {run} --request REASON`; "
        "see `luthier serve --help`."
    )


def gate_lines(evidence: Evidence) -> list[str]:
    """The gate's lines as a table."""
    return gate_lines_of(evidence.gate)


def gate_lines_of(gate: GateDecision) -> list[str]:
    """The same of a decision alone."""
    rows = [["gate", "asked", "observed", ""]]
    for line in gate.lines:
        # Behind the semicolon of a bound stands how it is meant; the report and gate.json have it.
        observed = line.observed.partition(";")[0] if line.kind in ("target", "non_regression") else line.observed
        rows.append([line.line, line.asked, observed, "met" if line.passed else "NOT MET"])
    return columns(rows)


def _predicted(evidence: Evidence) -> list[str]:
    prediction = evidence.plan.prediction
    actual = duration(evidence.total_seconds) if evidence.is_whole else "stages taken over from an earlier run"
    stated = budgets(evidence)
    rows = [
        ["", "predicted", "actual", "budget"],
        ["time", duration(prediction.total_seconds), actual, stated.get("time", "none stated")],
        [
            "peak memory",
            memory(prediction.peak_memory_gib),
            memory(evidence.peak_memory_gib),
            stated.get("memory", "none stated"),
        ],
    ]
    return columns(rows)


def columns(rows: list[list[str]]) -> list[str]:
    """A table in columns as wide as their widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
