"""Where the events of training are shown besides the run's own log: one module a sink, named as its descriptor.

A sink runs in a process of its own (`luthier.pipeline.sink_worker`), so it may raise, crash or hang: training neither
waits for it nor shares memory, random state or threads with it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Protocol, cast

from luthier.records import Record
from luthier.spec.plugins import SINKS
from luthier.train_records import LossSpike, StepEvent


class Start(Record):
    """What a sink is told before the first event."""

    recipe: str
    """Its name."""
    run: str
    """Name of the run folder."""
    folder: str
    """Of the sink alone, inside the run folder; it is there."""
    offline: bool
    parameters: dict[str, str]
    """Key of the resolved recipe -> value."""


class Sink(Protocol):
    """Told of every event, in order. After a resume the steps since the checkpoint come again, with the same values."""

    def write(self, event: StepEvent | LossSpike) -> None: ...

    def close(self, *, finished: bool) -> None:
        """Nothing follows in this session; `finished` is false where training was stopped and may be resumed."""
        ...


def load_sink(name: str) -> Callable[[Start], Sink]:
    """The function `begin` of a sink's module.

    Raises:
        RecipeError: the name is not in the table.
    """
    SINKS.get(name)
    return cast(Callable[[Start], Sink], importlib.import_module(f"luthier.train.sinks.{name}").begin)


def numbers(event: StepEvent | LossSpike) -> dict[str, float]:
    """What a sink plots of an event, by names that every sink shares."""
    if event.kind == "spike":
        return {"train/loss_spike": event.loss}
    if event.kind == "validation":
        return {f"validation/{name}": value for name, value in event.metrics.items()}
    return {
        "train/loss": event.loss,
        "train/learning_rate": event.learning_rate,
        "train/grad_norm": event.grad_norm,
        "train/tokens_per_second": event.num_tokens / event.seconds if event.seconds else 0.0,
        "train/useful_share": event.useful_share,
        "train/memory_gib": event.memory_gib,
        "train/epoch": event.epoch,
    }
