"""`method: auto`: the recipe is resolved with every technique there is, and goes on with what the plan takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

from pydantic import ValidationError

from luthier.errors import RecipeError
from luthier.pipeline.known import Earlier
from luthier.plan.expect import outdone
from luthier.plan.measured import Known
from luthier.plan.predict import technique_of
from luthier.plan_records import Candidate, Plan
from luthier.spec.load import LoadedRecipe, translate
from luthier.spec.plugins import ADAPTERS, METHODS
from luthier.spec.recipe import Recipe
from luthier.spec.resolve import ResolvedRecipe

Resolve = Callable[[LoadedRecipe], ResolvedRecipe]


@dataclass(frozen=True)
class Choice:
    """What goes on, and what else was weighed."""

    resolved: ResolvedRecipe
    others: tuple[ResolvedRecipe, ...]
    known: tuple[Known, ...] = ()
    """What earlier runs measured on the same data."""
    begun: str = ""
    """The technique that was taken when the very same recipe was weighed before; '' where it was not."""
    left_out: tuple[str, ...] = ()
    """Techniques that the recipe's other settings do not go with, with the reason."""
    weighed_sha256: str = ""
    """See `Plan`."""


def techniques(
    loaded: LoadedRecipe, again: Resolve, *, known: Callable[[ResolvedRecipe], Earlier], alone: bool
) -> Choice:
    """The recipe as it is, or the rules alone have it, and with each other technique of the tables for its task.

    An adapter that the recipe names is kept, or that several tasks share; else those are weighed that the table offers.

    Args:
        loaded: as given.
        again: resolves a recipe like `loaded`.
        known: what earlier runs say of it.
        alone: whether it is the only task.

    Raises:
        RecipeError: the recipe itself cannot be resolved.
    """
    if loaded.recipe.merge is not None:  # nothing is trained, so no technique is weighed
        return Choice(again(loaded), ())
    resolved, left_out = _first(loaded, again)
    task, own = resolved.recipe.entry.task, (resolved.recipe.method.type, resolved.recipe.adapter.type)
    methods = [name for name, facts in METHODS.entries().items() if task in facts.tasks and not facts.only_if_asked]
    if METHODS.get(own[0]).scores_answers:  # those that write answer another question
        methods = [own[0]]
    given = not alone or "adapter" in loaded.recipe.model_fields_set
    adapters = [own[1]] if given else [name for name, facts in ADAPTERS.entries().items() if facts.considered]
    others = []
    for method, adapter in product(methods, adapters):
        if (method, adapter) == own:
            continue
        try:
            others.append(again(_with(loaded, method, None if given else adapter)))
        except RecipeError as error:
            left_out.append(f"'{adapter} {method}' is not weighed, other settings do not go with it: {error.what}")
    before = known(resolved)
    return Choice(resolved, tuple(others), before.known, before.begun, tuple(left_out))


def _first(loaded: LoadedRecipe, again: Resolve) -> tuple[ResolvedRecipe, list[str]]:
    """The recipe as it names its method; where the plan may choose, with the first that its other settings go with."""
    try:
        resolved = again(loaded)
    except RecipeError as error:
        untaught = [name for name, facts in METHODS.entries().items() if not facts.only_if_asked]
        for method in untaught if loaded.recipe.method.type == "auto" else ():
            try:
                resolved = again(_with(loaded, method, None))
            except RecipeError:  # said of the first
                continue
            reasons = {**resolved.reasons, "method.type": "the first that the recipe's other settings go with"}
            return resolved.model_copy(update={"reasons": reasons}), [f"What suits best is not weighed: {error.what}"]
        raise
    return resolved, []


def choose(found: Choice, plan: Plan) -> Choice:
    """The first technique of the plan that can be trained and fits the budget; the first of them where none fits.

    A recipe that was weighed before goes on with what was taken then, whatever the machine has become since, unless
    that has been measured to be worse.

    Args:
        found: what is weighed.
        plan: of all of it.
    """
    options = {technique_of(one): one for one in (found.resolved, *found.others)}
    trainable = [one for one in plan.candidates if one.technique in options]
    taken, why = _take(trainable, found.begun)
    kept = options.pop(taken)
    reasons = {**kept.reasons, "method.type": why}
    if "adapter.type" in reasons and kept.recipe.adapter != found.resolved.recipe.adapter:
        reasons["adapter.type"] = why
    return replace(
        found,
        resolved=kept.model_copy(update={"reasons": reasons}),
        others=tuple(options.values()),
        weighed_sha256=found.resolved.sha256,
    )


def _take(trainable: Sequence[Candidate], begun: str) -> tuple[str, str]:
    first = trainable[0]
    before = next((one for one in trainable if one.technique == begun), None)
    if before is not None and not outdone(before.expected, by=first.expected):
        return begun, "the plan took it when this recipe was first run"
    fitting = [one for one in trainable if one.fits]
    if not fitting:
        return first.technique, f"{first.why}; no technique fits the budget, this is the best"
    if fitting[0] is first:
        return first.technique, first.why
    return fitting[0].technique, f"the best that fits the budget; '{first.technique}' does not"


def _with(loaded: LoadedRecipe, method: str, adapter: str | None) -> LoadedRecipe:
    """Raises RecipeError where what else it says refuses that."""
    given = loaded.recipe.model_dump(mode="json", exclude_unset=True)
    if loaded.recipe.method.type != method:  # settings that the recipe gives of a method stay with it
        given["method"] = {"type": method}
    if adapter is not None:
        given["adapter"] = {"type": adapter}
    try:
        return replace(loaded, recipe=Recipe.model_validate(given))
    except ValidationError as error:
        raise translate(error, {"": str(loaded.path)}) from error
