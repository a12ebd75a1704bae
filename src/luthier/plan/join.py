"""The plan of several tasks of one run, from the plan of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from luthier.plan.make import LIMITED, budget_notes
from luthier.plan.predict import BESIDE_HEAD
from luthier.plan.rank import price_of, within
from luthier.plan_records import Candidate, Plan, Prediction
from luthier.records import DataProfile, ModelShape
from luthier.spec.plugins import METHODS
from luthier.spec.resolve import ResolvedRecipe
from luthier.spec.suits import labels_of


def joined_plan(plans: Mapping[str, Plan], resolved: ResolvedRecipe, *, heads: Mapping[str, int]) -> Plan:
    """One plan; of one task it is that task's. `heads` are the parameters of the head of each task that has one.

    Times add up: an epoch has as many rows as the tasks have together, whatever their shares. Memory is that of the
    task that takes most, because a micro-batch holds rows of one task; of adapters of their own only one learns at a
    time.
    """
    first, *others = plans.values()
    if not others:
        return first
    own = resolved.recipe.has_own_adapters
    tokens = sum(plan.prediction.trained_tokens for plan in plans.values())
    limit = resolved.recipe.train.max_tokens
    # Of all tasks together, not of each, unless each has steps of its own.
    share = min(1.0, limit / tokens) if limit is not None and tokens and not own else 1.0
    predicted = [plan.prediction for plan in plans.values()]
    training = sum(one.train_seconds for one in predicted)
    prediction = Prediction(
        train_seconds=share * training,
        evaluate_seconds=sum(plan.prediction.evaluate_seconds for plan in plans.values()),
        total_seconds=share * training
        + sum(p.evaluate_seconds for p in predicted)
        + max(map(_rest_seconds, predicted)),
        peak_memory_gib=max(one.peak_memory_gib for one in predicted) + _apart_gib(plans, resolved),
        trained_tokens=int(share * tokens),
        matmul_gflops=first.prediction.matmul_gflops,
        rates=first.prediction.rates,
        train_memory_gib=max(plan.prediction.train_memory_gib for plan in plans.values()),
    )
    budget = resolved.recipe.objective.budget
    fits = within(budget, seconds=prediction.total_seconds, peak_memory_gib=prediction.peak_memory_gib)
    chosen = {name: next(c for c in plan.candidates if c.technique == plan.chosen) for name, plan in plans.items()}
    kind = "an adapter a task" if own else "multi-task"
    trains = next(iter(chosen.values())).trains.removesuffix(BESIDE_HEAD)
    each = [one.trainable_parameters - heads.get(name, 0) for name, one in chosen.items()]
    together = Candidate(
        technique=f"{kind}: {', '.join(f'{name} ({one.technique})' for name, one in chosen.items())}",
        trainable_parameters=(sum if own else max)(each) + sum(heads.values()),
        peak_memory_gib=prediction.peak_memory_gib,
        trains=(f"{trains} for each of {', '.join(chosen)}" if own else f"{trains} for all")
        + (f", a head for each of {', '.join(heads)}" if heads else ""),
        train_seconds=prediction.train_seconds,
        total_seconds=prediction.total_seconds,
        money=price_of(budget, seconds=prediction.total_seconds),
        fits=fits,
        speaks_for="no task takes from another, and each keeps its own best step"
        if own
        else "one model to serve for all tasks; what tasks have in common is learned once",
        speaks_against="what tasks have in common is learned by each anew, and an adapter a task is kept"
        if own
        else "tasks can take from each other; `luthier transfer` measures which",
    )
    # Of documents it is not known, which says nothing about the others.
    weakest = max(plans, key=lambda name: _or_least(plans[name].detectable.smallest_difference))
    detectable = plans[weakest].detectable
    return Plan(
        recipe_sha256=resolved.sha256,
        data_sha256=first.data_sha256,
        model_sha256=first.model_sha256,
        candidates=(
            together,
            *(
                one.model_copy(update={"technique": f"{name}: {one.technique}"})
                for name, plan in plans.items()
                for one in plan.candidates
                if one != chosen[name]
            ),
        ),
        chosen=together.technique,
        prediction=prediction,
        fits=fits,
        budget=first.budget,
        currency=first.currency,
        detectable=detectable.model_copy(update={"assumption": f"task {weakest}: {detectable.assumption}"}),
        notes=(*budget_notes(resolved, prediction), *_limit_note(resolved, share), *_own_notes(plans, resolved)),
    )


def head_parameters(resolved: ResolvedRecipe, profiles: Sequence[DataProfile], shape: ModelShape) -> dict[str, int]:
    """Task -> parameters of its head, of those that have one."""
    return {
        name: shape.hidden_size * _rows_of_head(part, profile)
        for name, part, profile in zip(resolved.names, resolved.parts, profiles, strict=True)
        if METHODS.get(part.recipe.method.type).has_head
    }


def _rows_of_head(part: ResolvedRecipe, profile: DataProfile) -> int:
    entry, rename = part.recipe.entry, part.recipe.data.labels.rename
    return max(1, len(labels_of(entry.task, entry.label, profile, rename=rename)))


def _rest_seconds(one: Prediction) -> float:
    """Starting stages, exporting and the like, which several tasks have once; preparing is the smaller part."""
    return one.total_seconds - one.train_seconds - one.evaluate_seconds


def _apart_gib(plans: Mapping[str, Plan], resolved: ResolvedRecipe) -> float:
    """One gradient a task, in float32, which pcgrad holds."""
    if resolved.recipe.multi_task is None or resolved.recipe.multi_task.loss != "pcgrad":
        return 0.0
    trainable = max(one.trainable_parameters for plan in plans.values() for one in plan.candidates)
    return len(plans) * trainable * 4 / 2**30


def _or_least(value: float) -> float:
    return value if math.isfinite(value) else -math.inf


def _limit_note(resolved: ResolvedRecipe, share: float) -> list[str]:
    if share >= 1.0:
        return []
    epochs = share * (resolved.recipe.train.num_train_epochs or 1)
    return [f"{LIMITED} after {epochs:.1f} of {resolved.recipe.train.num_train_epochs} epochs of all tasks."]


def _own_notes(plans: Mapping[str, Plan], resolved: ResolvedRecipe) -> list[str]:
    """What is said of one task alone; budget and limit are those of all together."""
    notes = []
    for (name, plan), part in zip(plans.items(), resolved.parts, strict=True):
        of_all = budget_notes(part, plan.prediction)
        limited = () if resolved.recipe.has_own_adapters else (LIMITED,)  # said of all together
        notes += [f"{name}: {note}" for note in plan.notes if note not in of_all and not note.startswith(limited)]
    return list(dict.fromkeys(notes))
