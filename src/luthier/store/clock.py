"""The one place that reads the clock; whoever writes a time takes a `Clock` as an argument."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The time now, in UTC."""
    return datetime.now(UTC)


def stamp(clock: Clock) -> str:
    """The clock's time in UTC as ISO 8601 with milliseconds, e.g. '2026-03-01T09:30:00.000+00:00'."""
    return clock().astimezone(UTC).isoformat(timespec="milliseconds")
