"""The plan where each task has an adapter of its own: what adds up, what is held at a time, what is written."""

from __future__ import annotations

import pytest
import samples
from test_plan_join import made

from luthier.plan.join import head_parameters, joined_plan
from luthier.plan.make import LIMITED
from luthier.plan.own_adapters import own_adapters_notes
from luthier.plan.words import size

OWN = {"adapters": "per_task"}


def test_parameters_and_time_add_up_and_memory_is_that_of_one() -> None:
    plans, whole = made("abc", heads="b", multi_task=OWN)
    sizes = head_parameters(whole, [samples.profile()] * 3, samples.shape())
    plan = joined_plan(plans, whole, heads=sizes)
    chosen = next(one for one in plan.candidates if one.technique == plan.chosen)
    each = {
        name: next(one for one in own.candidates if one.technique == own.chosen).trainable_parameters
        for name, own in plans.items()
    }
    assert chosen.trainable_parameters == sum(each.values())
    assert each["b"] == each["a"] + sizes["b"]
    assert chosen.trains == "an adapter for each of a, b, c, a head for each of b"
    assert plan.chosen.startswith("an adapter a task: a (")
    assert plan.prediction.peak_memory_gib == max(one.prediction.peak_memory_gib for one in plans.values())
    assert plan.prediction.train_seconds == pytest.approx(sum(one.prediction.train_seconds for one in plans.values()))


def test_a_limit_of_tokens_is_that_of_each_task() -> None:
    plans, whole = made(train={"max_tokens": 30_000}, multi_task=OWN)
    plan = joined_plan(plans, whole, heads={})
    assert plan.prediction.trained_tokens == 60_000
    assert plan.prediction.train_seconds == pytest.approx(2 * plans["a"].prediction.train_seconds)
    limited = [note for note in plan.notes if LIMITED in note]
    assert limited
    assert [note.partition(":")[0] for note in limited] == ["a", "b"]


def test_the_size_of_what_is_kept_is_said_before() -> None:
    plans, whole = made(multi_task=OWN)
    plan = joined_plan(plans, whole, heads={})
    chosen = next(one for one in plan.candidates if one.technique == plan.chosen)
    adapters, merged = own_adapters_notes(whole, samples.shape(), plan)
    assert size(4 * chosen.trainable_parameters) in adapters
    assert f"for each task, of {size(4 * samples.shape().num_parameters)} in float32: 2 models" in merged
    files = made(multi_task=OWN, export=["adapter", "gguf", "gguf_q8_0"])[1]
    assert "export gguf, gguf_q8_0 writes" in own_adapters_notes(files, samples.shape(), plan)[1]
    assert ": 4 models;" in own_adapters_notes(files, samples.shape(), plan)[1]
    only = made(multi_task=OWN, export=["adapter"])[1]
    assert len(own_adapters_notes(only, samples.shape(), plan)) == 1
    assert own_adapters_notes(made()[1], samples.shape(), plan) == ()
