"""Charts about several tasks."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from luthier.report.charts import WIDTH, axis
from luthier.report.svg import Scale, dot, figure, path, plain, text, ticks
from luthier.train_records import StepEvent

_LEFT, _END, _TOP, _HEIGHT, _GAP = 52.0, WIDTH - 140, 28.0, 92.0, 44.0


def task_losses(history: Sequence[StepEvent], names: Sequence[str]) -> Markup:
    """For each task a panel: its mean loss in each step that had rows of it, all on one axis of steps."""
    last = max((event.step for event in history), default=1)
    across = Scale(0, last, _LEFT, _END)
    parts, ends = [], []
    bottom = _TOP
    for number, name in enumerate(names):
        key = f"{name}.loss"
        seen = [(event.step, event.metrics[key]) for event in history if event.kind == "step" and key in event.metrics]
        top = _TOP + number * (_HEIGHT + _GAP)
        bottom = top + _HEIGHT
        up, grid = axis([value for _, value in seen], left=_LEFT, end=_END, top=top, bottom=bottom, from_zero=True)
        parts += [text(_LEFT, top - 12, name, kind="strong"), *grid]
        if not seen:
            parts.append(text(_LEFT + 8, top + _HEIGHT / 2, "no step had rows of it", kind="small"))
            continue
        points = [(across(step), up(value)) for step, value in seen]
        parts += [path(points, kind="curve tuned"), dot(*points[-1], kind="tuned", radius=3.5)]
        parts.append(text(_END + 10, points[-1][1] + 5, f"{seen[-1][1]:.2f} at step {seen[-1][0]}", kind="value"))
        ends.append(f"{name} {seen[0][1]:.2f} to {seen[-1][1]:.2f}")
    for mark in ticks(0, last):
        if mark <= last:
            parts.append(text(across(mark), bottom + 18, plain(mark), anchor="middle", kind="small"))
    label = f"loss of each task: {', '.join(ends) or 'none'}"
    return figure(parts, width=WIDTH, height=bottom + 26, label=label)
