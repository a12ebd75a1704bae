"""Small pieces of inline SVG. Colors are classes of the page's style sheet; every text is escaped here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape


def text(x: float, y: float, content: object, *, anchor: str = "start", kind: str = "", turn: float = 0) -> Markup:
    """Text whose baseline starts, is centered ('middle') or ends at x, y; turned clockwise by `turn` degrees."""
    turned = f' transform="rotate({turn:g} {x:.1f} {y:.1f})"' if turn else ""
    return Markup('<text x="{}" y="{}" text-anchor="{}" class="{}"{}>{}</text>').format(
        f"{x:.1f}", f"{y:.1f}", anchor, kind, Markup(turned), content
    )


def line(x1: float, y1: float, x2: float, y2: float, *, kind: str) -> Markup:
    """A straight line."""
    return Markup(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{escape(kind)}"/>')


def rect(x: float, y: float, width: float, height: float, *, kind: str, opacity: float = 1.0) -> Markup:
    """A rectangle, its fill faded by `opacity`."""
    faded = f' fill-opacity="{opacity:.3f}"' if opacity < 1 else ""
    place = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}"'
    return Markup(f'<rect {place} class="{escape(kind)}"{faded}/>')


def dot(x: float, y: float, *, kind: str, radius: float = 4.5) -> Markup:
    """A filled circle."""
    return Markup(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{escape(kind)}"/>')


def path(points: Sequence[tuple[float, float]], *, kind: str) -> Markup:
    """A line through `points`."""
    return Markup('<polyline points="{}" class="{}"/>').format(" ".join(f"{x:.1f},{y:.1f}" for x, y in points), kind)


def figure(parts: Iterable[Markup], *, width: float, height: float, label: str) -> Markup:
    """A whole drawing; `label` is what a screen reader says."""
    return Markup('<svg viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}">{}</svg>').format(
        f"{width:.0f}", f"{height:.0f}", f"{width:.0f}", f"{height:.0f}", label, Markup("").join(parts)
    )


@dataclass(frozen=True)
class Scale:
    """Maps values from low..high to pixels start..end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = (self.high - self.low) or 1.0
        share = min(1.0, max(0.0, (value - self.low) / span))
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Round numbers that cover low..high: multiples of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low]
    rough = span / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def plain(value: float) -> str:
    """A tick's label: no trailing zeros, a true minus sign."""
    return f"{value:g}".replace("-", "−")
