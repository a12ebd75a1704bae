"""The event log of a run: one JSON object a line, appended whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from luthier.store.clock import Clock, stamp, utc_now
from luthier.store.files import disk_errors, write_all

CANNOT_TRAIN = "cannot_train"
"""Kind of the event that says why no model can be trained with such settings."""


class EventLog:
    """Appends to `path`; several processes may do so at once."""

    def __init__(self, path: Path, *, clock: Clock = utc_now) -> None:
        self.path = path
        self._clock = clock

    def append(self, kind: str, /, **fields: object) -> None:
        """Add one event with its UTC time.

        Raises:
            DiskFull: no space.
            RunError: the file may not be written.
        """
        assert not fields.keys() & {"time", "kind"}, f"event {kind!r} brings its own time or kind"
        line = json.dumps({"time": stamp(self._clock), "kind": kind, **fields}) + "\n"
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                size = os.fstat(fd).st_size
                if size and os.pread(fd, 1, size - 1) != b"\n":
                    line = "\n" + line  # closes a line that a kill or a full disk tore, which would swallow this one
                write_all(fd, line.encode())
            finally:
                os.close(fd)

    @staticmethod
    def read(path: Path) -> list[dict[str, Any]]:
        """The events of `path`, oldest first; torn lines are left out, a missing file has none."""
        if not path.exists():
            return []
        events = []
        for line in path.read_bytes().splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                events.append(event)
        return events
