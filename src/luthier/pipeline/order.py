"""The sequence of the stages, and what decides whether one must run again. The only place that knows either."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from luthier import __version__
from luthier.data.replay import replay_of
from luthier.data_report import DataReport
from luthier.models.base import is_imported
from luthier.models.quantised import is_quantised
from luthier.models.vocabulary import is_grown
from luthier.pipeline.bases import model_source
from luthier.pipeline.vocabulary import tokenizer_of
from luthier.prune_records import PruneResult
from luthier.recipes import general_text
from luthier.records import ModelShape
from luthier.spec.plugins import METHODS
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.files import sha256_file, sha256_json
from luthier.store.runs import RunFolder
from luthier.train_records import TrainResult


@dataclass(frozen=True)
class Stage:
    """A step that runs in a child process."""

    name: str
    doing: str
    """What is going on, for people."""
    inputs: Callable[[RunFolder, ResolvedRecipe], object]
    """Everything that decides the outputs, as JSON."""
    outputs: Callable[[RunFolder, ResolvedRecipe], list[Path]]
    less_memory: str
    """What would make it need less memory, for people."""
    ready: Callable[[RunFolder], bool] = lambda run: True
    """Whether what it leaves outside the run folder is there."""
    applies: Callable[[ResolvedRecipe], bool] = lambda resolved: True
    """Whether the recipe asks for it."""

    def key(self, run: RunFolder, resolved: ResolvedRecipe) -> str:
        """Hash of the inputs; a stage whose key has not changed is not run again."""
        return sha256_json([self.name, __version__, self.inputs(run, resolved)])


def _base_inputs(run: RunFolder, resolved: ResolvedRecipe) -> object:
    teachers = [part.teacher.sha256 for part in resolved.parts if part.teacher is not None]
    beside = [*teachers, *resolved.recipe.model.held]
    return [resolved.model_sha256, *beside] if beside else resolved.model_sha256


def _base_is_ready(run: RunFolder) -> bool:
    resolved, source = ResolvedRecipe.read(run.resolved), model_source(ModelShape.read(run.shape))
    model, teachers = resolved.recipe.model, [part.teacher for part in resolved.parts if part.teacher is not None]
    held = is_quantised(source, model) if model.load_in_4bit else True
    return held and all(is_imported(one) for one in (source, *(model_source(teacher.shape) for teacher in teachers)))


def _grown_is_ready(run: RunFolder) -> bool:
    """Where tokens are new, whether the base with them is still there, once they are known; see `stages.prepare`."""
    if ResolvedRecipe.read(run.resolved).recipe.model.new_tokens is None:
        return True
    tokenizer = tokenizer_of(run)
    return not tokenizer.is_dir() or is_grown(model_source(ModelShape.read(run.shape)), tokenizer)


def _prepare_inputs(run: RunFolder, resolved: ResolvedRecipe) -> object:
    return [_prepare_inputs_of_task(part) for part in resolved.parts]


def _prepare_inputs_of_task(resolved: ResolvedRecipe) -> object:
    recipe = resolved.recipe
    threads = recipe.train.threads if recipe.data.by_meaning else None  # they change the last bits of embeddings
    data = recipe.data.model_dump(mode="json")
    by_head = METHODS.get(recipe.method.type).has_head
    asked: list[object] = [recipe.method.model_dump(mode="json")] if by_head else []  # it stands in the contract
    asked += [recipe.method.answer_tokens] if recipe.method.answer_tokens else []  # so does this
    replay = replay_of(recipe)
    return [
        resolved.model_sha256,
        resolved.data_sha256,
        data,
        recipe.train.max_length,
        threads,
        *asked,
        *([[parent.identity() for parent in resolved.parents]] if resolved.parents else []),
        *([replay.model_dump(mode="json")] if replay else []),
        *([recipe.model.new_tokens.model_dump(mode="json")] if recipe.model.new_tokens is not None else []),
        *([resolved.teacher.sha256] if resolved.teacher is not None else []),  # test rows that it has seen are marked
    ]


def tokens(run: RunFolder, resolved: ResolvedRecipe) -> object:
    """Hashes of the shards and the contract of every task."""
    reports = [DataReport.read(task.data_report) for task in run.tasks(resolved.names)]
    return [
        [report.name, {name: split.sha256 for name, split in report.splits.items()}, report.contract_sha256]
        for report in reports
    ]


def learning(resolved: ResolvedRecipe) -> list[object]:
    """The sections that say how the model learns."""
    recipe = resolved.recipe
    tasks = [[part.recipe.method.model_dump(mode="json"), part.recipe.entry.weight] for part in resolved.parts]
    mix = recipe.multi_task.model_dump(mode="json") if recipe.multi_task is not None else None
    sections: list[object] = [tasks, mix, recipe.adapter.model_dump(mode="json"), recipe.train.model_dump(mode="json")]
    sections += [part.teacher.sha256 for part in resolved.parts if part.teacher is not None]
    sections += resolved.recipe.model.held
    sections += [learning(part) for part in resolved.parts] if recipe.has_own_adapters else []
    sections += [recipe.prune.model_dump(mode="json")] if recipe.prune is not None else []
    if recipe.merge is None:
        return sections
    return [*sections, recipe.merge.model_dump(mode="json"), [parent.identity() for parent in resolved.parents]]


def _prune_inputs(run: RunFolder, resolved: ResolvedRecipe) -> object:
    prune, train, seed = resolved.recipe.prune, resolved.recipe.train, resolved.recipe.data.split.seed
    assert prune is not None, "the stage applies where something is pruned"
    section = prune.model_dump(mode="json")
    return [resolved.model_sha256, tokens(run, resolved), section, seed, train.threads, train.device]


def _base_of(run: RunFolder, resolved: ResolvedRecipe) -> list[str]:
    """Hashes of what is trained on."""
    pruned = [PruneResult.read(run.pruned_result).weights_sha256] if resolved.recipe.prune is not None else []
    return [resolved.model_sha256, *pruned]


def _train_inputs(run: RunFolder, resolved: ResolvedRecipe) -> object:
    return [*_base_of(run, resolved), tokens(run, resolved), learning(resolved), ModelShape.read(run.shape).name]


def _trained(run: RunFolder, resolved: ResolvedRecipe) -> list[Path]:
    """What was learned, by all tasks together or by each."""
    if not resolved.recipe.has_own_adapters:
        return [run.tuned, run.train_result]
    own = [path for task in run.tasks(resolved.names) for path in (task.tuned, task.train_result)]
    return [*own, run.train_result]


def _evaluate_inputs(run: RunFolder, resolved: ResolvedRecipe) -> object:
    recipe = resolved.recipe
    return [
        TrainResult.read(run.train_result).weights_sha256,
        *_base_of(run, resolved),
        tokens(run, resolved),
        recipe.train.seed,
        recipe.train.threads,
        recipe.train.device,
        [part.recipe.evaluate.model_dump(mode="json") for part in resolved.parts],
        sha256_json(general_text()),
        [part.data_sha256.get("evaluate.glossary") for part in resolved.parts],
        [parent.identity() for parent in resolved.parents],
    ]


def _export_inputs(run: RunFolder, resolved: ResolvedRecipe) -> object:
    return [
        TrainResult.read(run.train_result).weights_sha256,
        *_base_of(run, resolved),
        resolved.recipe.export,
        [[sha256_file(task.goldens), sha256_file(task.contract)] for task in run.tasks(resolved.names)],
    ]


ORDER: tuple[Stage, ...] = (
    Stage(
        "base",
        "reading the base model",
        _base_inputs,
        lambda run, resolved: [],
        "choose a smaller base",
        _base_is_ready,
    ),
    Stage(
        "prepare",
        "preparing the data",
        _prepare_inputs,
        lambda run, resolved: [task.data for task in run.tasks(resolved.names)],
        "prepare fewer rows: all of them are held at once (data.limit is drawn later)",
        _grown_is_ready,
    ),
    Stage(
        "prune",
        "pruning the base",
        _prune_inputs,
        lambda run, resolved: [run.pruned],
        "choose a smaller base, or measure by magnitude",
        applies=lambda resolved: resolved.recipe.prune is not None,
    ),
    Stage(
        "train",
        "training",
        _train_inputs,
        _trained,
        "lower train.micro_batch_tokens or train.max_length",
    ),
    Stage(
        "evaluate",
        "evaluating",
        _evaluate_inputs,
        lambda run, resolved: [task.eval for task in run.tasks(resolved.names)],
        "lower train.max_length or train.threads (each thread adds questions that are asked at once)",
    ),
    Stage("export", "exporting", _export_inputs, lambda run, resolved: [run.artifacts], "choose a smaller base"),
)
"""Then, in the parent itself, because they take no time: gate, card, lineage, registry and report."""

SHARED = "train"
"""The one stage that several processes may share."""

BEFORE_TRAINING = "prune"
"""The last stage before that one, where the recipe asks for it."""

STAGES = {stage.name: stage for stage in ORDER}


def up_to(name: str, resolved: ResolvedRecipe) -> tuple[Stage, ...]:
    """The stages from the first to `name` that the recipe asks for."""
    names = [stage.name for stage in ORDER]
    return tuple(stage for stage in ORDER[: names.index(name) + 1] if stage.applies(resolved))
