"""What a search will take, by the plan of the recipe as it stands."""

from __future__ import annotations

from luthier.plan.cost import STAGE_SECONDS
from luthier.plan.words import duration
from luthier.plan_records import Plan
from luthier.spec.plugins import ADAPTERS, METHODS
from luthier.spec.recipe import Recipe


def why_no_search(recipe: Recipe) -> str:
    """Why `luthier run --search` cannot search with this recipe; '' if it can."""
    section = recipe.search
    if section is None:
        return "--search tries what `search` of the recipe says, and there is none"
    if len(recipe.data.train) > 1:
        return "search compares trials by the metric of one task, and there are several"
    if recipe.data.train[0].method is not None:
        return "data.train[0].method would be that of every trial; write it as `method`"
    if recipe.merge is not None:
        return "search compares trainings, and with merge nothing is trained"
    for technique in section.candidates or ():
        adapter, _, method = technique.partition(" ")
        if adapter not in ADAPTERS.names() or method not in METHODS.names():
            known = ", ".join(ADAPTERS.names()), ", ".join(METHODS.names())
            return f"search.candidates: {technique!r} is no 'ADAPTER METHOD'; adapters: {known[0]}; methods: {known[1]}"
    named = [technique.partition(" ")[2] for technique in section.candidates or ()]
    scoring = {METHODS.get(method).scores_answers for method in named}
    if len(scoring) > 1:
        return (
            f"search.candidates: {', '.join(sorted(set(named)))}: some score answers and some write them, and no "
            "metric says which you need"
        )
    asked, needed = recipe.train.validations, section.validations
    if asked is not None and asked % needed:
        return (
            f"train.validations {asked} is no multiple of {needed}, and a rung ends with a validation; write one, or "
            "leave it open"
        )
    return ""


def search_note(recipe: Recipe, plan: Plan) -> tuple[str, ...]:
    """What the search of the recipe takes and whether its budget holds it; nothing where there is none.

    Each trial is taken to train as long as the technique that the plan predicts for it, whatever its settings.
    """
    section = recipe.search
    if section is None or why_no_search(recipe):
        return ()
    seconds = {one.technique: one.train_seconds for one in plan.candidates}
    each = [seconds.get(name, plan.prediction.train_seconds) for name in section.candidates or ()]
    mean = sum(each) / len(each) if each else plan.prediction.train_seconds
    starts = sum(section.on_rung(rung) for rung in range(section.rungs)) * STAGE_SECONDS
    total, one = mean * section.trainings + starts, mean + STAGE_SECONDS
    budget = 3600 * section.hours
    held = "holds that" if total <= budget else "does not hold that: the last rungs are left out"
    if one > budget:
        held = "does not hold even one training"
    return (
        f"luthier run --search: {section.num_trials} trials on {section.rungs} rungs, about {duration(total)} of "
        f"training (as much as {section.trainings:.1f} trainings); search.hours {section.hours:g} {held}.",
    )
