"""The data report: rows in, rows out and why, as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from luthier.data_report import DataReport
from luthier.plan.words import count
from luthier.records import SplitName
from luthier.report import charts
from luthier.report.evidence import ACTIONS, not_looked_for
from luthier.report.html import environment, reasons
from luthier.report.svg import Scale, figure, line, plain, rect, text, ticks

MOST_LABELS = 120
_SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


def render_data(data: DataReport) -> str:
    """The data report as HTML text."""
    return (
        environment()
        .get_template("data.html.j2")
        .render(
            data=data,
            reasons=reasons(data),
            rows=charts.rows(
                data.rows_in,
                data.dropped,
                {name: split.used for name, split in data.splits.items()},
                added=data.rows_added,
            ),
            lengths=lengths({name: split.length_counts for name, split in data.splits.items()}, data),
            labels=labels({name: split.labels for name, split in data.splits.items()}),
            supervised=supervised(data),
            lost=lost_share(data),
            actions=ACTIONS,
            not_looked_for=not_looked_for(data),
        )
    )


def lost_share(data: DataReport) -> float:
    """Share of all tokens, those that were cut out among them, that were cut out."""
    lost = sum(split.supervision.tokens_lost for split in data.splits.values() if split.supervision)
    return lost / max(1, lost + sum(split.tokens for split in data.splits.values()))


def lengths(counts: Mapping[SplitName, tuple[int, ...]], data: DataReport) -> Markup:
    """Rows by number of tokens, all splits together; the bins are equally wide from 0 to the longest row."""
    longest = max(split.length_max for split in data.splits.values())
    bins = [sum(split) for split in zip(*(one for one in counts.values() if one), strict=True)]
    return histogram(bins, longest, of="tokens in a row", spoken="rows by length")


def supervised(data: DataReport) -> Markup:
    """Training rows by number of supervised tokens."""
    audit = data.splits["train"].supervision if "train" in data.splits else None
    if audit is None:
        return Markup("")
    of = "supervised tokens in a row of training"
    return histogram(audit.per_row_counts, audit.per_row_max, of=of, spoken=f"rows by {of}")


def histogram(bins: Sequence[int], longest: int, *, of: str, spoken: str) -> Markup:
    """Rows in bins of equal width from 0 to `longest` tokens."""
    if not any(bins):
        return Markup("")
    height, left, right, top = 190.0, 60.0, charts.WIDTH - 20, 14.0
    marks = ticks(0, max(bins), about=4)
    down = Scale(0, marks[-1], height, top)
    along = Scale(0, longest, left, right)
    parts = []
    for mark in marks:
        parts.append(line(left, down(mark), right, down(mark), kind="grid"))
        parts.append(text(left - 8, down(mark) + 4, count(round(mark)), anchor="end", kind="small"))
    width = (right - left) / len(bins)
    for number, rows in enumerate(bins):
        parts.append(rect(left + number * width + 1, down(rows), width - 2, height - down(rows), kind="bar-other"))
    for mark in ticks(0, longest, about=8):
        if mark <= longest:
            parts.append(text(along(mark), height + 18, plain(mark), anchor="middle", kind="small"))
    parts.append(text((left + right) / 2, height + 38, of, anchor="middle", kind="small"))
    label = f"{spoken}: {len(bins)} bins from 0 to {longest} tokens: {', '.join(map(str, bins))}"
    return figure(parts, width=charts.WIDTH, height=height + 46, label=label)


def labels(counts: Mapping[SplitName, Mapping[str, int]]) -> Markup:
    """Rows of each label, the commonest first: a bar for training, then one for what is kept back."""
    names = sorted(
        {name for split in counts.values() for name in split}, key=lambda name: (-counts["train"].get(name, 0), name)
    )
    if not names or len(names) > MOST_LABELS:
        return Markup("")
    row, left = 24.0, 230.0
    most = max(sum(split.get(name, 0) for split in counts.values()) for name in names)
    scale = Scale(0, most, 0, charts.WIDTH - left - 150)
    kinds = {"train": "bar-tuned", "validation": "bar-other", "test": "bar-soft"}
    parts = []
    for number, name in enumerate(names):
        y, x = 4 + number * row, left
        shown = name if len(name) <= 28 else name[:27] + "…"
        parts.append(text(left - 12, y + 15, shown, anchor="end"))
        for split in _SPLITS:
            rows = counts.get(split, {}).get(name, 0)
            parts.append(rect(x, y + 3, scale(rows), row - 8, kind=kinds[split]))
            x += scale(rows)
        parts.append(text(x + 8, y + 15, " + ".join(count(counts[s].get(name, 0)) for s in _SPLITS), kind="small"))
    spoken = "; ".join(f"{name}: " + ", ".join(f"{counts[s].get(name, 0)} {s}" for s in _SPLITS) for name in names)
    return figure(parts, width=charts.WIDTH, height=8 + row * len(names), label=spoken)
