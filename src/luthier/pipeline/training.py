"""The stage that trains: the model that learns, what it learns from, and who is told."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

from luthier.data.shards import Shard
from luthier.errors import ModelError, Stopped
from luthier.launch.child import threads_each
from luthier.launch.offline import is_offline
from luthier.launch.ranks import ranks_here
from luthier.pipeline.context import Context, set_up_device
from luthier.pipeline.progress import Progress
from luthier.pipeline.reference import pair_validation, with_reference
from luthier.pipeline.sinks import Feeds
from luthier.pipeline.trunk import clear_trunk, lay_trunk
from luthier.records import LossSpike, StepEvent
from luthier.spec.recipe import Launch, Recipe
from luthier.store.events import EventLog
from luthier.store.files import sha256_json, write_atomic

if TYPE_CHECKING:
    from luthier.engines.ask import Asker
    from luthier.train.dist import Ranks
    from luthier.train.loop import Inputs


def train(context: Context) -> None:
    """Train, resuming from the newest checkpoint; with the other ranks, where whoever started this says so."""
    from luthier.train.dist import joined
    from luthier.train.memory import device_memory_errors

    settings = context.resolved.recipe.train
    device = set_up_device(settings, threads=threads_each(settings.threads or 1, ranks_here()))
    with joined() as ranks, device_memory_errors(settings):
        _train(context, ranks, device)


def _train(context: Context, ranks: Ranks, device: str) -> None:
    from luthier.models.base import load_base
    from luthier.models.forward import is_noisy
    from luthier.train import loop
    from luthier.train.methods import load_method
    from luthier.train.probe import probe
    from luthier.train.reference import on_trial
    from luthier.train.trunk import OnTrunk

    recipe, run, stop_asked = context.resolved.recipe, context.run, _stop_on_signal()
    run.train.mkdir(exist_ok=True)
    model = with_adapter(load_base(context.base), recipe, base_name=context.shape.name).to(device)
    spread(model, recipe.launch, ranks)
    inputs, loaded = _inputs(context), load_method(recipe.method, context.contract)
    events = EventLog(run.events) if ranks.is_first else _Unheard(run.events)
    if ranks.size > 1:
        events.append("ranks", ranks=ranks.size, here=ranks_here())
    ram_gib = recipe.objective.budget.ram_gib
    trial = on_trial(loaded, inputs.examples)
    tried = probe(model, trial, inputs.examples, recipe.train, ram_gib=ram_gib, ranks=ranks_here())
    if is_noisy(model):
        say_sharing_is_off(context.progress, events)
    events.append("probe", tokens=tried.tokens, peak_memory_gib=tried.peak_memory_gib)
    if ranks.any(stop_asked()):
        raise Stopped("stopped before the first step", way_out="run the same command again to go on")
    method = ranks.first_first(
        lambda: with_reference(
            model,
            loaded,
            inputs,
            recipe=recipe,
            folder=run.train / "reference",
            progress=context.progress,
            events=events,
            stop_asked=stop_asked,
        )
    )
    trunk = ranks.first_first(
        lambda: lay_trunk(
            model,
            method,
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
            context.progress.step(event, total_steps=total_steps)
            feeds.send(event)

        result = loop.train(
            model,
            method if trunk is None else OnTrunk(method, trunk),
            inputs,
            settings=recipe.train,
            method_name=recipe.method.type,
            validation=_validation(context, model),
            out=run.train,
            watch=watch,
            stop_asked=stop_asked,
        )
    if trunk is not None:
        result = result.model_copy(update={"seconds": result.seconds + trunk.about.seconds})
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


def _inputs(context: Context) -> Inputs:
    from luthier.train.loop import Inputs

    recipe = context.resolved.recipe
    sections = [part.model_dump(mode="json") for part in (recipe.method, recipe.adapter, recipe.train)]
    return Inputs(
        Shard(context.run.data / "train.arrow"),
        model_sha256=context.shape.sha256,
        data_sha256=context.data_sha256,
        recipe_sha256=sha256_json(sections),
    )


def with_adapter(base: Any, recipe: Recipe, *, base_name: str) -> Any:
    """What learns: the base, changed in place, with a fresh adapter, computed as the recipe asks for.

    Raises:
        ModelError: the base has no such modules, or its layers cannot be computed again going backward.
    """
    from luthier.models.adapters import attach, bare
    from luthier.models.half import halve

    model = attach(base, recipe.adapter, base_name=base_name, seed=recipe.train.seed)
    if recipe.train.bf16:
        halve(model)
    if recipe.train.gradient_checkpointing:
        if not bare(model).supports_gradient_checkpointing:
            raise ModelError(
                f"train.gradient_checkpointing is on, and {type(bare(model)).__name__} cannot compute layers again",
                way_out="set it to false and lower train.micro_batch_tokens, or choose another base",
            )
        bare(model).activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    return model


def spread(model: Any, launch: Launch, ranks: Ranks) -> None:
    """Give each rank the whole base, which it has, or its part of it."""
    from luthier.train import shard

    if launch.strategy == "fsdp":
        shard.shard(model, ranks)


class _Unheard(EventLog):
    """Of a rank that is not the first one: it has nothing to say that the first does not say."""

    def append(self, kind: str, /, **fields: object) -> None:
        """Nothing."""


def say_sharing_is_off(progress: Progress, events: EventLog) -> None:
    """To people and to the log; the same work takes longer then."""
    progress.say("dropout is on: every row is computed by itself, what rows share is not shared")
    events.append("sharing_off", reason="dropout")


def _validation(context: Context, model: Any) -> Any:
    """The task's metric on the validation split, measured with the evaluation's own code; None without rows.

    `model` has learned nothing yet.
    """
    from luthier.engines.transformers import TransformersEngine
    from luthier.evals.score import validation_metrics
    from luthier.train.loop import Validation
    from luthier.train.shard import is_sharded

    examples = Shard(context.run.data / "validation.arrow")
    if not examples:
        return None
    metric = "macro_f1" if context.contract.labels else "perplexity"

    def asker(model: Any) -> Asker:
        # Ranks that each hold a part of the weights must all ask the same, in the same order.
        return context.asker(TransformersEngine(model, at_once=1) if is_sharded(model) else TransformersEngine(model))

    if context.contract.task == "preference":
        return pair_validation(context.resolved.recipe, examples, asker, model)

    def measure(model: Any) -> dict[str, float]:
        return validation_metrics(asker(model), examples)

    return Validation(measure, metric, higher_is_better=metric != "perplexity", tiebreak="perplexity")


def _stop_on_signal() -> Callable[[], bool]:
    asked = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    return lambda: bool(asked)
