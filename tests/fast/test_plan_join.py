"""The plan of several tasks, from the plan of each."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import samples

from luthier.plan.join import head_parameters, joined_plan
from luthier.plan.make import LIMITED, make_plan
from luthier.plan_records import Plan
from luthier.spec.filler import Machine
from luthier.spec.load import LoadedRecipe
from luthier.spec.recipe import Recipe
from luthier.spec.resolve import ResolvedRecipe, resolve
from luthier.spec.tasks import joined, task_loaded

ENTRY = {"path": "support.csv", "input": "{message}", "task": "classification", "method": {"type": "sft"}}


def made(names: str = "ab", *, heads: str = "", **sections: Any) -> tuple[dict[str, Plan], ResolvedRecipe]:
    """The plans of like tasks, some of them with heads, and the recipe of all."""
    by_head = {"method": {"type": "classify"}}
    tree = {
        "name": "r",
        "model": {"name": "m"},
        "data": {
            "train": [
                {**ENTRY, "name": name, "label": "intent", **(by_head if name in heads else {})} for name in names
            ]
        },
        **sections,
    }
    loaded = LoadedRecipe(Recipe.model_validate(tree), Path("r.yaml"), "", ())
    parts = [
        resolve(
            task_loaded(loaded, place), samples.profile(), samples.shape(), machine=Machine(threads=1),
            data_sha256={}, luthier_version="0",
        )
        for place in range(len(names))
    ]  # fmt: skip
    whole = joined(loaded, parts)
    plans = {
        name: make_plan(part, samples.profile(), samples.shape(), matmul_gflops=50.0)
        for name, part in zip(names, whole.parts, strict=True)
    }
    return plans, whole


def test_what_is_done_once_is_counted_once() -> None:
    plans, whole = made()
    one, plan = plans["a"].prediction, joined_plan(plans, whole, heads={}).prediction
    assert plan.train_seconds == pytest.approx(2 * one.train_seconds)
    assert plan.evaluate_seconds == pytest.approx(2 * one.evaluate_seconds)
    rest = one.total_seconds - one.train_seconds - one.evaluate_seconds
    assert plan.total_seconds == pytest.approx(2 * one.train_seconds + 2 * one.evaluate_seconds + rest)
    assert plan.peak_memory_gib == one.peak_memory_gib


def test_a_limit_of_tokens_is_that_of_all_tasks_together() -> None:
    plans, whole = made(train={"max_tokens": 30_000})
    assert plans["a"].prediction.trained_tokens == 30_000
    plan = joined_plan(plans, whole, heads={})
    assert plan.prediction.trained_tokens == 30_000
    assert [note for note in plan.notes if LIMITED in note] == [f"{LIMITED} after 1.5 of 3 epochs of all tasks."]


def test_a_budget_that_the_tasks_break_together_is_told() -> None:
    hours = made()[0]["a"].prediction.total_seconds * 1.3 / 3600
    plans, whole = made(objective={"budget": {"hours": hours}})
    assert all(plan.fits for plan in plans.values())
    plan = joined_plan(plans, whole, heads={})
    assert not plan.fits
    assert any(note.startswith("Time does not fit") for note in plan.notes)


def test_what_is_not_known_of_documents_hides_nothing_of_other_tasks() -> None:
    plans, whole = made()
    unknown = plans["a"].detectable.model_copy(update={"smallest_difference": math.nan})
    plans["a"] = plans["a"].model_copy(update={"detectable": unknown})
    assert joined_plan(plans, whole, heads={}).detectable.assumption.startswith("task b: ")
    turned = dict(reversed(plans.items()))
    assert joined_plan(turned, whole, heads={}).detectable.assumption.startswith("task b: ")


def test_projected_conflicts_hold_a_gradient_a_task() -> None:
    plain, apart = made(), made(multi_task={"loss": "pcgrad"})
    trainable = max(one.trainable_parameters for one in plain[0]["a"].candidates)
    more = (
        joined_plan(*apart, heads={}).prediction.peak_memory_gib
        - joined_plan(*plain, heads={}).prediction.peak_memory_gib
    )
    assert more == pytest.approx(2 * trainable * 4 / 2**30)
    assert trainable > 0


@pytest.mark.parametrize(
    ("heads", "words"), [("b", "an adapter for all, a head for each of b"), ("", "an adapter for all")]
)
def test_an_adapter_is_counted_once_and_each_head_too(heads: str, words: str) -> None:
    plans, whole = made("abc", heads=heads)
    sizes = head_parameters(whole, [samples.profile()] * 3, samples.shape())
    assert sizes == dict.fromkeys(heads, samples.shape().hidden_size * len(samples.profile().labels))
    plan = joined_plan(plans, whole, heads=sizes)
    adapter = next(one for one in plans["a"].candidates if one.technique == plans["a"].chosen).trainable_parameters
    together = next(one for one in plan.candidates if one.technique == plan.chosen)
    assert together.trainable_parameters == adapter + sum(sizes.values())
    assert together.trains == words


def test_two_heads_without_words_are_one_adapter_and_both() -> None:
    plans, whole = made(heads="ab")
    sizes = head_parameters(whole, [samples.profile()] * 2, samples.shape())
    plan = joined_plan(plans, whole, heads=sizes)
    together = next(one for one in plan.candidates if one.technique == plan.chosen)
    assert together.trains == "an adapter for all, a head for each of a, b"
    one = next(one for one in plans["a"].candidates if one.technique == plans["a"].chosen).trainable_parameters
    assert together.trainable_parameters == one + sizes["b"]
