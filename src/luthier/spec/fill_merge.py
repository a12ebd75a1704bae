"""Fill what a recipe leaves open about merging, and what follows from the runs: adapter and method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.errors import RecipeError
from luthier.spec.adapters.full import Full
from luthier.spec.adapters.lora import Lora
from luthier.spec.filler import Filler, leaves
from luthier.spec.merge import MERGES, Into, Parent, rank_of
from luthier.spec.plugins import METHODS

MOST_RANK = 512
"""Of an adapter's section."""


def fill_merge(filler: Filler, parents: Sequence[Parent]) -> None:
    """Resolve `merge`; adapter and method are those of the runs.

    Raises:
        RecipeError: the runs cannot be merged in the way that is asked for.
    """
    section = filler.tree["merge"]
    if section is None:
        filler.reasons["merge"] = "open on purpose: the recipe trains"
        return
    assert len(parents) == len(section["runs"]), "every run of merge.runs has been opened"
    facts, count = MERGES[section["method"]], len(parents)
    section["runs"] = [parent.run for parent in parents]
    if facts.chooses:
        filler.reasons["merge.weights"] = "open on purpose: the chosen runs count alike"
    elif facts.averages:
        filler.fill("merge.weights", [1.0 / count] * count, "the mean")
    else:
        filler.fill("merge.weights", [1.0] * count, "what agrees is averaged already")
    if facts.usual_density is None:
        filler.reasons["merge.density"] = "open on purpose: every value is kept"
    else:
        filler.fill("merge.density", facts.usual_density, facts.why_density)
    if facts.draws:
        filler.fill("merge.seed", 0, "of what is dropped")
    else:
        filler.reasons["merge.seed"] = "open on purpose: nothing is drawn"
    _fill_form(filler, parents)
    _fill_method(filler, parents)


def _fill_form(filler: Filler, parents: Sequence[Parent]) -> None:
    """An adapter where it says the same as whole weights would, or is asked for."""
    section, facts = filler.tree["merge"], MERGES[filler.tree["merge"]["method"]]
    odd = next((parent for parent in parents if parent.rank is None), None)
    into: Into = "weights"
    if odd is not None:
        why = f"{odd.run} is no change of low rank: {odd.why_no_rank}"
    elif facts.keeps_rank:
        into, why = "adapter", "the sum of changes of low rank is one: nothing is lost"
    else:
        why = f"what {section['method']} makes has no low rank; an adapter would hold a part of it"
    if section["rank"] is not None and section["into"] is None:
        into, why = "adapter", "merge.rank is that of an adapter"
    if filler.fill("merge.into", into, why) == "weights":
        filler.reasons["merge.rank"] = "open on purpose: whole weights have none"
        _take(filler, Full(), "the merge is written as whole weights")
        return
    if odd is not None:
        raise RecipeError(
            f"merge.into: adapter: {odd.run} cannot be merged into one exactly: {odd.why_no_rank}",
            way_out="set merge.into: weights, which merges any runs exactly",
            key="merge.into",
        )
    whole = rank_of(parents)
    if section["rank"] is None and whole > MOST_RANK:
        raise RecipeError(
            f"merge.runs: the exact merge has rank {whole}, the sum of the runs' ranks, and an adapter {MOST_RANK} at "
            "most",
            way_out=f"set merge.rank: {MOST_RANK} or less, which cuts it, or merge.into: weights",
            key="merge.rank",
        )
    rank = filler.fill("merge.rank", whole, "the sum of the runs' ranks, so that nothing is cut")
    _take(filler, _lora_of(parents, rank), "of the runs that are merged")


def _lora_of(parents: Sequence[Parent], rank: int) -> Lora:
    """What describes the merged adapter; its scale is 1."""
    targets = [parent.adapter.get("target_modules") for parent in parents]
    layers = [parent.adapter.get("layers_to_transform") for parent in parents]
    named = [name for target in targets if isinstance(target, list) for name in target]
    joined: Any = targets[0] if all(target == targets[0] for target in targets) else list(dict.fromkeys(named))
    if any(isinstance(target, str) for target in targets) and any(target != targets[0] for target in targets):
        joined = "all-linear"
    of_layers = None if any(one is None for one in layers) else sorted({n for one in layers for n in one or ()})
    settings = {"r": rank, "alpha": float(rank), "dropout": 0.0, "target_modules": joined}
    return Lora.model_validate({**settings, "layers_to_transform": of_layers})


def _take(filler: Filler, adapter: Lora | Full, why: str) -> None:
    filler.tree["adapter"] = section = adapter.model_dump(mode="json")
    filler.reasons = {key: told for key, told in filler.reasons.items() if not key.startswith("adapter.")}
    filler.reasons |= {f"adapter.{key}": why for key, _ in leaves(section)}


def _fill_method(filler: Filler, parents: Sequence[Parent]) -> None:
    """The method of the runs, which says how the merged model is asked.

    Raises:
        RecipeError: they learned in different ways, or none of them by a method for this task.
    """
    if filler.tree["method"]["type"] != "auto":
        return
    entry = filler.tree["data"]["train"][0]
    named = [parent.methods[entry["name"]] for parent in parents if entry["name"] in parent.methods]
    every = named or [section for parent in parents for section in parent.methods.values()]
    alike = [
        _untaught(section, entry["task"]) for section in every if entry["task"] in METHODS.get(section["type"]).tasks
    ]
    if not alike or any(section != alike[0] for section in alike):
        found = ", ".join(sorted({section["type"] for parent in parents for section in parent.methods.values()}))
        raise RecipeError(
            f"method: the runs do not say in one way how {entry['name']} ({entry['task']}) is asked; they were trained "
            f"with {found}",
            way_out="set method as in the run whose way is wanted",
            key="method",
        )
    filler.tree["method"] = {**alike[0]}
    filler.reasons = {key: told for key, told in filler.reasons.items() if not key.startswith("method.")}
    filler.reasons |= {f"method.{key}": "of the runs that are merged" for key, _ in leaves(filler.tree["method"])}


def _untaught(section: dict[str, Any], task: str) -> dict[str, Any]:
    """How what a method has learned is asked, without what it learned from: general texts, or a teacher."""
    if METHODS.get(section["type"]).is_taught:
        name = next(name for name in ("sft", "pretrain") if task in METHODS.get(name).tasks)
        return METHODS.get(name).section.model_validate({"type": name}).model_dump(mode="json")
    return {**section, "replay": None} if "replay" in section else section


def say_unused(filler: Filler, kept: Sequence[str]) -> None:
    """Settings of a training that there is none of are filled in as ever, and said to be so."""
    for key in filler.reasons:
        if key.startswith("train.") and key.removeprefix("train.") not in kept:
            filler.reasons[key] = "not used: runs are merged, nothing learns"
