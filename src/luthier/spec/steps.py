"""The refining steps that `data.steps` puts in order: which there are, what asks for each, what must come before what.

Each has an implementation of its name in `luthier.data.steps`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from luthier.errors import RecipeError
from luthier.records import is_closed
from luthier.spec.recipe import Recipe

KEY = "data.steps"


@dataclass(frozen=True)
class StepFacts:
    """A step, as far as a recipe is concerned."""

    name: str
    summary: str
    key: str
    """What of the recipe asks for it; '' where every recipe does."""
    is_asked: Callable[[Recipe], bool]
    may_be_left_out: bool = False
    """Whether an order may leave it out although it is asked for: naming the steps is then how to switch it off."""


def _always(recipe: Recipe) -> bool:
    return True


def _has_labels(recipe: Recipe) -> bool:
    return is_closed(recipe.entry.task)


def _may_conflict(recipe: Recipe) -> bool:
    return _has_labels(recipe) or recipe.entry.task == "preference"


_USUAL = (
    StepFacts("features", "compute columns from columns", "data.features", lambda r: bool(r.data.features)),
    StepFacts("rename", "give labels their names to learn", "data.labels.rename", lambda r: bool(r.data.labels.rename)),
    StepFacts("clean", "apply data.clean; rows without a text or an answer go", "", _always),
    StepFacts("privacy", "look for personal data and secrets, and do what data.privacy says", "", _always),
    StepFacts("filter", "set unwanted rows aside", "data.filter", lambda r: r.data.filter is not None),
    StepFacts("cut", "shorten texts that are too long", "data.too_long", lambda r: r.data.too_long != "drop"),
    StepFacts(
        "conflicts", "set texts with several labels, or pairs both ways round, aside", "data.train.0.task",
        _may_conflict, True,
    ),
    StepFacts("duplicates", "set equal rows aside", "", _always, True),
    StepFacts(
        "near_duplicates", "set nearly equal rows aside", "data.dedupe.near",
        lambda r: r.data.dedupe is not None and r.data.dedupe.threshold is not None,
    ),
    StepFacts(
        "duplicates_by_meaning", "set rows that mean the same aside", "data.dedupe.meaning",
        lambda r: r.data.dedupe is not None and r.data.dedupe.meaning is not None,
    ),
    StepFacts("split", "give each row its split", "", _always),
    StepFacts(
        "benchmarks", "set rows of train aside that stand in a benchmark", "data.leakage.benchmarks",
        lambda r: bool(r.data.leakage.benchmarks),
    ),
    StepFacts("labels", "set rows aside whose label cannot be learned", "data.train.0.task", _has_labels),
    StepFacts("leakage", "find what training has seen of validation and test", "", _always),
    StepFacts("limit", "draw the rows that may stay", "data.limit", lambda r: any(r.data.limit.model_dump().values())),
    StepFacts(
        "teacher", "let a model elsewhere write answers", "data.teacher", lambda r: r.data.teacher is not None
    ),
    StepFacts("augment", "make offspring of training rows", "data.augment", lambda r: r.data.augment is not None),
    StepFacts("canaries", "plant secrets", "data.canaries", lambda r: r.data.canaries is not None),
    StepFacts(
        "replay", "add general texts to train", "method.replay",
        lambda r: getattr(r.method, "replay", None) is not None,
    ),
)  # fmt: skip

STEPS: dict[str, StepFacts] = {facts.name: facts for facts in _USUAL}
"""In the usual order."""

_UNCOVERS = "cleaning uncovers personal data ('ana&#64;example.org'), and must be through when it is looked for"
_LABELS_SEEN = "labels are looked at for personal data and secrets as they will be learned"
_HALVES = "of half an address, which a cut leaves, no detector knows that it is one"
_ROOM = "a prompt leaves room for the longest answer that will be learned"
_FINAL = "rows are drawn, and compared across the splits, as they will be learned"
_DRAWN = "before it no row has a split"
_RESEMBLE = "offspring resemble their parents on purpose, and are checked by themselves"
_ASKED = "it is asked about rows that will be learned alone, and its new rows keep off all others by themselves"
_SHARED = "they are a share of what is learned, and none of them may stand in validation or test"
_PLANTED = "canaries are secrets, and their copies equal, on purpose"

_BEFORE_SPLIT = ("rename", "clean", "privacy", "cut")
_AFTER_SPLIT = ("benchmarks", "labels", "leakage", "limit", "teacher", "augment", "canaries", "replay")
RULES: tuple[tuple[str, str, str], ...] = (
    *(("features", name, "they are what the input is filled with") for name in STEPS if name != "features"),
    ("clean", "privacy", _UNCOVERS),
    ("rename", "privacy", _LABELS_SEEN),
    ("clean", "cut", "what is cut is the text as it will be asked"),
    ("privacy", "cut", _HALVES),
    ("rename", "cut", _ROOM),
    *((name, "split", _FINAL) for name in _BEFORE_SPLIT),
    *(("split", name, _DRAWN) for name in _AFTER_SPLIT),
    *((name, "teacher", _ASKED) for name in ("benchmarks", "labels", "leakage", "limit")),
    *(
        (name, "augment", _RESEMBLE)
        for name in STEPS
        if name not in ("augment", "canaries", "replay", "features", "split")
    ),
    *((name, "canaries", _PLANTED) for name in STEPS if name not in ("canaries", "replay", "features", "split")),
    *((name, "replay", _SHARED) for name in STEPS if name not in ("replay", "features", "split")),
)
"""(earlier, later, why); every order that obeys them can be."""


def usual_steps(recipe: Recipe) -> tuple[str, ...]:
    """What a resolved recipe asks for, in the usual order."""
    return tuple(name for name, facts in STEPS.items() if facts.is_asked(recipe))


def steps_of(recipe: Recipe) -> tuple[str, ...]:
    """The steps of a resolved recipe, in its order."""
    return recipe.data.steps or usual_steps(recipe)


def refuse_impossible(steps: Sequence[str]) -> None:
    """Look at names and order alone, before anything is resolved.

    Raises:
        RecipeError: with the key of the item, e.g. 'data.steps.3'.
    """
    places: dict[str, int] = {}
    for place, name in enumerate(steps):
        key = f"{KEY}.{place}"
        if name not in STEPS:
            near = difflib.get_close_matches(name, STEPS, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise RecipeError(f"unknown step {name!r}", way_out=f"{hint}known: {', '.join(STEPS)}", key=key)
        if name in places:
            raise RecipeError(f"the step {name!r} stands twice", way_out="keep one of them", key=key)
        places[name] = place
    for earlier, later, why in RULES:
        if earlier in places and places.get(later, len(steps)) < places[earlier]:
            raise RecipeError(
                f"{later!r} cannot come before {earlier!r}: {why}",
                way_out=f"put {earlier!r} before {later!r}",
                key=f"{KEY}.{places[later]}",
            )


def refuse_unfitting(recipe: Recipe) -> None:
    """Hold the order of a resolved recipe against what else it says.

    Raises:
        RecipeError: a step is named that nothing asks for, or left out although something does.
    """
    given = recipe.data.steps or ()
    for place, name in enumerate(given):
        facts = STEPS[name]
        if not facts.is_asked(recipe):
            raise RecipeError(
                f"the step {name!r} has nothing to do: {_absent(facts, recipe)}",
                way_out=f"leave {name!r} out, or set {facts.key}",
                key=f"{KEY}.{place}",
            )
    missing = [name for name in usual_steps(recipe) if name not in given and not STEPS[name].may_be_left_out]
    if missing:
        key = STEPS[missing[0]].key
        raise RecipeError(
            f"{KEY} leaves out {missing[0]!r}, which {f'{key} asks for' if key else 'every recipe needs'}",
            way_out=f"add it; the usual order is [{', '.join(usual_steps(recipe))}]",
            key=KEY,
        )


def _absent(facts: StepFacts, recipe: Recipe) -> str:
    if facts.is_asked in (_has_labels, _may_conflict):
        return f"{recipe.entry.task} has no closed set of labels"
    return f"{facts.key} is off" if facts.name in ("cut", "near_duplicates") else f"{facts.key} is not set"


def explained_steps(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Each step of a resolved recipe, and why it stands where it does: what it has to come after, and why."""
    steps = steps_of(recipe)
    for place, name in enumerate(steps):
        whys: dict[str, list[str]] = {}
        for earlier, later, why in RULES:
            if later == name and earlier in steps[:place]:
                whys.setdefault(why, []).append(earlier)
        reasons = "; ".join(f"after {', '.join(names)}: {why}" for why, names in whys.items())
        yield name, f"{STEPS[name].summary}" + (f" ({reasons})" if reasons else "")
