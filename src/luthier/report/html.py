"""Evidence in, one HTML file out. Style and charts are inside; the page forbids itself to load anything."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from luthier.data_report import DataReport
from luthier.plan.words import count, duration, loss_spike, memory, millions, p_value, size
from luthier.report import charts
from luthier.report.evidence import (
    ACTIONS,
    Evidence,
    ask_commands,
    bits,
    brackets,
    budgets,
    contaminated_line,
    is_proportion,
    look_line,
    merged_words,
    minus,
    not_looked_for,
    number,
    signed,
    title,
    verdict,
    warnings,
)
from luthier.report.pruning import layers_chart, units_chart
from luthier.report.summary import may_be_used, refused_hint, shared_metrics, table
from luthier.systems import LINEAR, PARENT, PRUNED, system_title

MOST_TEXT = 320
"""Characters of a misclassified text that are shown."""

MOST_MISTAKES = 30
MOST_CONFUSIONS = 8
MOST_LINES = 12
"""Lines of dropped rows that are named for each reason; all are in the data report."""


def environment() -> Environment:
    """Where templates are found, and the filters that they use."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        brackets=brackets,
        count=count,
        duration=duration,
        loss_spike=loss_spike,
        memory=memory,
        merged_words=merged_words,
        number=number,
        p_value=p_value,
        size=size,
        title_of=title,
        symbols=_symbols,
        minute=_minute,
    )
    return made


def render(evidence: Evidence) -> str:
    """The report as HTML text."""
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            e=evidence,
            warnings=warnings(evidence),
            contaminated_line=contaminated_line(evidence),
            look_line=look_line(evidence),
            verdict=verdict(evidence),
            figures=_key_figures(evidence),
            table=table(evidence),
            uncharted=_uncharted(evidence),
            charts=_charts(evidence),
            reasons=reasons(evidence.data),
            confusions=_confusions(evidence),
            bars=charts.class_bars(evidence.evaluation.classes),
            mistakes=[(m, _cut(m.text)) for m in evidence.evaluation.mistakes[:MOST_MISTAKES]],
            base_words=_base_words(evidence),
            budgets=budgets(evidence),
            hashes=_hashes(evidence),
            commands=ask_commands(evidence),
            actions=ACTIONS,
            abstain_below=getattr(evidence.resolved.recipe.method, "abstain_below", None),
            refused_hint=refused_hint(evidence),
            may_be_used=may_be_used(evidence),
            not_looked_for=not_looked_for(evidence.data),
            level=f"{100 * (evidence.resolved.recipe.evaluate.level or 0.95):g} %",
        )
    )


def _key_figures(evidence: Evidence) -> list[tuple[str, str, str]]:
    """(name, value, condition) of what must be readable at a glance."""
    metric, evaluation = evidence.metric, evidence.evaluation
    value = evidence.system("tuned").metrics[metric]
    condition = f"{number(value.low)} to {number(value.high)} on {evaluation.num_items:,} items"
    figures = [(f"{title(metric)}, tuned", number(value.point), condition)]
    for line in evidence.gate.lines:
        if line.kind == "target":
            bound = "" if line.bound is None else f", bound {number(line.bound)}"
            asked = f"asked {_symbols(line.asked)}{bound}"
            figures.append((f"target {line.line}", "met" if line.passed else "not met", asked))
    others = [("base", "the base model"), *((name, "TF-IDF") for name in LINEAR), ("length", "length alone")]
    others += [(PRUNED, "the pruned model, not healed")]
    others += [(one.system, system_title(one.system)) for one in evaluation.systems if one.system.startswith(PARENT)]
    for against, name in others:
        difference = evidence.difference(against)
        if difference is not None:
            point, _, ends = signed(difference.interval, metric).partition(" [")
            figures.append((f"over {name}", point, "[" + ends))
    prediction = evidence.plan.prediction
    if evidence.is_whole:
        took = f"predicted {duration(prediction.total_seconds)}"
        figures.append(("whole run", duration(evidence.total_seconds), took))
    peak = f"predicted {memory(prediction.peak_memory_gib)}"
    figures.append(("peak memory", memory(evidence.peak_memory_gib), peak))
    return figures


def _charts(evidence: Evidence) -> dict[str, Any]:
    evaluation, data, train = evidence.evaluation, evidence.data, evidence.train
    targets = {limit.metric: limit.value for limit in evidence.resolved.limits if not limit.relative}
    metrics = [name for name in shared_metrics(evidence) if evidence.system("base").metrics.get(name)]
    closed = 0 < len(evaluation.labels) <= charts.MOST_LABELS
    return {
        "systems": charts.systems(evaluation.systems, metrics[:2], targets=targets),
        "differences": charts.differences(evaluation.differences),
        "rows": charts.rows(
            data.rows_in, data.dropped, {name: split.used for name, split in data.splits.items()}, added=data.rows_added
        ),
        "pruned_layers": layers_chart(evidence.pruned),
        "pruned_mlp": units_chart(evidence.pruned.mlp if evidence.pruned else None, "channels"),
        "pruned_heads": units_chart(evidence.pruned.heads if evidence.pruned else None, "key-value heads"),
        "training": charts.training(
            train.history,
            metric=train.best_metric,
            best_step=train.best_step,
            spikes=train.spikes,
            loss=_loss(evidence),
        ),
        "confusion": charts.confusion(evaluation.labels, evaluation.confusion) if closed else "",
        "predicted": charts.predicted(_predicted(evidence)),
    }


def _loss(evidence: Evidence) -> str:
    """What the curve of training shows."""
    if not evidence.by_head:
        return "mean negative log-likelihood a supervised token, in nats"
    unit = "squared standard deviations" if evidence.resolved.recipe.entry.task == "regression" else "nats"
    paired = evidence.resolved.recipe.entry.task == "preference"
    return f"mean loss a {'pair' if paired else 'row'}, in {unit}"


def _predicted(evidence: Evidence) -> list[tuple[str, float, float, str]]:
    prediction = evidence.plan.prediction
    times = [
        ("training", prediction.train_seconds, evidence.train.seconds),
        ("evaluation", prediction.evaluate_seconds, evidence.evaluation.seconds),
    ]
    if evidence.is_whole:
        times.append(("whole run", prediction.total_seconds, evidence.total_seconds))
    rows = [(name, p, a, f"{duration(a)}, predicted {duration(p)}{_off(p, a)}") for name, p, a in times]
    p, a = prediction.peak_memory_gib, evidence.peak_memory_gib
    return [*rows, ("peak memory", p, a, f"{memory(a)}, predicted {memory(p)}{_off(p, a)}")]


def _off(predicted: float, actual: float) -> str:
    """' (+7 %)': how far what happened lies from what was predicted."""
    return f" ({100 * (actual / predicted - 1):+.0f} %)".replace("-", "−") if predicted > 0 else ""


def reasons(data: DataReport) -> list[tuple[str, int, str]]:
    """(reason, rows, lines of the file) for each reason that a row was set aside, most frequent first."""
    found = []
    for reason, rows in sorted(data.dropped.items(), key=lambda item: (-item[1], item[0])):
        if not rows:
            continue
        places = [str(fate.line) for fate in data.fates if fate.reason == reason]
        more = f" and {len(places) - MOST_LINES} more" if len(places) > MOST_LINES else ""
        found.append((reason.replace("_", " "), rows, ", ".join(places[:MOST_LINES]) + more))
    return found


def _confusions(evidence: Evidence) -> list[tuple[str, str, int]]:
    """(expected, predicted, items), most frequent first."""
    evaluation = evidence.evaluation
    wrong: Counter[tuple[str, str]] = Counter()
    for expected, row in zip(evaluation.labels, evaluation.confusion, strict=True):
        for predicted, items in zip(evaluation.labels, row, strict=True):
            if expected != predicted and items:
                wrong[expected, predicted] = items
    return [(expected, predicted, items) for (expected, predicted), items in wrong.most_common(MOST_CONFUSIONS)]


def _uncharted(evidence: Evidence) -> list[tuple[str, str, str]]:
    """(systems, metric, value with interval) of differences that are no shares, so that points do not fit them."""
    return [
        (minus(difference), title(difference.metric), signed(difference.interval, difference.metric))
        for difference in evidence.evaluation.differences
        if not is_proportion(difference.metric)
    ]


def _minute(time: str) -> str:
    """'2026-01-15 10:42 UTC' of an ISO 8601 time in UTC."""
    return time[:16].replace("T", " ") + " UTC"


def _symbols(text: str) -> str:
    return text.replace(">=", "≥").replace("<=", "≤")


def _cut(text: str) -> str:
    """At most MOST_TEXT characters, without control characters, which HTML does not have."""
    text = re.sub(r"[^\S \n]|[\x00-\x08\x0e-\x1f\x7f-\x9f]", " ", text)
    return text if len(text) <= MOST_TEXT else text[:MOST_TEXT].rstrip() + " …"


def _base_words(evidence: Evidence) -> str:
    """One sentence on the base model, with what was lost before Luthier got it."""
    shape = evidence.shape
    sentence = (
        f"{shape.name}, {shape.architecture}, {millions(shape.num_parameters)} parameters in {shape.num_layers} layers"
    )
    if not shape.quantisation:
        return sentence + "."
    width = bits(shape.quantisation) or shape.quantisation
    return (
        f"{sentence}. It was dequantized from {width} ({shape.quantisation}) to float32: what the quantization lost is "
        "lost in every system compared here."
    )


def _hashes(evidence: Evidence) -> list[tuple[str, str]]:
    """(what, SHA-256) from the source files to the artifacts."""
    data, evaluation = evidence.data, evidence.evaluation
    found = [("resolved recipe", evidence.resolved.sha256)]
    found += [(f"data file {name}", value) for name, value in data.source_sha256.items()]
    found += [("base model", evidence.shape.sha256), ("request contract", data.contract_sha256)]
    found += [(f"{name} shard", split.sha256) for name, split in data.splits.items() if split.sha256]
    found += [("tuned weights", evaluation.weights_sha256)]
    for artifact in evidence.artifacts:
        found += [(f"{artifact.path}/{file}", value) for file, value in artifact.sha256.items()]
    gate = evidence.gate
    approvers = [("approvers' file when the gate decided", gate.approvers_sha256)] if gate.approvers_sha256 else []
    signed = [("key that signed gate.json", gate.signed_by)] if gate.signed_by else []
    return [*found, *approvers, *signed, ("seal of the gate", gate.seal)]
