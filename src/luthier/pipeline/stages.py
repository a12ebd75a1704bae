"""What each stage does, in its own process: all is rebuilt from the run folder, so that any launcher can start it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from luthier.data.contract import Renderer
from luthier.data.shards import Shard
from luthier.data_report import DataReport
from luthier.errors import ModelError, RunError
from luthier.launch.offline import is_offline
from luthier.pipeline.progress import Progress
from luthier.pipeline.sinks import Feeds
from luthier.pipeline.start import model_source
from luthier.pipeline.trunk import clear_trunk, lay_trunk
from luthier.recipes import general_text
from luthier.records import LossSpike, ModelShape, RequestContract, StepEvent, TrainResult
from luthier.spec.recipe import Recipe, Train
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.events import EventLog
from luthier.store.files import sha256_json, write_atomic
from luthier.store.runs import RunFolder

if TYPE_CHECKING:
    from luthier.engines.ask import Asker
    from luthier.engines.protocol import Engine
    from luthier.train.loop import Inputs


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


def set_up_device(train: Train) -> str:
    """Where a stage computes, made ready.

    Raises:
        RunError: it is not there.
    """
    import torch

    set_up_torch(train.threads or 1)
    device = train.device or "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise RunError(
            f"train.device is 'cuda', and torch {torch.__version__} sees no such device",
            way_out="run where there is one, install torch's CUDA build, or set train.device to cpu",
        )
    return device


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
    """Train, resuming from the newest checkpoint."""
    from luthier.models.base import load_base
    from luthier.models.forward import is_noisy
    from luthier.train import loop
    from luthier.train.methods import load_method
    from luthier.train.probe import probe
    from luthier.train.trunk import OnTrunk

    recipe, run = context.resolved.recipe, context.run
    device = set_up_device(recipe.train)
    run.train.mkdir(exist_ok=True)
    model = with_adapter(load_base(context.base), recipe, base_name=context.shape.name).to(device)
    inputs = _inputs(context)
    events = EventLog(run.events)
    method = load_method(recipe.method.type)
    tried = probe(model, method, inputs.examples, recipe.train, ram_gib=recipe.objective.budget.ram_gib)
    if is_noisy(model):
        say_sharing_is_off(context.progress, events)
    events.append("probe", tokens=tried.tokens, peak_memory_gib=tried.peak_memory_gib)
    stop_asked = _stop_on_signal()
    trunk = lay_trunk(
        model,
        method,
        inputs,
        resolved=context.resolved,
        folder=run.train / "trunk",
        progress=context.progress,
        events=events,
        stop_asked=stop_asked,
    )

    def warn(line: str, fields: dict[str, object]) -> None:
        context.progress.say(line)
        events.append("sink_failed", **fields)

    with Feeds.open(recipe, run=run.path, folder=run.train, offline=is_offline(), warn=warn) as feeds:

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
            validation=_validation(context),
            out=run.train,
            watch=watch,
            stop_asked=stop_asked,
        )
    if trunk is not None:
        result = result.model_copy(update={"seconds": result.seconds + trunk.about.seconds})
    write_atomic(run.train_result, result.to_json())
    clear_trunk(run.train / "trunk")


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


def say_sharing_is_off(progress: Progress, events: EventLog) -> None:
    """To people and to the log; the same work takes longer then."""
    progress.say("dropout is on: every row is computed by itself, what rows share is not shared")
    events.append("sharing_off", reason="dropout")


def _validation(context: Context) -> Any:
    """The task's metric on the validation split, measured with the evaluation's own code; None without rows."""
    from luthier.engines.transformers import TransformersEngine
    from luthier.evals.score import validation_metrics
    from luthier.train.loop import Validation

    examples = Shard(context.run.data / "validation.arrow")
    if not examples:
        return None
    metric = "macro_f1" if context.contract.labels else "perplexity"

    def measure(model: Any) -> dict[str, float]:
        return validation_metrics(context.asker(TransformersEngine(model)), examples)

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
    device = set_up_device(recipe.train)
    run.eval.mkdir(exist_ok=True)
    tuned = TransformersEngine.open(context.base, run.train / "adapter", device=device)
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
    with Progress() as progress:
        WORK[stage](Context(run, progress))
