"""The plan of several tasks, from the plan of each."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import samples

from luthier.plan.join import joined_plan
from luthier.plan.make import LIMITED, make_plan
from luthier.records import Plan
from luthier.spec.filler import Machine
from luthier.spec.load import LoadedRecipe
from luthier.spec.recipe import Recipe
from luthier.spec.resolve import ResolvedRecipe, resolve
from luthier.spec.tasks import joined, task_loaded

ENTRY = {"path": "support.csv", "input": "{message}", "task": "classification", "method": {"type": "sft"}}


def made(names: str = "ab", **sections: Any) -> tuple[dict[str, Plan], ResolvedRecipe]:
    """The plans of like tasks, and the recipe of all."""
    tree = {
        "name": "r",
        "model": {"name": "m"},
        "data": {"train": [{**ENTRY, "name": name, "label": "intent"} for name in names]},
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
    one, plan = plans["a"].prediction, joined_plan(plans, whole).prediction
    assert plan.train_seconds == pytest.approx(2 * one.train_seconds)
    assert plan.evaluate_seconds == pytest.approx(2 * one.evaluate_seconds)
    rest = one.total_seconds - one.train_seconds - one.evaluate_seconds
    assert plan.total_seconds == pytest.approx(2 * one.train_seconds + 2 * one.evaluate_seconds + rest)
    assert plan.peak_memory_gib == one.peak_memory_gib


def test_a_limit_of_tokens_is_that_of_all_tasks_together() -> None:
    plans, whole = made(train={"max_tokens": 30_000})
    assert plans["a"].prediction.trained_tokens == 30_000
    plan = joined_plan(plans, whole)
    assert plan.prediction.trained_tokens == 30_000
    assert [note for note in plan.notes if LIMITED in note] == [f"{LIMITED} after 1.5 of 3 epochs of all tasks."]


def test_a_budget_that_the_tasks_break_together_is_told() -> None:
    hours = made()[0]["a"].prediction.total_seconds * 1.3 / 3600
    plans, whole = made(objective={"budget": {"hours": hours}})
    assert all(plan.fits for plan in plans.values())
    plan = joined_plan(plans, whole)
    assert not plan.fits
    assert any(note.startswith("Time does not fit") for note in plan.notes)


def test_what_is_not_known_of_documents_hides_nothing_of_other_tasks() -> None:
    plans, whole = made()
    unknown = plans["a"].detectable.model_copy(update={"smallest_difference": math.nan})
    plans["a"] = plans["a"].model_copy(update={"detectable": unknown})
    assert joined_plan(plans, whole).detectable.assumption.startswith("task b: ")
    turned = dict(reversed(plans.items()))
    assert joined_plan(turned, whole).detectable.assumption.startswith("task b: ")


def test_projected_conflicts_hold_a_gradient_a_task() -> None:
    plain, apart = made(), made(multi_task={"loss": "pcgrad"})
    trainable = max(one.trainable_parameters for one in plain[0]["a"].candidates)
    more = joined_plan(*apart).prediction.peak_memory_gib - joined_plan(*plain).prediction.peak_memory_gib
    assert more == pytest.approx(2 * trainable * 4 / 2**30)
    assert trainable > 0
