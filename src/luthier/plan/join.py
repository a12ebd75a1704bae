"""The plan of several tasks that share one training, from the plan of each."""

from __future__ import annotations

from collections.abc import Mapping

from luthier.plan.rank import price_of, within
from luthier.records import Candidate, Plan, Prediction
from luthier.spec.resolve import ResolvedRecipe


def joined_plan(plans: Mapping[str, Plan], resolved: ResolvedRecipe) -> Plan:
    """One plan; of one task it is that task's.

    Times add up: an epoch has as many rows as the tasks have together, whatever their shares. Memory is that of the
    task that takes most, because a micro-batch holds rows of one task.
    """
    first, *others = plans.values()
    if not others:
        return first
    tokens = sum(plan.prediction.trained_tokens for plan in plans.values())
    limit = resolved.recipe.train.max_tokens
    share = min(1.0, limit / tokens) if limit is not None and tokens else 1.0  # of all tasks together, not of each
    training = sum(plan.prediction.train_seconds for plan in plans.values())
    prediction = Prediction(
        train_seconds=share * training,
        evaluate_seconds=sum(plan.prediction.evaluate_seconds for plan in plans.values()),
        total_seconds=sum(plan.prediction.total_seconds for plan in plans.values()) - (1.0 - share) * training,
        peak_memory_gib=max(plan.prediction.peak_memory_gib for plan in plans.values()),
        trained_tokens=int(share * tokens),
        matmul_gflops=first.prediction.matmul_gflops,
        rates=first.prediction.rates,
        train_memory_gib=max(plan.prediction.train_memory_gib for plan in plans.values()),
    )
    budget = resolved.recipe.objective.budget
    fits = within(budget, seconds=prediction.total_seconds, peak_memory_gib=prediction.peak_memory_gib)
    chosen = {name: next(c for c in plan.candidates if c.technique == plan.chosen) for name, plan in plans.items()}
    together = Candidate(
        technique=f"multi-task: {', '.join(f'{name} ({one.technique})' for name, one in chosen.items())}",
        trainable_parameters=max(one.trainable_parameters for one in chosen.values()),
        peak_memory_gib=prediction.peak_memory_gib,
        trains="an adapter for all",
        train_seconds=prediction.train_seconds,
        total_seconds=prediction.total_seconds,
        money=price_of(budget, seconds=prediction.total_seconds),
        fits=fits,
        speaks_for="one adapter to serve for all tasks; what tasks have in common is learned once",
        speaks_against="tasks can take from each other; `luthier transfer` measures which",
    )
    weakest = max(plans, key=lambda name: plans[name].detectable.smallest_difference)
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
        notes=tuple(dict.fromkeys(f"{name}: {note}" for name, plan in plans.items() for note in plan.notes)),
    )
