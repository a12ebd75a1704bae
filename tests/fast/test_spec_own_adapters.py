"""An adapter for each task: what it goes with, and that each task then has the settings that it would have alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_spec_tasks import TWO, load, resolved

from luthier.errors import RecipeError
from luthier.pipeline.explain import explained
from luthier.pipeline.order import learning
from luthier.pipeline.transfer import transfer
from luthier.spec.plugins import METHODS
from luthier.spec.tasks import of_tasks

ALIKE = TWO.replace("      weight: 3\n", "")


def own(text: str = ALIKE, *, more: str = "", top: str = "") -> str:
    return text.replace("model: m\n", f"model: m\nmulti_task: {{adapters: per_task{more}}}\n{top}")


def test_one_adapter_is_shared_unless_the_recipe_says_otherwise(tmp_path: Path) -> None:
    assert not load(tmp_path, ALIKE).recipe.has_own_adapters
    assert not load(tmp_path, ALIKE.replace("model: m\n", "model: m\nmulti_task: {}\n")).recipe.has_own_adapters
    loaded = load(tmp_path, own())
    assert loaded.recipe.has_own_adapters
    assert not of_tasks(loaded, ["a"]).recipe.has_own_adapters
    assert resolved(loaded).sha256 != resolved(load(tmp_path, ALIKE)).sha256
    assert "multi_task.adapters = per_task" in explained(resolved(loaded))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (own(more=", sampling: sqrt"), "each has epochs of its own"),
        (own(more=", sampling: {a: 1, b: 2}"), "each has epochs of its own"),
        (own(more=", loss: pcgrad"), "loss: pcgrad weighs the losses of tasks that share weights"),
        (own(more=", loss: uncertainty"), "loss: uncertainty weighs the losses of tasks that share weights"),
        (own(top="adapter: {type: full}\n"), "adapter.type full trains the base itself"),
        (own(top="adapter: {bias: lora_only}\n"), "adapter.bias trains biases of the base"),
        (own(TWO), "data.train.1.weight says what a task counts beside others"),
    ],
)
def test_what_needs_shared_weights_is_refused(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text)
    assert what in caught.value.what


def test_rows_may_be_drawn_by_label_where_a_task_draws_for_itself(tmp_path: Path) -> None:
    sampled = "train: {sampler: sqrt}\n"
    assert load(tmp_path, own(top=sampled)).recipe.train.sampler == "sqrt"
    with pytest.raises(RecipeError, match=r"of several tasks multi_task\.sampling draws"):
        load(tmp_path, ALIKE.replace("model: m\n", f"model: m\n{sampled}"))


def test_each_task_has_the_settings_that_it_has_alone(tmp_path: Path) -> None:
    """From rewards is learned at another rate than from answers."""
    text = ALIKE.replace("name: b\n", "name: b\n      method: grpo\n      rewards: [{type: exact}]\n")
    shared, whole = resolved(load(tmp_path, text)), resolved(load(tmp_path, own(text)))
    rates = [METHODS.get(name).learning_rates for name in ("grpo", "sft")]
    assert rates[0] != rates[1], "the two methods must differ for this test to say anything"
    assert len({part.recipe.train.learning_rate for part in shared.parts}) == 1
    assert len({part.recipe.train.learning_rate for part in whole.parts}) == 2
    for name, part in zip("ab", whole.parts, strict=True):
        alone = resolved(of_tasks(load(tmp_path, own(text)), [name]))
        assert part.recipe.train == alone.recipe.train
        assert learning(part) == learning(alone)


def test_what_decides_whether_training_runs_again_holds_the_settings_of_each_task(tmp_path: Path) -> None:
    whole = resolved(load(tmp_path, own()))
    first, second = whole.tasks
    slower = second.recipe.model_copy(update={"train": second.recipe.train.model_copy(update={"learning_rate": 1e-6})})
    changed = whole.model_copy(update={"tasks": (first, second.model_copy(update={"recipe": slower}))})
    assert learning(changed) != learning(whole)


def test_transfer_measures_nothing_between_adapters_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(own(), encoding="utf-8")
    with pytest.raises(RecipeError, match="transfer is what tasks do to each other in one adapter") as caught:
        transfer(str(path), overrides=(), out=tmp_path / "runs", offline=True, say=lambda line: None)
    assert "adapters: shared" in str(caught.value.way_out)
    assert not (tmp_path / "runs").exists()
