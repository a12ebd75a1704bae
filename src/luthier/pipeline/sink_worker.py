"""The process of one sink: events come in as lines of JSON, and one line goes out at its end or failure.

Whatever the sink raises ends this process, and its last word is the step and the error. Nothing is caught, so nothing
is caught too widely; whoever feeds it (`luthier.pipeline.sinks`) sees the end and goes on without it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType

from luthier.data.privacy import scrub
from luthier.launch.offline import guard, is_offline
from luthier.store.runs import lock_folder
from luthier.train.sinks import Sink, Start, load_sink
from luthier.train_records import LossSpike, StepEvent

_ALONE_SECONDS = 60
"""How long it may go on when nobody waits for it any longer."""

_WAIT_SECONDS = 2 * _ALONE_SECONDS + 5
"""How long it waits for its folder: the sink of a trainer that was killed may still be at work there, on what its pipe
held and then on its end."""

DONE = b"done\n"
"""The last word of a sink that has everything; an exit code of 0 alone may be a library that left."""


def serve(
    begin: Callable[[Start], Sink], lines: Iterable[bytes], report: int, *, wait_seconds: float = _WAIT_SECONDS
) -> None:
    """Open the sink, pass it every event, close it; its folder is its own meanwhile.

    Args:
        begin: opens the sink.
        lines: a Start, then events, then {"kind": "end"} where training came to its end.
        report: file descriptor that is told of an error, or of the end.
        wait_seconds: for another process that is at work in the folder.

    Raises:
        RunError: it is at work there still.
    """
    step, finished = 0, False

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        said = _shown(f"{kind.__name__}: {error}".splitlines()[0])[:300]
        sys.stderr.write(_shown("".join(traceback.format_exception(kind, error, trace))))
        os.write(report, json.dumps({"step": step, "error": said}).encode() + b"\n")

    sys.excepthook = tell
    rest = iter(lines)
    start = Start.model_validate_json(next(rest))
    with lock_folder(Path(start.folder), wait_seconds=wait_seconds):
        sink = begin(start)
        for line in rest:
            fields = json.loads(line)
            if fields["kind"] == "end":
                finished = True
                continue
            event = (LossSpike if fields["kind"] == "spike" else StepEvent).model_validate_json(line)
            step = event.step
            sink.write(event)
        signal.alarm(_ALONE_SECONDS)
        sink.close(finished=finished)
    os.write(report, DONE)


def _shown(text: str) -> str:
    """Without secrets, personal data, and names and passwords in addresses."""
    return scrub(re.sub(r"://[^/@\s]+@", "://", text), personal=True, secrets=True)


def _end_when_alone() -> None:
    """A sink that hangs does not see that its input has ended; a thread looks whether the parent is still there."""
    parent = os.getppid()

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        signal.alarm(_ALONE_SECONDS)

    threading.Thread(target=look, daemon=True, name="end-when-alone").start()


def main(begin: Callable[[Start], Sink], *, wait_seconds: float = _WAIT_SECONDS) -> None:
    """Serve on this process's standard input; its standard output carries the report alone."""
    report = os.dup(1)
    os.dup2(2, 1)  # what a library prints goes to the log
    os.nice(10)  # training comes first
    _end_when_alone()
    if is_offline():
        guard()
    serve(begin, sys.stdin.buffer, report, wait_seconds=wait_seconds)


if __name__ == "__main__":
    main(load_sink(sys.argv[1]))
