"""What each stage does, in its own process: all is rebuilt from the run folder, so that any launcher can start it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from luthier.data.contract import Renderer
from luthier.data.shards import Shard
from luthier.data_report import DataReport
from luthier.errors import RunError
from luthier.launch.child import threads_each
from luthier.launch.offline import is_offline
from luthier.launch.ranks import is_first, ranks_here
from luthier.pipeline.progress import Progress
from luthier.pipeline.sinks import Feeds
from luthier.pipeline.start import model_source
from luthier.recipes import general_text
from luthier.records import LossSpike, ModelShape, RequestContract, StepEvent, TrainResult
from luthier.spec.recipe import Launch
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.events import EventLog
from luthier.store.files import sha256_json, write_atomic
from luthier.store.runs import RunFolder

if TYPE_CHECKING:
    from luthier.engines.ask import Asker
    from luthier.engines.protocol import Engine
    from luthier.train.dist import Ranks


@dataclass(frozen=True)
class Context:
    """What a stage works with."""

    run: RunFolder
    progress: Progress

    @cached_property
    def resolved(self) -> ResolvedRecipe:
        return ResolvedRecipe.read(self.run.resolved)

    @cached_property
    def shape(self) -> ModelShape:
        return ModelShape.read(self.run.shape)

    @cached_property
    def base(self) -> Path:
        """Folder of the base model."""
        from luthier.models.base import import_base

        return import_base(model_source(self.shape))

    @cached_property
    def contract(self) -> RequestContract:
        return RequestContract.read(self.run.contract)

    @cached_property
    def renderer(self) -> Renderer:
        return Renderer.open(self.run.contract, self.base / "tokenizer.json")

    def asker(self, engine: Engine) -> Asker:
        from luthier.engines.ask import Asker

        return Asker(self.contract, self.renderer, engine)

    @property
    def data_sha256(self) -> str:
        """Hash over shards and contract."""
        report = DataReport.read(self.run.data_report)
        return sha256_json([{name: split.sha256 for name, split in report.splits.items()}, report.contract_sha256])


def set_up_torch(threads: int) -> None:
    """Threads and deterministic kernels, before the first computation of a stage."""
    import torch

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # Deterministic mode otherwise writes NaN into every fresh tensor, to make reads of unset memory show.
    quiet_libraries()
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def quiet_libraries() -> None:
    """Progress bars and warnings of libraries would stand between ours; what they warn of is handled or dated here."""
    import warnings

    from transformers.utils import logging

    logging.disable_progress_bar()
    # peft 0.21 calls a name that transformers 5.23 renamed; drop when PEFT uses is_activation_checkpointing.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def base(context: Context) -> None:
    """Make the base folder: dequantise a GGUF file once."""
    from luthier.models.base import is_imported

    if not is_imported(model_source(context.shape)):
        quiet_libraries()
    _ = context.base


def prepare(context: Context) -> None:
    """Shards, contract, goldens and the data report."""
    from luthier.data.prepare import prepare as prepare_data
    from luthier.launch.crew import ProcessCrew
    from luthier.report.data import render_data

    context.run.data.mkdir(exist_ok=True)
    with ProcessCrew() as crew:
        report = prepare_data(context.resolved, tokenizer_folder=context.base, out=context.run.data, crew=crew)
    write_atomic(context.run.data / "report.html", render_data(report))


def train(context: Context) -> None:
    """Train, resuming from the newest checkpoint; with the other ranks, where whoever started this says so."""
    from luthier.train.dist import joined

    set_up_torch(threads_each(context.resolved.recipe.train.threads or 1, ranks_here()))
    with joined() as ranks:
        _train(context, ranks)


def spread(model: Any, launch: Launch, ranks: Ranks) -> None:
    """Give each rank the whole base, which it has, or its part of it."""
    from luthier.train import shard

    if launch.strategy == "fsdp":
        shard.shard(model, ranks)


class _Unheard(EventLog):
    """Of a rank that is not the first one: it has nothing to say that the first does not say."""

    def append(self, kind: str, /, **fields: object) -> None:
        """Nothing."""


def _train(context: Context, ranks: Ranks) -> None:
    from luthier.models.adapters import attach
    from luthier.models.base import load_base
    from luthier.models.forward import is_noisy
    from luthier.train import loop
    from luthier.train.methods import load_method
    from luthier.train.probe import probe

    recipe, run = context.resolved.recipe, context.run
    run.train.mkdir(exist_ok=True)
    model = attach(load_base(context.base), recipe.adapter, base_name=context.shape.name, seed=recipe.train.seed)
    inputs = loop.Inputs(
        Shard(run.data / "train.arrow"),
        model_sha256=context.shape.sha256,
        data_sha256=context.data_sha256,
        recipe_sha256=sha256_json(
            [part.model_dump(mode="json") for part in (recipe.method, recipe.adapter, recipe.train)]
        ),
    )
    spread(model, recipe.launch, ranks)
    events = EventLog(run.events) if ranks.is_first else _Unheard(run.events)
    if ranks.size > 1:
        events.append("ranks", ranks=ranks.size, here=ranks_here())
    method = load_method(recipe.method.type)
    ram_gib = recipe.objective.budget.ram_gib
    tried = probe(model, method, inputs.examples, recipe.train, ram_gib=ram_gib, ranks=ranks_here())
    if is_noisy(model):
        context.progress.say("dropout is on: every row is computed by itself, what rows share is not shared")
        events.append("sharing_off", reason="dropout")
    events.append("probe", tokens=tried.tokens, peak_memory_gib=tried.peak_memory_gib)

    def warn(line: str, fields: dict[str, object]) -> None:
        context.progress.say(line)
        events.append("sink_failed", **fields)

    def feeds_of_the_first() -> Feeds:
        if not ranks.is_first:
            return Feeds([])
        return Feeds.open(recipe, run=run.path, folder=run.train, offline=is_offline(), warn=warn)

    with feeds_of_the_first() as feeds:

        def watch(event: StepEvent | LossSpike, *, total_steps: int) -> None:
            events.append(event.kind, **event.model_dump(exclude={"kind"}))
            context.progress.step(event, total_steps=total_steps)
            feeds.send(event)

        result = loop.train(
            model,
            method,
            inputs,
            settings=recipe.train,
            method_name=recipe.method.type,
            validation=_validation(context),
            out=run.train,
            watch=watch,
            stop_asked=_stop_on_signal(),
        )
    if ranks.is_first:
        write_atomic(run.train_result, result.to_json())


def _validation(context: Context) -> Any:
    """The task's metric on the validation split, measured with the evaluation's own code; None without rows."""
    from luthier.engines.transformers import TransformersEngine
    from luthier.evals.score import validation_metrics
    from luthier.train.loop import Validation
    from luthier.train.shard import is_sharded

    examples = Shard(context.run.data / "validation.arrow")
    if not examples:
        return None
    metric = "macro_f1" if context.contract.labels else "perplexity"

    def measure(model: Any) -> dict[str, float]:
        # Ranks that each hold a part of the weights must all ask the same, in the same order.
        engine = TransformersEngine(model, at_once=1) if is_sharded(model) else TransformersEngine(model)
        return validation_metrics(context.asker(engine), examples)

    return Validation(measure, metric, higher_is_better=metric != "perplexity", tiebreak="perplexity")


def _stop_on_signal() -> Callable[[], bool]:
    asked = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    return lambda: bool(asked)


def evaluate(context: Context) -> None:
    """Base, tuned and baselines on the test split."""
    from luthier.engines.transformers import TransformersEngine
    from luthier.evals.evaluate import Material
    from luthier.evals.evaluate import evaluate as judge

    recipe, run = context.resolved.recipe, context.run
    set_up_torch(recipe.train.threads or 1)
    run.eval.mkdir(exist_ok=True)
    tuned = TransformersEngine.open(context.base, run.train / "adapter")
    material = Material(
        contract=context.contract,
        train=Shard(run.data / "train.arrow").originals(),
        validation=Shard(run.data / "validation.arrow"),
        test=Shard(run.data / "test.arrow"),
        general_text=general_text(),
        general_source="general-english.txt, written for this project",
        data_sha256=context.data_sha256,
        weights_sha256=TrainResult.read(run.train_result).weights_sha256,
    )
    report = judge(
        material,
        base=context.asker(tuned.without_adapter()),
        tuned=context.asker(tuned),
        settings=recipe.evaluate,
        seed=recipe.train.seed,
        out=run.eval,
        progress=context.progress,
    )
    write_atomic(run.eval_report, report.to_json())


def export(context: Context) -> None:
    """Every form that the recipe asks for, each held to parity; the index comes last."""
    from luthier.compress.export import export as export_one
    from luthier.data.goldens import read_goldens
    from luthier.engines.transformers import TransformersEngine

    recipe, run = context.resolved.recipe, context.run
    set_up_torch(recipe.train.threads or 1)
    run.artifacts_index.unlink(missing_ok=True)
    adapter = run.train / "adapter"
    reference = TransformersEngine.open(context.base, adapter)
    goldens, made = read_goldens(run.goldens), []
    forms = recipe.export or ()
    for number, kind in enumerate(forms):
        context.progress("exports", number, len(forms))
        made.append(
            export_one(
                kind,
                base=context.base,
                adapter=adapter,
                run=run.path,
                contract=context.contract,
                goldens=goldens,
                reference=reference,
                weights_sha256=TrainResult.read(run.train_result).weights_sha256,
            )
        )
    context.progress("exports", len(forms), len(forms))
    write_atomic(run.artifacts_index, json.dumps([one.model_dump(mode="json") for one in made], indent=2) + "\n")


WORK: dict[str, Callable[[Context], None]] = {
    "base": base,
    "prepare": prepare,
    "train": train,
    "evaluate": evaluate,
    "export": export,
}


def work(stage: str, run: RunFolder) -> None:
    """Do one stage of a run; the entry of `luthier _stage`.

    Raises:
        RunError: there is no such stage, or no such run.
    """
    if stage not in WORK:
        raise RunError(f"there is no stage {stage!r}", way_out=f"stages: {', '.join(WORK)}")
    ResolvedRecipe.read(run.resolved)  # before any folder is made
    with ExitStack() as stack:
        unseen = None if is_first() else stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
        WORK[stage](Context(run, stack.enter_context(Progress(unseen))))
