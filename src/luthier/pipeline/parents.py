"""The runs that a recipe merges: found, and held to what they were when they were trained. No torch here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from luthier.errors import RecipeError, RunError
from luthier.pipeline.behind import as_trained
from luthier.records import ModelShape, RequestContract
from luthier.spec.load import LoadedRecipe
from luthier.spec.merge import Parent, refuse_learning, why_no_rank
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.files import sha256_file
from luthier.store.registry import Registry
from luthier.store.runs import ADAPTER, HEADS, RunFolder, config_file, weights_file

_SAME = ("tokenizer_sha256", "chat_template", "bos_token", "eos_token", "end_of_turn")
"""Of contracts, what has to be alike whatever the task is."""

_SAME_TASK = ("task", "system", "input", "transforms", "answered_by", "features", "privacy_action")
"""Of contracts of one task, what has to be alike too."""


def open_parents(loaded: LoadedRecipe, shape: ModelShape, *, out: Path) -> tuple[Parent, ...]:
    """The runs of `merge.runs`; none where the recipe merges nothing.

    Args:
        loaded: the recipe as given.
        shape: of the recipe's base.
        out: folder of runs and registry.

    Raises:
        RecipeError: a run was trained on another base, or the recipe says how to learn.
        RunError: there is no such run, or it is not what it was when it was trained.
    """
    refuse_learning(loaded)
    if loaded.recipe.merge is None:
        return ()
    parents: list[Parent] = []
    for place, named in enumerate(loaded.recipe.merge.runs):
        run = _find(named, out)
        where = f"{loaded.where(f'merge.runs.{place}')}: merge.runs: {named}"
        parent = describe(run)
        if (found := ResolvedRecipe.read(run.resolved).model_sha256) != shape.sha256:
            raise RecipeError(
                f"{where} was trained on another base: its hash is {found[:12]}, that of {shape.name} "
                f"{shape.sha256[:12]}",
                way_out="merge runs of one base, and name it as model.name",
            )
        if parent.run in [other.run for other in parents]:
            raise RecipeError(f"{where} is {parent.run}, which is named before", way_out="name each run once")
        parents.append(parent)
    _refuse_foreign(parents)
    return tuple(parents)


def _find(named: str, out: Path) -> RunFolder:
    run = RunFolder.open(Registry(out / "registry.sqlite").get(named).run if "@" in named else named, out=out)
    if run.trains_alone:
        raise RunError(
            f"merge.runs: {named} is one task of a run, and whole runs are merged",
            way_out="train that task in a run of its own, and name that run",
        )
    if run.whole != run:
        raise RunError(
            f"merge.runs: {named} is one task of a run, and what it learned is in that of all",
            way_out=f"name the run: {run.whole.path}",
        )
    return run


def describe(run: RunFolder) -> Parent:
    """What a trained run is.

    Raises:
        RunError: it has not been trained, its files have changed since, or it has heads of several tasks.
    """
    if (run.tuned / HEADS).is_file():
        raise RunError(
            f"{run.path} has classification heads of several tasks, which are not merged",
            way_out="merge runs of one task each, or runs that learned labels as words (method: sft)",
        )
    result, resolved, config = as_trained(run), ResolvedRecipe.read(run.resolved), config_file(run.tuned)
    adapted = run.tuned.name == ADAPTER
    said = json.loads(config.read_text(encoding="utf-8"))
    why = why_no_rank(said) if adapted else "its own weights learned"
    return Parent(
        run=f"{run.name}/{run.id}",
        path=str(run.path),
        kind="adapter" if adapted else "model",
        adapter=resolved.recipe.adapter.model_dump(mode="json"),
        rank=None if why else int(said["r"]),
        why_no_rank=why,
        methods={
            name: part.recipe.method.model_dump(mode="json")
            for name, part in zip(resolved.names, resolved.parts, strict=True)
        },
        tasks={name: part.recipe.entry.task or "" for name, part in zip(resolved.names, resolved.parts, strict=True)},
        weights_sha256=result.weights_sha256,
        config_sha256=sha256_file(config),
        recipe_sha256=resolved.sha256,
        data_sha256=result.data_sha256,
        parents=resolved.parents,
    )


def tuned_of(parent: Parent) -> Path:
    """Folder with what a parent learned, which is what was found when the recipe was resolved.

    Raises:
        RunError: it is gone, or another one.
    """
    run = RunFolder(Path(parent.path))
    files = {weights_file(run.tuned): parent.weights_sha256, config_file(run.tuned): parent.config_sha256}
    for file, sha256 in files.items():
        if not file.is_file() or sha256_file(file) != sha256:
            state = "has changed since the recipe was resolved" if file.is_file() else "is missing"
            raise RunError(
                f"{file}, of the merged run {parent.run}, {state}",
                way_out="restore it, or run the recipe again, which makes a new run",
            )
    return run.tuned


def _contracts(parent: Parent) -> dict[str, RequestContract]:
    """Task -> how it is asked."""
    run = RunFolder(Path(parent.path))
    return {
        name: RequestContract.read(task.contract)
        for name, task in zip(parent.tasks, run.tasks(parent.tasks), strict=True)
    }


def _refuse_foreign(parents: Sequence[Parent]) -> None:
    """Runs that were asked in different ways have learned different things under one name."""
    first: dict[str, tuple[str, RequestContract]] = {}
    for parent in parents:
        for task, contract in _contracts(parent).items():
            other = first.setdefault(task, (parent.run, contract))
            refuse_other_contract(contract, parent.run, other[1], other[0])
            anyone = next(iter(first.values()))
            refuse_other_contract(contract, parent.run, anyone[1], anyone[0])


def refuse_other_contract(mine: RequestContract, whose: str, other: RequestContract, others: str) -> None:
    """Check that two contracts ask alike, as far as they have to.

    Raises:
        RunError: they do not; the message names the first thing that differs.
    """
    keys = [*_SAME, *(_SAME_TASK if mine.name == other.name else ())]
    if mine.answered_by == "head" or other.answered_by == "head":
        keys += ["answered_by", "labels", "tags", "scale"]  # a head's rows are its labels, or its unit
    for key in keys:
        one, two = getattr(mine, key), getattr(other, key)
        if one != two:
            raise RunError(
                f"{whose} and {others} cannot be merged: {mine.name} is asked with another {key}, "
                f"{_short(one)} and {_short(two)}",
                way_out="merge runs whose data section says the same about this, or train one of them again",
            )


def refuse_other_contracts(parents: Sequence[Parent], contracts: Sequence[RequestContract]) -> None:
    """Check that the merged model will be asked as its parents were.

    Raises:
        RunError: it would not.
    """
    for parent in parents:
        for theirs in _contracts(parent).values():
            for ours in contracts:
                refuse_other_contract(theirs, parent.run, ours, "this recipe")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
