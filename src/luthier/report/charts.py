"""The charts of the report, each a function from numbers to inline SVG. Labels stand at what they name; no legends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from luthier.eval_records import ClassScore, Difference, SystemScore
from luthier.plan.words import p_value
from luthier.records import Interval
from luthier.report.evidence import is_higher_better, is_proportion, minus, number, signed, title
from luthier.report.svg import Scale, dot, figure, line, path, plain, rect, text, ticks
from luthier.systems import short_title, system_title
from luthier.train_records import LossSpike, StepEvent

WIDTH = 860.0
LABELS = 222.0
"""Width of the column of row labels at the left."""

ROW = 34.0
MOST_LABELS = 40
"""Labels up to which a confusion matrix can be read."""


def fit(label: str, chars: int) -> str:
    """Cut to so many characters."""
    return label if len(label) <= chars else label[: chars - 1] + "…"


def systems(scores: Sequence[SystemScore], metrics: Sequence[str], *, targets: Mapping[str, float]) -> Markup:
    """One panel a metric: each system's value with its interval, the target as a dashed line."""
    gap, top = 58.0, 50.0
    panel = (WIDTH - LABELS) / max(1, len(metrics)) - gap
    bottom = top + ROW * len(scores)
    parts = []
    for row, score in enumerate(scores):
        kind = "strong" if score.system == "tuned" else ""
        y = top + ROW * (row + 0.5) + 5
        parts.append(text(LABELS - 18, y, fit(system_title(score.system), 28), anchor="end", kind=kind))
    for column, metric in enumerate(metrics):
        start = LABELS + column * (panel + gap)
        shown = [score.metrics[metric].high for score in scores if metric in score.metrics]
        highest = max((high for high in shown if math.isfinite(high)), default=1.0)
        marks = ticks(0, 1 if is_proportion(metric) else max(highest, targets.get(metric, 0.0)), about=4)
        scale = Scale(marks[0], marks[-1], start, start + panel)
        parts.append(text(start, 16, title(metric), kind="strong"))
        for mark in marks:
            parts.append(line(scale(mark), top, scale(mark), bottom, kind="grid"))
            parts.append(text(scale(mark), bottom + 18, plain(mark), anchor="middle", kind="small"))
        if metric in targets:
            x = scale(targets[metric])
            parts.append(line(x, top - 8, x, bottom, kind="target"))
            parts.append(text(x, top - 13, f"target {plain(targets[metric])}", anchor="middle", kind="small ink"))
        for row, score in enumerate(scores):
            if metric in score.metrics:
                kind = "tuned" if score.system == "tuned" else "other"
                parts += whisker(
                    score.metrics[metric],
                    top + ROW * (row + 0.5),
                    scale,
                    kind=kind,
                    shown=number(score.metrics[metric].point),
                )
    spoken = "; ".join(
        f"{system_title(score.system)}: "
        + ", ".join(f"{title(name)} {number(score.metrics[name].point)}" for name in metrics if name in score.metrics)
        for score in scores
    )
    return figure(parts, width=WIDTH, height=bottom + 26, label=spoken)


def whisker(interval: Interval, y: float, scale: Scale, *, kind: str, shown: str) -> list[Markup]:
    """A dot with its interval and its value beside it, to the left where there is no room at the right."""
    if not math.isfinite(interval.point):
        return [text(scale.start, y + 5, "not defined", kind="small")]
    x, low, high = scale(interval.point), interval.point, interval.point
    if math.isfinite(interval.low) and math.isfinite(interval.high):
        low, high = interval.low, interval.high
    left, right = scale(low), scale(high)
    crowded = max(right, x) + 10 + 8 * len(shown) > scale.end + 52
    label = (
        text(min(left, x) - 10, y + 5, shown, anchor="end", kind=f"value {kind}")
        if crowded
        else text(max(right, x) + 10, y + 5, shown, kind=f"value {kind}")
    )
    return [line(left, y, right, y, kind=f"whisker {kind}"), dot(x, y, kind=kind), label]


def _is_better(difference: Difference) -> bool:
    """Whether the interval shows the tuned model to be better."""
    interval = difference.interval
    return interval.low > 0 if is_higher_better(difference.metric) else interval.high < 0


def differences(found: Sequence[Difference]) -> Markup:
    """Tuned minus another system, in points, around zero; only for shares, '' where there are none."""
    shown = [difference for difference in found if is_proportion(difference.metric)]
    if not shown:
        return Markup()
    top, end = 12.0, WIDTH - 258
    bottom = top + ROW * len(shown)
    lows = [difference.interval.low for difference in shown if math.isfinite(difference.interval.low)]
    highs = [difference.interval.high for difference in shown if math.isfinite(difference.interval.high)]
    marks = ticks(min([0.0, *lows]), max([0.02, *highs]))
    scale = Scale(marks[0], marks[-1], LABELS, end)
    parts = []
    for mark in marks:
        parts.append(line(scale(mark), top, scale(mark), bottom, kind="zero" if mark == 0 else "grid"))
        parts.append(text(scale(mark), bottom + 18, plain(round(100 * mark, 6)), anchor="middle", kind="small"))
    parts.append(text(end + 18, bottom + 18, "points", kind="small"))
    for row, difference in enumerate(shown):
        y, interval = top + ROW * (row + 0.5), difference.interval
        label = f"over {short_title(difference.against)}, {title(difference.metric)}"
        parts.append(text(LABELS - 18, y + 5, label, anchor="end"))
        parts += whisker(interval, y, scale, kind="tuned" if _is_better(difference) else "other", shown="")
        p = p_value(difference.p_value)
        words = signed(interval, difference.metric) + (f", {p}" if p else "")
        parts.append(text(end + 18, y + 5, words, kind="small ink"))
    spoken = "; ".join(f"{minus(one)}, {title(one.metric)}: {signed(one.interval, one.metric)}" for one in shown)
    return figure(parts, width=WIDTH, height=bottom + 26, label=spoken)


def rows(rows_in: int, dropped: Mapping[str, int], splits: Mapping[str, int], *, added: int = 0) -> Markup:
    """From the rows of the file, reason by reason, to the rows used and the splits they went to."""
    row, bar, end = 28.0, 15.0, WIDTH - 70
    scale = Scale(0, max(1, rows_in, sum(splits.values())), LABELS, end)
    parts: list[Markup] = []
    y, left = 4.0, rows_in

    def put(label: str, start: int, stop: int, kind: str, shown: str, *, strong: bool = False) -> None:
        parts.append(text(LABELS - 18, y + 13, fit(label, 33), anchor="end", kind="strong" if strong else ""))
        parts.append(rect(scale(start), y, max(1.5, scale(stop) - scale(start)), bar, kind=kind))
        parts.append(text(scale(stop) + 10, y + 13, shown, kind="value ink" if strong else "value"))

    put("rows in the file", 0, rows_in, "bar-other", f"{rows_in:,}", strong=True)
    for reason, count in sorted(dropped.items(), key=lambda item: (-item[1], item[0])):
        if count:
            y += row
            put(reason.replace("_", " "), left - count, left, "bar-bad", f"−{count:,}")
            left -= count
    if added:
        y += row
        put("made for training", left, left + added, "bar-other", f"+{added:,}")
        left += added
    y += row
    put("rows used", 0, left, "bar-tuned", f"{left:,}", strong=True)
    start = 0
    for name, count in splits.items():
        if count:
            y += row
            put(name, start, start + count, "bar-soft", f"{count:,}")
            start += count
    spoken = f"{rows_in:,} rows in the file, {left:,} used: " + ", ".join(f"{n} {c:,}" for n, c in splits.items())
    return figure(parts, width=WIDTH, height=y + row, label=spoken)


def training(
    history: Sequence[StepEvent],
    *,
    metric: str,
    best_step: int,
    spikes: Sequence[LossSpike] = (),
    loss: str = "mean negative log-likelihood a supervised token, in nats",
) -> Markup:
    """Loss of each step and of each validation above, the validation metric below, on one axis of steps.

    Where a method learns from rewards these stand in the place of the loss, which then says nothing of progress.
    """
    steps = [event for event in history if event.kind == "step"]
    checks = [event for event in history if event.kind == "validation"]
    by_reward = bool(steps) and all("reward" in event.metrics for event in (*steps, *checks))
    name = "reward: mean of the answers that were written" if by_reward else f"loss: {loss}"

    def value(event: StepEvent) -> float:
        return event.metrics["reward"] if by_reward else event.loss

    measured = [(event.step, event.metrics[metric]) for event in checks if metric in event.metrics]
    left, end, top, bottom = 52.0, WIDTH - 140, 26.0, 226.0
    last = max((event.step for event in history), default=1)
    across = Scale(0, last, left, end)
    drawn = axis([value(event) for event in history], left=left, end=end, top=top, bottom=bottom, from_zero=True)
    parts = [text(left, 12, name, kind="strong"), *drawn[1]]
    down = drawn[0]
    parts.append(path([(across(event.step), down(value(event))) for event in steps], kind="curve other"))
    parts += [dot(across(spike.step), down(spike.loss), kind="miss") for spike in spikes]
    if steps:
        parts.append(text(end + 10, down(value(steps[-1])) + 5, f"train {value(steps[-1]):.2f}", kind="value"))
    if checks:
        points = [(across(event.step), down(value(event))) for event in checks]
        parts += [path(points, kind="curve tuned"), *(dot(x, y, kind="tuned", radius=3.5) for x, y in points)]
        apart = abs(points[-1][1] - down(value(steps[-1]))) if steps else 99.0
        y = points[-1][1] + 5 - (0 if apart > 16 else 16)
        parts.append(text(end + 10, y, f"validation {value(checks[-1]):.2f}", kind="value tuned"))
    if measured:
        top, bottom = bottom + 44, bottom + 44 + 110
        up, grid = axis(
            [found for _, found in measured],
            left=left,
            end=end,
            top=top,
            bottom=bottom,
            from_zero=is_proportion(metric),
        )
        points = [(across(step), up(found)) for step, found in measured]
        parts.append(text(left, top - 14, f"validation {title(metric)}", kind="strong"))
        parts += [*grid, path(points, kind="curve tuned")]
        for (x, y), (step, found) in zip(points, measured, strict=True):
            kept = step == best_step
            above = y - 10 if y - top > 16 else y + 20
            parts.append(dot(x, y, kind="tuned", radius=5 if kept else 3.5))
            parts.append(text(x, above, number(found), anchor="middle", kind="small ink" if kept else "small"))
            if kept:
                parts.append(text(end + 10, y + 5, f"kept: step {best_step}", kind="value tuned"))
    for mark in ticks(0, last):
        if mark <= last:
            parts.append(text(across(mark), bottom + 18, plain(mark), anchor="middle", kind="small"))
    parts.append(text(end + 10, bottom + 18, "steps", kind="small"))
    final = f"{steps[0].loss:.2f} to {steps[-1].loss:.2f} in {last} steps" if steps else "no steps"
    final += f", spikes at {', '.join(str(spike.step) for spike in spikes)}" if spikes else ""
    return figure(parts, width=WIDTH, height=bottom + 26, label=f"training loss from {final}")


def axis(
    values: Sequence[float], *, left: float, end: float, top: float, bottom: float, from_zero: bool
) -> tuple[Scale, list[Markup]]:
    """A vertical scale over the finite `values` and its grid."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low = 0.0 if from_zero else min(finite)
    marks = ticks(low, max(*finite, low + 1e-6), about=4)
    scale = Scale(marks[0], marks[-1], bottom, top)
    grid = []
    for mark in marks:
        grid.append(line(left, scale(mark), end, scale(mark), kind="grid"))
        grid.append(text(left - 10, scale(mark) + 4, plain(mark), anchor="end", kind="small"))
    return scale, grid


def confusion(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> Markup:
    """Expected labels down, predicted across; shade is the share of a row, green where right, red where wrong."""
    longest = min(24, max((len(label) for label in labels), default=1))
    size = max(12.0, min(40.0, 560.0 / max(1, len(labels))))
    left, top = 42 + 8.0 * longest, 30 + 5.6 * longest
    parts = [text(left, 12, "predicted →", kind="small"), text(10, top + 4, "expected →", kind="small", turn=90)]
    for row, label in enumerate(labels):
        total = sum(counts[row])
        y = top + row * size
        parts.append(text(left - 8, y + size / 2 + 5, fit(label, 24), anchor="end"))
        parts.append(text(left + (row + 0.62) * size, top - 8, fit(label, 24), turn=-45))
        for column, count in enumerate(counts[row]):
            x, share = left + column * size, count / max(1, total)
            parts.append(rect(x, y, size - 2, size - 2, kind="cell"))
            if count:
                kind, opacity = "hit" if row == column else "miss", 0.12 + 0.88 * share
                parts.append(rect(x, y, size - 2, size - 2, kind=kind, opacity=opacity))
                if size >= 20:
                    kind = "on-dark" if share > 0.55 else "ink"
                    parts.append(text(x + size / 2 - 1, y + size / 2 + 4, count, anchor="middle", kind=f"small {kind}"))
    right = sum(counts[index][index] for index in range(len(labels)))
    width = left + len(labels) * size + 5.6 * longest
    spoken = f"confusion matrix of {len(labels)} labels: {right} of {sum(map(sum, counts))} on the diagonal"
    return figure(parts, width=width, height=top + len(labels) * size + 4, label=spoken)


def class_bars(classes: Sequence[ClassScore]) -> dict[str, Markup]:
    """A small bar of F1 for each label, to stand in a table."""
    return {
        score.label: figure(
            [rect(0, 2, 120, 8, kind="cell"), rect(0, 2, 120 * score.f1, 8, kind="bar-tuned")],
            width=120,
            height=12,
            label=f"F1 {number(score.f1)}",
        )
        for score in classes
    }


def predicted(rows_shown: Sequence[tuple[str, float, float, str]]) -> Markup:
    """What happened as a bar, what was predicted as a mark across it; each row (label, predicted, actual, words)."""
    end, parts = WIDTH - 250, []
    for row, (label, expected, actual, words) in enumerate(rows_shown):
        y = 6 + row * ROW
        scale = Scale(0, max(expected, actual, 1e-9) * 1.08, LABELS, end)
        parts.append(text(LABELS - 18, y + 15, label, anchor="end"))
        parts.append(rect(LABELS, y + 3, scale(actual) - LABELS, 14, kind="bar-tuned"))
        parts.append(line(scale(expected), y - 2, scale(expected), y + 22, kind="mark"))
        parts.append(text(WIDTH, y + 15, words, anchor="end", kind="small ink"))
    spoken = "; ".join(f"{label}: {words}" for label, _, _, words in rows_shown)
    return figure(parts, width=WIDTH, height=ROW * len(rows_shown) + 6, label=spoken)
