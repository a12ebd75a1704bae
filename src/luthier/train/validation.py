"""Validation while training: which weights are the best so far, and which tasks no longer get better."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.train.checkpoint import LoopState
from luthier.train_records import Calibration


@dataclass(frozen=True)
class Judged:
    """By what a task is judged."""

    task: str
    metric: str
    """A key of what is measured."""
    higher_is_better: bool
    tiebreak: str
    """A loss-like key (lower is better) that decides between equal values."""
    weight: float = 1.0
    unit: float = 1.0
    """What a value that is better the lower it is counts in: of numbers the spread of the training rows'."""

    def of(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        """(value, tiebreak), higher is better for both."""
        value = metrics[self.metric]
        return (value if self.higher_is_better else -value), -metrics[self.tiebreak]

    def quality(self, metrics: Mapping[str, float]) -> float:
        """Between 0 and 1: a share as it is, 1 / (1 + value / unit) of what is better the lower it is."""
        value = metrics[self.metric]
        return value if self.higher_is_better else 1.0 / (1.0 + value / self.unit)


@dataclass(frozen=True)
class Validation:
    """How the metrics of the tasks are measured while training (wired by the pipeline with the evaluation's own code).

    Of one task the weights with the best value of its metric are kept, of several those with the highest mean of
    `Judged.quality`, weighted as the tasks are.
    """

    measure: Callable[[Any], dict[str, float]]
    judged: tuple[Judged, ...]
    settle: Callable[[Any], dict[str, Calibration]] | None = None
    """Told of the weights that are kept, before they are written, which it may calibrate; same weights, same result.

    It says what was done for each task.
    """
    unjudged: int = 0
    """Tasks without validation rows: they never stop, so training goes on for them."""

    @property
    def metric(self) -> str:
        """By what weights are chosen, in words."""
        names = [judged.metric for judged in self.judged]
        return names[0] if len(names) == 1 else f"mean of {', '.join(names)}"

    @property
    def sign(self) -> float:
        """What turns the value of `value` into that of the metric."""
        return -1.0 if len(self.judged) == 1 and not self.judged[0].higher_is_better else 1.0

    def value(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        """(value, tiebreak) of all tasks together, higher is better for both."""
        if len(self.judged) == 1:
            return self.judged[0].of(metrics)
        total = sum(judged.weight for judged in self.judged)
        qualities = (judged.weight * judged.quality(metrics) for judged in self.judged)
        return sum(qualities) / total, -sum(metrics[judged.tiebreak] for judged in self.judged)

    def judge(self, state: LoopState, metrics: Mapping[str, float], *, patience: int) -> LoopState:
        """The state with what these metrics change: the best so far, and the tasks that have stopped.

        A task stops after `patience` validations without a better value of its own; training stops when all have.
        """
        best = {}
        value, tiebreak = self.value(metrics)
        if (value, tiebreak) > (state.best_value, state.best_tiebreak):
            best = {"best_step": state.step, "best_value": value, "best_tiebreak": tiebreak}
        reached, worse = dict(state.reached), dict(state.worse_in_a_row)
        for judged in self.judged:
            found = judged.of(metrics)
            if found > tuple(reached.get(judged.task, (float("-inf"), float("-inf")))):
                reached[judged.task], worse[judged.task] = found, 0
            else:
                worse[judged.task] = worse.get(judged.task, 0) + 1
        stopped = stopped_of(self.judged, worse, patience)
        return state.model_copy(
            update={
                **best,
                "reached": reached,
                "worse_in_a_row": worse,
                "stopped_tasks": stopped,
                "stopped_early": len(stopped) == len(self.judged) + self.unjudged,
            }
        )


def stopped_of(judged: Sequence[Judged], worse: Mapping[str, int], patience: int) -> tuple[str, ...]:
    """Tasks whose patience is used up, in their order."""
    return tuple(one.task for one in judged if worse.get(one.task, 0) >= patience)
