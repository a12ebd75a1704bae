"""Numbers as people read them, for the terminal and the report."""

from __future__ import annotations

import math

from luthier.train_records import LossSpike

MOST_LINES = 16
"""Lines of the rows of a step that are named."""


def duration(seconds: float) -> str:
    """'0.4 s', '12 s', '3 min 20 s', '2 h 05 min'."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def memory(gib: float) -> str:
    """'2.4 GiB', '120 MiB'."""
    return f"{gib:.1f} GiB" if gib >= 0.95 else f"{gib * 1024:.0f} MiB"


def size(num_bytes: int) -> str:
    """'98.1 MB', '512 kB': decimal, as disks and downloads are counted."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes} bytes"


def count(number: int) -> str:
    """'4,884,480'; groups of three digits."""
    return f"{number:,}"


def millions(number: int) -> str:
    """'134.5 M', '0.4 M', '1.7 G' for parameters."""
    return f"{number / 1e9:.1f} G" if number >= 1e9 else f"{number / 1e6:.1f} M"


def price(money: float, currency: str | None) -> str:
    """'1.20 EUR', '0.0042 EUR': at least two digits that count."""
    number = f"{money:,.2f}" if money >= 0.1 or money == 0 else f"{money:.2g}"
    return f"{number} {currency}" if currency else number


def points(difference: float) -> str:
    """'8.3 points': a difference of shares in percentage points."""
    return f"{100 * difference:.1f} points"


def p_value(p: float) -> str:
    """'p < 0.001', 'p = 0.04', '' where it is not defined."""
    if math.isnan(p):
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}" if p < 0.1 else f"p = {p:.2f}"


def loss_spike(spike: LossSpike) -> str:
    """'loss spike at step 31: 6.21, usual 1.98 to 2.61; its rows stand on lines 3, 9, 12'."""
    lines = ", ".join(map(str, spike.lines[:MOST_LINES]))
    more = len(spike.lines) - MOST_LINES
    usual = f"{spike.usual_low:.3g} to {spike.usual_high:.3g}"
    said = f"loss spike at step {spike.step}: {spike.loss:.3g}, usual {usual}; its rows stand on lines {lines}"
    return f"{said} and {more} more" if more > 0 else said
