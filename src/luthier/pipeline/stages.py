"""What each stage does, in its own process: all is rebuilt from the run folder, so that any launcher can start it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.data.shards import Shard
from luthier.errors import DataError, RunError
from luthier.launch.ranks import is_first
from luthier.models.quantised import leave_out_unless_needed
from luthier.pipeline import probing
from luthier.pipeline.bases import model_source
from luthier.pipeline.behind import keep_off_learned
from luthier.pipeline.context import Context, quiet_libraries, set_up_device, set_up_torch
from luthier.pipeline.glossary import glossary_of
from luthier.pipeline.looks import take_look
from luthier.pipeline.merging import merge, parents_beside
from luthier.pipeline.parents import refuse_other_contracts
from luthier.pipeline.progress import Progress
from luthier.pipeline.pruning import prune, pruned_beside
from luthier.pipeline.scores import refuse_padded_ends
from luthier.pipeline.teacher import refuse_other_vocabulary
from luthier.pipeline.training import train
from luthier.pipeline.vocabulary import refuse_too_long_for_base
from luthier.recipes import general_text
from luthier.spec.plugins import METHODS
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.files import write_atomic
from luthier.store.runs import RunFolder
from luthier.train_records import TrainResult

if TYPE_CHECKING:
    from luthier.engines.transformers import TransformersEngine
    from luthier.evals.evaluate import Beside, GeneralLosses


def base(context: Context) -> None:
    """Make the base folder, and that of a teacher, which must have the same vocabulary: dequantise a GGUF file once."""
    from luthier.models.base import import_base, is_imported
    from luthier.models.quantised import quantise_base

    teachers = [part.teacher for part in context.resolved.parts if part.teacher is not None]
    for shape in (context.shape, *(teacher.shape for teacher in teachers)):
        if not is_imported(model_source(shape)):
            quiet_libraries()
        import_base(model_source(shape))
    if context.resolved.recipe.model.load_in_4bit:
        quiet_libraries()
        quantise_base(model_source(context.shape), context.original, context.resolved.recipe.model)
    for teacher in teachers:
        refuse_other_vocabulary(context.shape, teacher)


def prepare(context: Context) -> None:
    """Shards, contract, goldens and the data report."""
    from luthier.data.across import mark_seen_elsewhere
    from luthier.data.prepare import prepare as prepare_data
    from luthier.data_report import DataReport
    from luthier.launch.collector import collect_seldom
    from luthier.launch.crew import ProcessCrew
    from luthier.report.data import render_data

    collect_seldom()
    for name, task in zip(context.resolved.names, context.tasks, strict=True):
        task.run.data.mkdir(exist_ok=True)
        try:
            with ProcessCrew() as crew:
                prepare_data(task.resolved, tokenizer_folder=context.original, out=task.run.data, crew=crew)
        except DataError as error:
            if len(context.tasks) == 1:
                raise
            raise DataError(f"task {name}: {error.what}", way_out=error.way_out) from error
    if len(context.tasks) > 1 and not context.resolved.recipe.has_own_adapters:
        folders = [task.run.data for task in context.tasks]
        for name, rows in mark_seen_elsewhere(dict(zip(context.resolved.names, folders, strict=True))).items():
            if rows:
                context.progress.say(f"{name}: {rows} test rows are learned by another task; they do not count")
    if context.resolved.parents:
        refuse_other_contracts(context.resolved.parents, [task.contract for task in context.tasks])
    keep_off_learned(context)
    if context.resolved.recipe.model.new_tokens is not None:
        test = Shard(context.run.data / "test.arrow")
        refuse_too_long_for_base(test, context.shape, context.renderer.pieces)
        quiet_libraries()
        _ = context.base  # by one process, before several may train on it
    for task in context.tasks:
        _refuse_unverifiable(task)
        refuse_padded_ends(task)
        write_atomic(task.run.data / "report.html", render_data(DataReport.read(task.run.data_report)))


def _refuse_unverifiable(task: Context) -> None:
    """Rows whose own expected answer a reward cannot be asked about are found before anything is trained.

    Raises:
        DataError: there is one, by its line.
    """
    from luthier.data.shards import Shard
    from luthier.rewards import rewards_of

    reward = rewards_of(task.contract)
    if reward is None:
        return
    for split in ("train", "validation", "test"):
        for row in Shard(task.run.data / f"{split}.arrow"):
            try:
                reward(row.answer, row.answer)
            except DataError as error:
                raise DataError(f"line {row.line} ({split}): {error.what}", way_out=error.way_out) from error


def evaluate(context: Context) -> None:
    """Base, tuned and baselines on the test split of each task."""
    from luthier.engines.transformers import base_and_each, base_and_tuned
    from luthier.evals.evaluate import ask_general

    device = set_up_device(context.resolved.recipe.train)
    if context.resolved.recipe.has_own_adapters:
        adapters = {task.contract.name: task.run.tuned for task in context.tasks}
        untuned, tuned = base_and_each(context.original, adapters, under=context.base, device=device)
        for task in context.tasks:
            _evaluate(task, (untuned, tuned[task.contract.name]), None, ())
        return
    engines = base_and_tuned(context.original, context.run.tuned, under=context.base, device=device)

    general = None
    if len(context.tasks) > 1:
        base, learned = (context.tasks[0].asker(engine) for engine in engines)
        general = ask_general(base, learned, general_text(), context.progress)
    for task in context.tasks:
        beside = [*parents_beside(task, device=device), *pruned_beside(task, engines[1], device=device)]
        _evaluate(task, engines, general, beside)


def _evaluate(
    context: Context,
    engines: tuple[TransformersEngine, TransformersEngine],
    general: GeneralLosses | None,
    beside: Sequence[Beside],
) -> None:
    from luthier.data.canaries import planted_in
    from luthier.evals.evaluate import Material
    from luthier.evals.evaluate import evaluate as judge

    recipe, run = context.resolved.recipe, context.run
    run.eval.mkdir(exist_ok=True)
    weights = TrainResult.read(run.train_result).weights_sha256
    material = Material(
        contract=context.contract,
        train=Shard(run.data / "train.arrow").originals(),
        validation=Shard(run.data / "validation.arrow"),
        test=Shard(run.data / "test.arrow"),
        general_text=general_text(),
        general_source="general-english.txt, written for this project",
        data_sha256=context.data_sha256,
        weights_sha256=weights,
        reward=METHODS.get(recipe.method.type).reward,
        general=general,
        glossary=glossary_of(context.resolved),
        canaries=planted_in(run.data),
        look=take_look(context, weights),
    )
    report = judge(
        material,
        base=context.base_asker(engines[0]),
        tuned=context.asker(engines[1]),
        settings=recipe.evaluate,
        seed=recipe.train.seed,
        out=run.eval,
        progress=context.progress,
        beside=beside,
    )
    write_atomic(run.eval_report, report.to_json())


def export(context: Context) -> None:
    """Every form that the recipe asks for, each held to parity; the index comes last."""
    from luthier.compress.export import Asked
    from luthier.compress.export import export as export_one
    from luthier.data.goldens import read_goldens
    from luthier.engines.transformers import TransformersEngine, base_and_each
    from luthier.govern.origin import artifact_readme

    recipe, run = context.resolved.recipe, context.run
    set_up_torch(recipe.train.threads or 1)
    run.artifacts_index.unlink(missing_ok=True)
    if recipe.has_own_adapters:
        trained = {task.contract.name: task.run.tuned for task in context.tasks}
        references = base_and_each(context.base, trained)[1]
        wanted = [(kind, [task], task.contract.name) for kind in recipe.export or () for task in context.tasks]
    else:
        references = {"": TransformersEngine.open(context.base, run.tuned)}
        wanted = [(kind, list(context.tasks), "") for kind in recipe.export or ()]
    made = []
    for number, (kind, tasks, name) in enumerate(wanted):
        context.progress("exports", number, len(wanted))
        source = tasks[0] if name else context
        weights = TrainResult.read(source.run.train_result).weights_sha256
        made.append(
            export_one(
                kind,
                base=context.base,
                adapter=source.run.tuned,
                run=run.path,
                asked=[Asked(task.contract, read_goldens(task.run.goldens)) for task in tasks],
                reference=references[name],
                weights_sha256=weights,
                readme=artifact_readme(source.resolved, context.shape, weights_sha256=weights),
                task=name,
            )
        )
    context.progress("exports", len(wanted), len(wanted))
    write_atomic(run.artifacts_index, json.dumps([one.model_dump(mode="json") for one in made], indent=2) + "\n")


def train_or_merge(context: Context) -> None:
    """Where the weights of a run come from."""
    (train if context.resolved.recipe.merge is None else merge)(context)


WORK: dict[str, Callable[[Context], None]] = {
    "base": base,
    "prepare": prepare,
    "prune": prune,
    "train": train_or_merge,
    "evaluate": evaluate,
    "export": export,
    "probe": probing.work,
}


def work(stage: str, run: RunFolder) -> None:
    """Do one stage of a run; the entry of `luthier _stage`.

    Raises:
        RunError: there is no such stage, or no such run.
    """
    if stage not in WORK:
        raise RunError(f"there is no stage {stage!r}", way_out=f"stages: {', '.join(WORK)}")
    leave_out_unless_needed(ResolvedRecipe.read(run.resolved).recipe.model)  # before any folder is made
    with ExitStack() as stack:
        unseen = None if is_first() else stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
        WORK[stage](Context(run, stack.enter_context(Progress(unseen))))
