"""The runs that stand behind a run: what it was merged from, who taught it, and so on. What they have met, it has."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from luthier.data.learned_before import set_aside_learned
from luthier.data.shards import Shard
from luthier.data_report import DataReport
from luthier.errors import DataError, RunError
from luthier.pipeline.context import Context
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.files import sha256_file
from luthier.store.runs import RunFolder, config_file, weights_file, weights_sha256
from luthier.store.stages import Stages
from luthier.train_records import TrainResult


def as_trained(run: RunFolder) -> TrainResult:
    """What a run's training has said; its rows and all that it learned are still what they were then.

    Raises:
        RunError: it has not been trained, a file has changed since, or it learned beside a base in four bits, a pruned
            one or one with new tokens, and what stands behind another run is taken up beside the base as it is.
    """
    if not run.train_result.is_file():
        raise RunError(f"{run.path} has not been trained", way_out=f"luthier train {run.path}")
    recipe = ResolvedRecipe.read(run.resolved).recipe
    if recipe.has_own_adapters:
        raise RunError(
            f"{run.path} has an adapter for each task (multi_task.adapters: per_task), and one is taken up here",
            way_out="name a run of that task alone; as a teacher or a base also its folder artifacts/merged/TASK",
        )
    if recipe.model.new_tokens is not None:
        raise RunError(
            f"{run.path} learned words that its base does not have (model.new_tokens), so its ids are not the base's",
            way_out="name a run without it, or take the folder that its export 'merged' wrote as a base",
        )
    if recipe.model.load_in_4bit or recipe.prune is not None:
        beside = "in four bits (model.load_in_4bit)" if recipe.prune is None else "that was pruned (prune)"
        raise RunError(
            f"{run.path} learned beside a base {beside}, and beside the base as it is would answer otherwise",
            way_out="name a run without it; as a teacher also the folder that its export 'merged' wrote",
        )
    result = TrainResult.read(run.train_result)
    changed = [path for stage in ("prepare", "train") for path in Stages(run).changed(stage)]
    there = config_file(run.tuned).is_file() and weights_file(run.tuned).is_file()
    if changed or not there or weights_sha256(run.tuned) != result.weights_sha256:
        raise RunError(
            f"{run.path} is not what was trained: {', '.join(changed) or weights_file(run.tuned).name} has changed",
            way_out=f"restore it, or train it again: luthier train {run.path}",
        )
    return result


def directly_behind(resolved: ResolvedRecipe) -> list[RunFolder]:
    """The runs that a run is merged from, those that teach it, and those whose export is its base or its teacher."""
    teachers = [part.teacher for part in resolved.parts if part.teacher is not None]
    folders = [resolved.file(resolved.recipe.model.name), *(Path(one.shape.path) for one in teachers)]
    return [
        *(RunFolder(Path(parent.path)) for parent in resolved.parents),
        *(RunFolder(Path(one.tuned).parent.parent) for one in teachers if one.tuned),
        *(run for run in map(_exporter, folders) if run is not None),
    ]


def _exporter(model: Path) -> RunFolder | None:
    """The run in whose folder a model stands; None for any other, and for a name that is no folder."""
    above = model.resolve().parents if model.exists() else ()
    return next((RunFolder(folder).whole for folder in above if RunFolder(folder).resolved.is_file()), None)


def runs_behind(runs: Iterable[RunFolder]) -> dict[str, RunFolder]:
    """NAME/ID -> run: these, and all that stand behind them.

    Raises:
        RunError: one of them is gone.
    """
    found: dict[str, RunFolder] = {}
    waiting = list(runs)
    while waiting:
        run = waiting.pop(0)
        name = f"{run.name}/{run.id}"
        if name in found:
            continue
        if not run.resolved.is_file():
            raise RunError(
                f"{run.path} is gone, so what {name} learned is not known", way_out="restore it, or make it again"
            )
        found[name] = run
        waiting += directly_behind(ResolvedRecipe.read(run.resolved))
    return found


def learned_folders(runs: Iterable[RunFolder]) -> dict[str, Path]:
    """Run and task -> its data folder, of runs and all that stand behind them.

    Raises:
        RunError: shards are gone, or others than those that were learned: what was seen could not be told.
    """
    folders = {}
    for name, run in runs_behind(runs).items():
        for task in run.tasks(ResolvedRecipe.read(run.resolved).names):
            report = DataReport.read(task.data_report)
            for split in ("train", "validation"):
                shard, sha256 = task.data / f"{split}.arrow", report.splits[split].sha256
                if not shard.is_file() or (sha256 and sha256_file(shard) != sha256):
                    raise RunError(
                        f"{shard} is missing or has changed, so what {name} learned is not known",
                        way_out="restore it, or train that run again",
                    )
            folders[f"{name} {report.name}"] = task.data
    return folders


def keep_off_learned(context: Context) -> None:
    """Test rows that a run behind this one has met do not count; validation rows that it learned do not choose.

    Raises:
        DataError: no row of a test split is left.
        RunError: see `learned_folders`.
    """
    learned = learned_folders(directly_behind(context.resolved))
    if not learned:
        return
    who = ", ".join(learned)
    for name, task in zip(context.resolved.names, context.tasks, strict=True):
        entry, rules = task.resolved.recipe.entry, task.resolved.recipe.data.leakage
        counts = set_aside_learned(
            task.run.data,
            learned,
            file=entry.path,
            rows_file=task.resolved.file(entry.path),
            threshold=rules.threshold,
        )
        if counts["test"]:
            context.progress.say(f"{name}: {counts['test']} test rows were met by {who}; they do not count")
        if counts["validation"]:
            context.progress.say(f"{name}: {counts['validation']} validation rows were learned there; set aside")
        test = Shard(task.run.data / "test.arrow")
        if len(test) and all(row.contaminated for row in test):
            raise DataError(
                f"task {name}: every row of the test split has been met by {who}",
                way_out="give rows that none of them has met as data.test, or split the file as they did",
            )
