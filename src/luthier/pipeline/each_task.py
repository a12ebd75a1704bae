"""Training where each task has an adapter of its own: task after task over the same base, each as if it were alone.

No gradient of a task can reach the adapter of another, so nothing is gained by mixing their rows in a step, and nothing
is lost by taking the tasks in turn: each has its own epochs, rates, optimizer, validations and best step, and ends with
the bits that a run of that task alone ends with. One base and one optimizer are in memory at a time. The base is opened
anew for each task, since an adapter may begin by taking a part out of it.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from luthier.pipeline.context import Context
from luthier.pipeline.order import learning
from luthier.records import Record
from luthier.store.files import sha256_json, write_atomic
from luthier.store.runs import weights_sha256
from luthier.train_records import TrainResult

if TYPE_CHECKING:
    from luthier.train.dist import Ranks

FINISHED = "finished.json"
"""In the folder of a task's training, once that is done."""


class Finished(Record):
    """A task's training that came to its end."""

    key: str
    """Hash of recipe, data and base."""
    weights_sha256: str


def train_each(context: Context, ranks: Ranks, train_one: Callable[[Context], None]) -> None:
    """Train the tasks in the order of the recipe, those that are done already left out; then write what all come to.

    Args:
        context: of the run.
        ranks: of this training.
        train_one: trains a task to its end, from its newest checkpoint.

    Raises:
        Whatever `train_one` raises.
    """
    for name, task in zip(context.resolved.names, context.tasks, strict=True):
        if ranks.told("done" if ranks.is_first and _is_done(task) else ""):
            context.progress.say(f"task {name} is trained already")
            continue
        context.progress.say(f"task {name}:")
        train_one(task)
        gc.collect()  # modules and their hooks hold each other; the next base takes their place
        if ranks.is_first:
            done = Finished(key=_key(task), weights_sha256=weights_sha256(task.run.tuned))
            write_atomic(task.run.train / FINISHED, done.to_json())
    if ranks.is_first:
        results = {
            name: TrainResult.read(task.run.train_result)
            for name, task in zip(context.resolved.names, context.tasks, strict=True)
        }
        context.run.train.mkdir(exist_ok=True)
        write_atomic(context.run.train_result, together(results, data_sha256=context.data_sha256).to_json())


def _key(task: Context) -> str:
    return sha256_json([learning(task.resolved), task.data_sha256, task.base_sha256, task.shape.name])


def _is_done(task: Context) -> bool:
    """Whether this very training is done, and what it learned is still there."""
    path = task.run.train / FINISHED
    if not path.is_file() or not task.run.train_result.is_file() or not task.run.tuned.is_dir():
        return False
    done = Finished.read(path)
    return done.key == _key(task) and done.weights_sha256 == weights_sha256(task.run.tuned)


def together(results: Mapping[str, TrainResult], *, data_sha256: str) -> TrainResult:
    """What the trainings of all tasks come to; the course of each stands in its own result.

    Args:
        results: task -> its own.
        data_sha256: over the shards and contracts of all.
    """
    parts = list(results.values())
    return TrainResult(
        method=", ".join(dict.fromkeys(one.method for one in parts)),
        steps=sum(one.steps for one in parts),
        best_step=0,
        best_metric="",
        best_value=math.nan,
        stopped_early=all(one.stopped_early for one in parts),
        stopped_tasks=tuple(name for name, one in results.items() if one.stopped_early),
        trained_tokens=sum(one.trained_tokens for one in parts),
        supervised_tokens=sum(one.supervised_tokens for one in parts),
        trainable_parameters=sum(one.trainable_parameters for one in parts),
        seconds=sum(one.seconds for one in parts),
        peak_memory_gib=max(one.peak_memory_gib for one in parts),
        resumed_from=(),
        history=(),
        weights_sha256=sha256_json({name: one.weights_sha256 for name, one in results.items()}),
        data_sha256=data_sha256,
        model_sha256=parts[0].model_sha256,
        threads=parts[0].threads,
        ranks=parts[0].ranks,
        calibrations={name: one.calibration for name, one in results.items() if one.calibration is not None},
    )
