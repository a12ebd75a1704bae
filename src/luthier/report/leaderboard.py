"""Several runs as a page: who leads, and over whom that is shown."""

from __future__ import annotations

import math

from markupsafe import Markup

from luthier.eval_records import Difference, Leaderboard
from luthier.report.charts import LABELS, ROW, WIDTH, fit, whisker
from luthier.report.evidence import is_higher_better, is_proportion, number, shown_gap, title
from luthier.report.html import environment
from luthier.report.svg import Scale, figure, line, plain, text, ticks


def claim(board: Leaderboard) -> str:
    """What may be said of the first: over whom its lead is shown, and over whom it is not."""
    first, *others = board.contenders
    beaten = {pair.against for pair in board.pairs if pair.system == first.name and is_shown(pair)}
    compared = [one.name for one in others if board.metric in one.metrics]
    shown, alike = ([name for name in compared if (name in beaten) is kind] for kind in (True, False))
    said = f"{first.name} has the best {title(board.metric)}, {number(first.metrics[board.metric].point)}"
    said += f"; it is shown to be better than {', '.join(shown)}" if shown else ""
    said += f"; no difference is shown to {', '.join(alike)}" if alike else ""
    return said + "."


def is_shown(pair: Difference) -> bool:
    """Whether the interval leaves no doubt that the better one is better; the point says which that is."""
    return pair.interval.low > 0 or pair.interval.high < 0


def render_leaderboard(board: Leaderboard) -> str:
    """The ranking with intervals, then every pair."""
    names = [one.name for one in board.contenders if board.metric in one.metrics]
    pairs = {(pair.system, pair.against): pair for pair in board.pairs}
    matrix = [(one, [_cell(pairs.get((one, other))) for other in names[1:]]) for one in names[:-1]]
    metrics = [
        name
        for name in next(iter(board.contenders)).metrics
        if sum(name in one.metrics for one in board.contenders) > 1
    ]
    return (
        environment()
        .get_template("leaderboard.html.j2")
        .render(
            board=board, claim=claim(board), chart=drawing(board), matrix=matrix, columns=names[1:], metrics=metrics
        )
    )


def _cell(pair: Difference | None) -> tuple[str, str, str]:
    """Nothing where the pair stands on the other side."""
    return ("", "", "") if pair is None else shown_gap(pair.interval, pair.metric)


def drawing(board: Leaderboard) -> Markup:
    """A row a contender; '' where there is no number to draw."""
    shown = [one for one in board.contenders if board.metric in one.metrics]
    values = [one.metrics[board.metric] for one in shown]
    ends = [end for value in values for end in (value.low, value.point, value.high) if math.isfinite(end)]
    if not ends:
        return Markup()
    worst = 0.0 if is_proportion(board.metric) or not is_higher_better(board.metric) else min(ends)
    top, end = 12.0, WIDTH - 80
    marks = ticks(min(worst, *ends), 1.0 if is_proportion(board.metric) else max(ends))
    bottom, scale = top + ROW * len(shown), Scale(marks[0], marks[-1], LABELS, end)
    parts = []
    for mark in marks:
        parts.append(line(scale(mark), top, scale(mark), bottom, kind="grid"))
        parts.append(text(scale(mark), bottom + 18, plain(mark), anchor="middle", kind="small"))
    for row, (one, value) in enumerate(zip(shown, values, strict=True)):
        y = top + ROW * (row + 0.5)
        kind = "" if one.is_baseline else "strong"
        parts.append(text(LABELS - 18, y + 5, fit(one.name, 28), anchor="end", kind=kind))
        parts += whisker(value, y, scale, kind="other" if one.is_baseline else "tuned", shown=number(value.point))
    said = "; ".join(f"{one.name} {number(value.point)}" for one, value in zip(shown, values, strict=True))
    return figure(parts, width=WIDTH, height=bottom + 26, label=f"{title(board.metric)}: {said}")
