"""Several seeds of one recipe as a page: what is noise of training, what of the test rows."""

from __future__ import annotations

import math

from markupsafe import Markup

from luthier.eval_records import SeedScore, SeedsReport
from luthier.report.charts import LABELS, ROW, WIDTH
from luthier.report.evidence import number, shown_gap, title
from luthier.report.html import environment
from luthier.report.svg import Scale, dot, figure, line, plain, text, ticks
from luthier.systems import system_title


def render_seeds(report: SeedsReport) -> str:
    """A drawing of the main metric, a row a metric, a row a system that is compared."""
    gaps = [
        (system_title(gap.against), title(gap.metric), *shown_gap(gap.mean, gap.metric))
        for gap in report.differences
        if math.isfinite(gap.mean.point)
    ]
    return (
        environment()
        .get_template("seeds.html.j2")
        .render(report=report, chart=drawing(report.scores[0], report.seeds), gaps=gaps)
    )


def drawing(score: SeedScore, seeds: tuple[int, ...]) -> Markup:
    """A dot a seed, and the mean over seeds with the interval of both noises."""
    mean, top, end = score.mean, 12.0, WIDTH - 100
    known = [value for value in (*score.values, mean.low, mean.high) if math.isfinite(value)]
    if not known:
        return Markup()
    marks = ticks(min(known), max(known))
    bottom, scale = top + ROW * (len(seeds) + 1), Scale(marks[0], marks[-1], LABELS, end)
    parts = []
    for mark in marks:
        parts.append(line(scale(mark), top, scale(mark), bottom, kind="grid"))
        parts.append(text(scale(mark), bottom + 18, plain(mark), anchor="middle", kind="small"))
    for row, (seed, value) in enumerate(zip(seeds, score.values, strict=True)):
        y = top + ROW * (row + 0.5)
        parts.append(text(LABELS - 18, y + 5, f"seed {seed}", anchor="end"))
        if math.isfinite(value):
            parts.append(dot(scale(value), y, kind="other"))
        parts.append(text(end + 18, y + 5, number(value), kind="value other"))
    y = top + ROW * (len(seeds) + 0.5)
    parts.append(text(LABELS - 18, y + 5, "mean", anchor="end", kind="strong"))
    if math.isfinite(mean.low) and math.isfinite(mean.high):
        parts.append(line(scale(mean.low), y, scale(mean.high), y, kind="whisker tuned"))
    if math.isfinite(mean.point):
        parts.append(dot(scale(mean.point), y, kind="tuned"))
    parts.append(text(end + 18, y + 5, number(mean.point), kind="value tuned"))
    said = ", ".join(f"seed {seed} {number(value)}" for seed, value in zip(seeds, score.values, strict=True))
    spoken = f"{title(score.metric)}: {said}; mean {number(mean.point)}, {mean.ends()}"
    return figure(parts, width=WIDTH, height=bottom + 26, label=spoken)
