"""The stage that trains: the model that learns, what it learns from, and who is told."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType, MappingProxyType
from typing import TYPE_CHECKING, Any

from luthier.data.shards import Example, Shard
from luthier.errors import ModelError, NonFinite, OutOfMemory, Stopped
from luthier.launch.child import PAUSE_AFTER, threads_each
from luthier.launch.offline import is_offline
from luthier.launch.ranks import ranks_here
from luthier.pipeline.context import Context, set_up_device
from luthier.pipeline.each_task import train_each
from luthier.pipeline.heads import head_labels, settling
from luthier.pipeline.order import learning
from luthier.pipeline.progress import Progress
from luthier.pipeline.reference import pair_measure, with_reference
from luthier.pipeline.sinks import Feeds
from luthier.pipeline.taught import with_teachers
from luthier.pipeline.trunk import clear_trunk, lay_trunk
from luthier.records import RequestContract
from luthier.spec.multi_task import MultiTask
from luthier.spec.plugins import METRICS
from luthier.spec.recipe import Recipe
from luthier.store.events import CANNOT_TRAIN, EventLog
from luthier.store.files import sha256_json, write_atomic
from luthier.train_records import LossSpike, StepEvent

if TYPE_CHECKING:
    from luthier.engines.protocol import Engine
    from luthier.train.dist import Ranks
    from luthier.train.inputs import Inputs
    from luthier.train.methods import Method


def train(context: Context) -> None:
    """Train, resuming from the newest checkpoint; with the other ranks, where whoever started this says so."""
    from luthier.train.dist import joined
    from luthier.train.memory import memory_errors

    settings = context.resolved.recipe.train
    device = set_up_device(settings, threads=threads_each(settings.threads or 1, ranks_here()))
    with joined() as ranks:
        try:
            with memory_errors(settings):
                if context.resolved.recipe.has_own_adapters:
                    train_each(context, ranks, lambda task: _train(task, ranks, device))
                else:
                    _train(context, ranks, device)
        except (NonFinite, OutOfMemory) as error:
            if ranks.is_first or isinstance(error, OutOfMemory):  # of a loss all ranks say the same
                EventLog(context.run.events).append(CANNOT_TRAIN, what=error.what)
            raise


def _train(context: Context, ranks: Ranks, device: str) -> None:
    from luthier.models.base import load_base
    from luthier.models.forward import is_noisy
    from luthier.train import loop
    from luthier.train.probe import probe
    from luthier.train.reference import on_trial
    from luthier.train.trunk import on_trunk

    recipe, run, stop_asked = context.resolved.recipe, context.run, _stop_on_signal()
    pause = Pause.asked(recipe.train.validations or 1)
    run.train.mkdir(exist_ok=True)
    model = with_adapter(load_base(context.base), recipe, base_name=context.shape.name, heads=head_labels(context))
    model.to(device)
    make_ready(model, recipe, ranks)
    loaded = with_teachers(open_inputs(context), context, model)
    events = EventLog(run.events) if ranks.is_first else _Unheard(run.events)
    if ranks.size > 1:
        events.append("ranks", ranks=ranks.size, here=ranks_here())
    ram_gib = recipe.objective.budget.ram_gib
    tried = probe(model, on_trial(loaded), recipe.train, ram_gib=ram_gib, ranks=ranks_here())
    if is_noisy(model):
        say_sharing_is_off(context.progress, events, "noise" if recipe.train.neftune_noise_alpha else "dropout")
    events.append("probe", tokens=tried.tokens, peak_memory_gib=tried.peak_memory_gib)
    if ranks.any(stop_asked()):
        raise Stopped("stopped before the first step", way_out="run the same command again to go on")
    inputs, before = ranks.first_first(
        lambda: with_reference(
            model,
            loaded,
            settings=recipe.train,
            folder=run.train / "reference",
            progress=context.progress,
            events=events,
            stop_asked=stop_asked,
        )
    )
    trunk = ranks.first_first(
        lambda: lay_trunk(
            model,
            inputs,
            resolved=context.resolved,
            folder=run.train / "trunk",
            progress=context.progress,
            events=events,
            stop_asked=stop_asked,
        )
    )
    with _feeds(context, ranks, events) as feeds:

        def watch(event: StepEvent | LossSpike, *, total_steps: int) -> None:
            events.append(event.kind, **event.model_dump(exclude={"kind"}))
            context.progress.step(event, total_steps=total_steps, task=run.path.name if run.trains_alone else "")
            feeds.send(event)
            pause.see(event, total_steps)

        try:
            result = loop.train(
                model,
                inputs if trunk is None else on_trunk(inputs, trunk),
                settings=recipe.train,
                method_name=", ".join(dict.fromkeys(part.recipe.method.type for part in context.resolved.parts)),
                validation=open_validation(context, model),
                out=run.train,
                watch=watch,
                stop_asked=lambda: stop_asked() or pause.reached,
            )
        except Stopped:
            if stop_asked() or not pause.reached:
                raise
            context.progress.say(f"paused after validation {pause.after} of {pause.validations}")
            return
    before += 0.0 if trunk is None else trunk.about.seconds
    result = result.model_copy(update={"seconds": result.seconds + before})
    if ranks.is_first:
        write_atomic(run.train_result, result.to_json())
        clear_trunk(run.train / "trunk")


def _feeds(context: Context, ranks: Ranks, events: EventLog) -> Feeds:
    """The sinks that the recipe names; the first rank feeds them for all."""

    def warn(line: str, fields: dict[str, object]) -> None:
        context.progress.say(line)
        events.append("sink_failed", **fields)

    if not ranks.is_first:
        return Feeds([])
    run = context.run
    return Feeds.open(context.resolved.recipe, run=run.path, folder=run.train, offline=is_offline(), warn=warn)


def open_inputs(context: Context) -> Inputs:
    """The rows that are learned, and what they were made from."""
    from luthier.train.inputs import Inputs, TaskRows
    from luthier.train.methods import load_method

    resolved = context.resolved
    tasks = [
        TaskRows(
            task.contract.name,
            _reading(load_method(task.resolved.recipe.method, task.contract), task),
            Shard(task.run.data / "train.arrow"),
            weight=task.resolved.recipe.entry.weight,
        )
        for task in context.tasks
    ]
    return Inputs(
        tuple(tasks),
        model_sha256=context.base_sha256,
        data_sha256=context.data_sha256,
        recipe_sha256=sha256_json(learning(resolved)),
        mix=resolved.recipe.multi_task or MultiTask(),
    )


def with_adapter(base: Any, recipe: Recipe, *, base_name: str, heads: Mapping[str, int] = MappingProxyType({})) -> Any:
    """What learns: the base, changed in place, its weights or a fresh adapter, computed as the recipe asks for.

    With `heads` it has classification heads too, task -> for how many labels (see `head_labels`).

    Raises:
        ModelError: the base has no such modules, its layers cannot be computed again going backward, or its family has
            no such head.
    """
    from luthier.models.adapters import attach, bare
    from luthier.models.classifier import put_head
    from luthier.models.half import halve
    from luthier.models.neftune import add_noise

    model = attach(base, recipe.adapter, base_name=base_name, seed=recipe.train.seed)
    for task, labels in heads.items():
        put_head(model, labels, task=task, beside_words=len(heads) < len(recipe.data.train))
    if recipe.train.bf16:
        halve(model)
    if recipe.train.neftune_noise_alpha is not None:
        add_noise(model, recipe.train.neftune_noise_alpha)
    if recipe.train.gradient_checkpointing:
        if not bare(model).supports_gradient_checkpointing:
            raise ModelError(
                f"train.gradient_checkpointing is on, and {type(bare(model)).__name__} cannot compute layers again",
                way_out="set it to false and lower train.micro_batch_tokens, or choose another base",
            )
        bare(model).activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    return model


def make_ready(model: Any, recipe: Recipe, ranks: Ranks) -> None:
    """Give each rank the whole base, which it has, or its part of it; compile its layers where the recipe says so."""
    from luthier.models import compiled
    from luthier.train import shard

    if recipe.launch.strategy == "fsdp":
        shard.shard(model, ranks)
    if recipe.train.torch_compile:
        compiled.compile_layers(model)


class _Unheard(EventLog):
    """Of a rank that is not the first one: it has nothing to say that the first does not say."""

    def append(self, kind: str, /, **fields: object) -> None:
        """Nothing."""


def say_sharing_is_off(progress: Progress, events: EventLog, reason: str) -> None:
    """To people and to the log; the same work takes longer then."""
    progress.say(f"{reason} is on: every row is computed by itself, what rows share is not shared")
    events.append("sharing_off", reason=reason)


def _reading(method: Method, task: Context) -> Method:
    """What the model writes is read as the server reads it."""
    from luthier.train.methods.grpo import Verified

    return method.reading(task.renderer.decode) if isinstance(method, Verified) else method


def judged_by(contract: RequestContract) -> tuple[str, str]:
    """The metric on validation rows that weights are chosen by, and what decides between equal values."""
    if contract.task == "preference":
        return "preference_accuracy", "preference_loss"
    if contract.rewards:
        return "reward", "perplexity"
    if contract.tags:
        return "micro_f1", "binary_log_loss" if contract.answered_by == "head" else "perplexity"
    if contract.scale is not None:
        return "mae", "rmse"
    metric = "quadratic_kappa" if contract.label_order else "macro_f1" if contract.labels else "perplexity"
    return metric, "log_loss" if contract.answered_by == "head" else "perplexity"


def open_validation(context: Context, model: Any, *, most: int | None = None) -> Any:
    """Each task's metric on its validation split, or its first rows, measured with the evaluation's own code; None
    without rows.

    `model` has learned nothing yet.
    """
    from luthier.engines.transformers import TransformersEngine
    from luthier.evals.score import validation_metrics
    from luthier.models.forward import in_evaluation
    from luthier.train.shard import is_sharded
    from luthier.train.validation import Judged, Validation

    def measure_of(task: Context, examples: Sequence[Example]) -> Callable[[Engine], dict[str, float]]:
        return lambda asking: validation_metrics(task.asker(asking), examples)

    def engine(model: Any) -> Engine:
        # Ranks that each hold a part of the weights must all ask the same, in the same order.
        return TransformersEngine(model, at_once=1) if is_sharded(model) else TransformersEngine(model)

    several = len(context.tasks) > 1
    asked: list[tuple[str, Callable[[Engine], dict[str, float]]]] = []
    rows_of: dict[str, Sequence[Example]] = {}
    judged = []
    for task in context.tasks:
        rows = Shard(task.run.data / "validation.arrow")
        examples = rows if most is None else [rows[place] for place in range(min(most, len(rows)))]
        if not examples:
            if several:
                context.progress.say(
                    f"task {task.contract.name} has no validation rows: it has no say in which weights are kept"
                )
            continue
        name = task.contract.name
        prefix = f"{name}." if several else ""
        metric, tiebreak = judged_by(task.contract)
        rows_of[name] = examples
        if task.contract.task == "preference":
            with in_evaluation(model):
                asked.append((prefix, pair_measure(task, examples, engine(model))))
        else:
            asked.append((prefix, measure_of(task, examples)))
        judged.append(
            Judged(
                name,
                f"{prefix}{metric}",
                higher_is_better=METRICS.get(metric).higher_is_better,
                tiebreak=f"{prefix}{tiebreak}",
                weight=task.resolved.recipe.entry.weight,
                unit=task.contract.scale.spread if task.contract.scale is not None else 1.0,
            )
        )

    def measure(model: Any) -> dict[str, float]:
        asking = engine(model)
        return {f"{prefix}{metric}": value for prefix, ask in asked for metric, value in ask(asking).items()}

    settle = settling(context, rows_of)
    unjudged = len(context.tasks) - len(judged)
    return Validation(measure, tuple(judged), settle, unjudged) if judged else None


@dataclass
class Pause:
    """Where training is to end with a checkpoint before it is done, asked by whoever started this process."""

    after: int
    """Number of a validation, from 1; 0 for none."""
    validations: int
    reached: bool = False

    @classmethod
    def asked(cls, validations: int) -> Pause:
        return cls(int(os.environ.get(PAUSE_AFTER, "0")), validations)

    def see(self, event: StepEvent | LossSpike, total_steps: int) -> None:
        """A validation at or beyond that one was the last."""
        if self.after and event.kind == "validation":
            self.reached = event.step >= round(total_steps * self.after / self.validations)


def _stop_on_signal() -> Callable[[], bool]:
    asked = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    return lambda: bool(asked)
