"""What a recipe may ask of pruning, what shape comes out, and what the plan says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import samples
from pydantic import ValidationError

from luthier.errors import RecipeError
from luthier.plan.cost import usual_rates
from luthier.plan.make import make_plan
from luthier.plan.predict import key_of, predict, training_gib
from luthier.plan.pruning import pruning_gib, pruning_seconds, trained_shape
from luthier.plan.workload import workload
from luthier.plan_records import Plan
from luthier.spec.filler import Machine
from luthier.spec.load import LoadedRecipe, load_recipe
from luthier.spec.prune import FAMILIES, Prune, kept_channels, pruned_shape
from luthier.spec.resolve import ResolvedRecipe, resolve
from luthier.spec.tasks import task_loaded

TWO = {"train": [{"name": name, "path": f"{name}.csv", "task": "generation"} for name in "ab"]}
HALF: dict[str, Any] = {"layers": {"remove": 15}, "mlp": {"keep": 0.5}}


def resolved(section: dict[str, Any] | None, *, shape: Any = None, **sections: Any) -> ResolvedRecipe:
    recipe = samples.recipe(prune=section, **({"export": None} | sections))
    loaded = task_loaded(LoadedRecipe(recipe, Path("r.yaml"), "", ()), 0)
    machine, given = Machine(threads=2), shape or samples.shape()
    return resolve(loaded, samples.profile(), given, machine=machine, data_sha256={}, luthier_version="0")


def planned(section: dict[str, Any] | None, **sections: Any) -> Plan:
    return make_plan(resolved(section, **sections), samples.profile(), samples.shape(), matmul_gflops=50.0)


def test_what_is_open_is_filled_in_with_its_reason() -> None:
    made = resolved({"layers": {"remove": 2}, "heads": {"keep": 0.67}})
    assert made.recipe.prune is not None
    assert made.recipe.prune.model_dump(exclude_none=True) == {
        "layers": {"remove": 2, "by": "block_influence", "contiguous": False},
        "heads": {"keep": 0.67, "by": "activation"},
        "tokens": 16_384,
    }
    assert made.reasons["prune.mlp"] == "open on purpose: all of them stay"
    assert made.recipe.export == ("merged",)
    angular = resolved({"layers": {"remove": 2, "by": "angular"}}).recipe.prune
    assert angular is not None
    assert angular.layers is not None
    assert angular.layers.contiguous is True
    loss = resolved({"layers": {"remove": 2, "by": "loss"}}).recipe.prune
    assert loss is not None
    assert loss.tokens == 4_096
    weights = resolved({"mlp": {"keep": 0.5, "by": "magnitude"}})
    assert weights.recipe.prune is not None
    assert weights.recipe.prune.tokens is None
    assert "weights alone" in weights.reasons["prune.tokens"]


@pytest.mark.parametrize(
    ("section", "what", "way_out"),
    [
        ({"layers": {"remove": 30}}, "prune.layers.remove: 30 of the 30 layers", "fewer than 30"),
        (
            {"mlp": {"keep": 0.001}},
            "0.001 of 1536 channels are 0 (32 go at a time), which leaves none",
            "0.0208 to 0.979",
        ),
        ({"mlp": {"keep": 0.999}}, "which leaves all of them", "give a share"),
        ({"heads": {"keep": 0.1}}, "0.1 of 3 key-value heads are 0, which leaves none", "0.333 (1), 0.667 (2)"),
        ({"heads": {"keep": 0.9}}, "are 3, which leaves all of them", "possible shares: 0.333 (1), 0.667 (2)"),
    ],
)
def test_impossible_numbers_are_refused(section: dict[str, Any], what: str, way_out: str) -> None:
    with pytest.raises(RecipeError) as error:
        resolved(section)
    assert what in error.value.what
    assert way_out in str(error.value.way_out)
    assert error.value.what.startswith("r.yaml: ")


def test_numbers_of_heads_that_no_config_can_have_are_refused() -> None:
    """Of Llama 3.2 1B: transformers wants the hidden size to be a multiple of the number of heads."""
    shape = samples.shape(hidden_size=2048, num_heads=32, num_kv_heads=8, intermediate_size=8192, num_layers=16)
    with pytest.raises(
        RecipeError, match=r"0\.75 of 8 key-value heads are 6, and transformers opens no llama"
    ) as error:
        resolved({"heads": {"keep": 0.75}}, shape=shape)
    assert "0.125 (1), 0.25 (2), 0.5 (4)" in str(error.value.way_out)
    qwen = shape.model_copy(update={"architecture": "qwen3"})
    assert resolved({"heads": {"keep": 0.75}}, shape=qwen).recipe.prune is not None
    one = samples.shape(num_heads=3, num_kv_heads=1)
    with pytest.raises(RecipeError, match=r"prune\.heads\.keep") as error:
        resolved({"heads": {"keep": 0.5}}, shape=one)
    assert error.value.way_out == "leave prune.heads out"


def test_unknown_families_are_refused_by_name() -> None:
    with pytest.raises(RecipeError, match="is a 'phi3' model") as error:
        resolved(HALF, shape=samples.shape(architecture="phi3"))
    assert all(name in str(error.value.way_out) for name in FAMILIES)
    assert resolved(HALF, shape=samples.shape(architecture="gemma3")).recipe.prune is not None, "as GGUF files call it"


@pytest.mark.parametrize(
    ("section", "sections", "what"),
    [
        ({}, {}, "names nothing that goes"),
        ({"mlp": {"keep": 0.5, "by": "magnitude"}, "tokens": 64}, {}, "tokens has no effect"),
        (HALF, {"merge": {"runs": ["a"]}}, "with merge nothing is trained"),
        (HALF, {"model": {"name": "m", "load_in_4bit": True}}, "prune writes new weights"),
        (HALF, {"multi_task": {"adapters": "per_task"}, "data": TWO}, "not built for multi_task.adapters: per_task"),
        (HALF, {"export": ["adapter"]}, "an adapter beside a pruned base opens nowhere else"),
    ],
)
def test_what_does_not_go_together_is_refused(section: dict[str, Any], sections: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        samples.recipe(prune=section, **({"export": None} | sections))


def test_the_line_of_a_wrong_recipe_is_named(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("name: r\nmodel: m\ndata: d.csv\nprune: {layers: {remove: 0}}\n")
    with pytest.raises(RecipeError, match=r"r\.yaml:4: prune\.layers\.remove: Input should be greater than 0"):
        load_recipe(file)
    file.write_text("name: r\nmodel: m\ndata: d.csv\nprune: {layers: {remove: 1, by: chance}}\n")
    with pytest.raises(RecipeError, match="'block_influence', 'angular' or 'loss', found 'chance'"):
        load_recipe(file)


@pytest.mark.parametrize("method", ["dpo", "reward", "grpo"])
def test_methods_that_compare_answers_are_refused(method: str) -> None:
    rewards = {"rewards": [{"type": "exact"}]} if method == "grpo" else {"rejected": "other"}
    task = "generation" if method == "grpo" else "preference"
    entry = {"path": "support.csv", "name": "intent", "input": "{message}", "label": "intent", "task": task, **rewards}
    with pytest.raises(RecipeError, match=f"method {method} compares answers") as error:
        resolved(HALF, method={"type": method}, data={"train": [entry]}, objective={})
    assert "by one of distill, pretrain, sft," in str(error.value.way_out), "a head writes nothing"


def test_adapters_name_layers_of_what_is_left() -> None:
    with pytest.raises(RecipeError, match="has no layer 20, only 0 to 14"):
        resolved(HALF, adapter={"type": "lora", "layers_to_transform": [20]})


def test_channels_are_kept_in_blocks() -> None:
    shape = samples.shape()
    assert kept_channels(Prune.model_validate({"mlp": {"keep": 0.7}}), shape) == 1088  # 1075.2 to a multiple of 32
    odd = shape.model_copy(update={"intermediate_size": 1530})
    assert kept_channels(Prune.model_validate({"mlp": {"keep": 0.7}}), odd) == 1071


def test_parameters_of_the_smaller_shape_by_hand() -> None:
    """SmolLM2-135M without 6 layers, and with 1152 of 1536 channels and 2 of 3 key-value heads in the others."""
    prune = Prune.model_validate({"layers": {"remove": 6}, "mlp": {"keep": 0.75}, "heads": {"keep": 0.67}})
    smaller = pruned_shape(samples.shape(), prune)
    layer = 2 * 576 * 6 * 64 + 2 * 576 * 2 * 64 + 3 * 576 * 1152 + 2 * 576
    assert smaller.num_parameters == 49152 * 576 + 576 + 24 * layer
    assert (smaller.num_heads, smaller.num_kv_heads, smaller.head_dim, smaller.quantisation) == (6, 2, 64, "")
    assert smaller.sha256 != samples.shape().sha256
    assert pruned_shape(samples.shape(), None) == samples.shape()


def test_the_plan_says_how_much_smaller_and_faster_it_is() -> None:
    whole, half = planned(None), planned(HALF)
    assert half.prediction.train_seconds < 0.6 * whole.prediction.train_seconds
    assert half.prediction.train_memory_gib < whole.prediction.train_memory_gib
    (note,) = [one for one in half.notes if one.startswith("prune:")]
    assert "15 of 30 layers and 50% of the feed-forward channels go" in note
    assert "not predicted" in note
    assert not [one for one in whole.notes if one.startswith("prune:")]
    tuned = next(one for one in half.candidates if one.technique == half.chosen)
    assert tuned.speaks_for.startswith("heals a smaller")


def test_the_stage_and_the_systems_that_are_asked_more_are_counted() -> None:
    made, shape = resolved(HALF), samples.shape()
    work = workload(made, samples.profile(), tokens_per_char=0.25)
    estimate = predict(made, shape, work, gflops=50.0).prediction
    own = trained_shape(made, shape)
    assert own.num_layers == 15
    assert (
        estimate.peak_memory_gib >= pruning_gib(made, shape) > 4 * (shape.num_parameters + own.num_parameters) / 2**30
    )
    by_loss = resolved({"layers": {"remove": 15, "by": "loss"}, "tokens": 16_384})
    rates = usual_rates(50.0)
    cheap, dear = (pruning_seconds(one, shape, work, rates) for one in (made, by_loss))
    assert 0 < cheap < dear / 5
    assert pruning_seconds(resolved(None), shape, work, rates) == 0.0
    taylor = resolved({"mlp": {"keep": 0.5, "by": "taylor"}})
    assert pruning_seconds(taylor, shape, work, rates) > pruning_seconds(
        resolved({"mlp": {"keep": 0.5}}), shape, work, rates
    )
    assert training_gib(made, shape, work, recomputed=False) < training_gib(
        resolved(None), shape, work, recomputed=False
    )


def test_what_was_measured_of_the_whole_base_says_nothing_of_a_pruned_one() -> None:
    assert key_of(resolved(HALF)) != key_of(resolved(None))
    assert resolved(HALF).sha256 != resolved(None).sha256
