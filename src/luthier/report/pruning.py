"""What pruning measured, drawn: a bar a layer, and what the channels and heads that went were worth in each."""

from __future__ import annotations

from markupsafe import Markup

from luthier.prune_records import PrunedUnits, PruneResult
from luthier.report.charts import WIDTH
from luthier.report.svg import Scale, figure, line, rect, text

_HEIGHT, _TOP, _LEFT = 120.0, 26.0, 8.0
_MOST_NUMBERS = 40
"""Layers up to which each bar has its number."""


def layers_chart(pruned: PruneResult | None) -> Markup:
    """Score of each layer; those that went stand out. '' where every layer stayed."""
    if pruned is None or pruned.layers is None:
        return Markup("")
    layers = pruned.layers
    what = "of the block that begins with the layer" if layers.contiguous else "of each layer"
    gone = set(layers.removed)
    bars = [(one or 0.0, "bar-bad" if layer in gone else "bar-other") for layer, one in enumerate(layers.scores)]
    listed = ", ".join(map(str, sorted(gone)))
    return _bars(f"{layers.by} {what}; layers {listed} went", bars)


def units_chart(units: PrunedUnits | None, what: str) -> Markup:
    """Of the scores of each layer, the share that went; '' where nothing did."""
    if units is None:
        return Markup("")
    heading = f"share of {units.by} that went with {units.before - units.after:,} of {units.before:,} {what}, by layer"
    return _bars(heading, [(one.share, "bar-other") for one in units.layers], [one.layer for one in units.layers])


def _bars(heading: str, bars: list[tuple[float, str]], numbers: list[int] | None = None) -> Markup:
    step = (WIDTH - _LEFT) / len(bars)
    values = [value for value, _ in bars]
    scale = Scale(min(0.0, *values), max(0.0, *values), _HEIGHT, _TOP + 8)
    parts = [text(_LEFT, 14, heading, kind="strong")]
    for place, (value, kind) in enumerate(bars):
        x, ends = _LEFT + place * step, sorted((scale(0.0), scale(value)))
        parts.append(rect(x, ends[0], max(step - 3, 1), ends[1] - ends[0], kind=kind))
        if len(bars) <= _MOST_NUMBERS:
            number = numbers[place] if numbers is not None else place
            parts.append(text(x + step / 2 - 1.5, _HEIGHT + 16, number, anchor="middle", kind="small"))
    parts.append(line(_LEFT, scale(0.0), WIDTH, scale(0.0), kind="zero"))
    return figure(parts, width=WIDTH, height=_HEIGHT + 22, label=heading)
