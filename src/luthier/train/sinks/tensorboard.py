"""TensorBoard event files, written with the package `tensorboard` alone: no TensorFlow, no torch."""

from __future__ import annotations

import time
from typing import Any

from luthier.train.sinks import Start, numbers
from luthier.train_records import LossSpike, StepEvent


class EventFiles:
    """One event file a session."""

    def __init__(self, folder: str) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer: Any = EventFileWriter(folder)
        self._is_new = True

    def write(self, event: StepEvent | LossSpike) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._is_new:
            # Tells readers to forget what an earlier session wrote from this step on: it is written again.
            began = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=event.step, session_log=began))
            self._is_new = False
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers(event).items()]
        self._writer.add_event(Event(wall_time=time.time(), step=event.step, summary=Summary(value=values)))
        self._writer.flush()

    def close(self, *, finished: bool) -> None:
        self._writer.close()


def begin(start: Start) -> EventFiles:
    """A new event file beside those of earlier sessions."""
    return EventFiles(start.folder)
