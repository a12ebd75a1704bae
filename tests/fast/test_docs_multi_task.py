"""What docs/multi-task.md says is what is taken."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from luthier.errors import RecipeError
from luthier.spec.load import load_recipe
from luthier.spec.multi_task import MultiTask
from luthier.spec.tasks import OWN_KEYS, of_tasks, task_recipe
from luthier.store.runs import HEADS

PAGE = (Path(__file__).parents[2] / "docs" / "multi-task.md").read_text(encoding="utf-8")


def shown(tmp_path: Path) -> Path:
    path = tmp_path / "desk.yaml"
    path.write_text(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1], encoding="utf-8")
    return path


def test_the_recipe_shown_is_read_and_each_task_has_its_own(tmp_path: Path) -> None:
    recipe = load_recipe(shown(tmp_path)).recipe
    assert [entry.name for entry in recipe.data.train] == ["intent", "mood", "reply"]
    splits = [task_recipe(recipe, place).data.split for place in range(3)]
    assert [split.group_by for split in splits] == ["customer_id", None, None]
    assert task_recipe(recipe, 2).data.test == "answers.test.jsonl"
    assert [entry.weight for entry in recipe.data.train] == [1.0, 0.5, 1.0]


def test_every_value_shown_is_taken() -> None:
    values = re.findall(r"`(sampling|loss|adapters): ([^`]+)`", PAGE)
    assert {key for key, _ in values} == set(MultiTask.model_fields)
    for key, value in values:
        MultiTask.model_validate({key: yaml.safe_load(value)})


def test_the_keys_an_entry_may_have_are_named() -> None:
    sentence = re.search(r"Every entry needs a name\.(.*?)may stand in an\nentry", PAGE, re.DOTALL)[1]
    assert set(re.findall(r"`(\w+)`", sentence)) == {*OWN_KEYS, "glossary"}


@pytest.mark.parametrize("names", [["mood"], ["intent", "reply"]])
def test_some_of_the_tasks_are_a_recipe_with_their_lines(tmp_path: Path, names: list[str]) -> None:
    loaded = load_recipe(shown(tmp_path))
    some = of_tasks(loaded, names)
    assert [entry.name for entry in some.recipe.data.train] == names
    assert {key.partition(".")[0] for key in some.recipe.objective.targets} <= set(names)
    for place, name in enumerate(names):
        before = [entry.name for entry in loaded.recipe.data.train].index(name)
        assert some.where(f"data.train.{place}.path") == loaded.where(f"data.train.{before}.path")
    assert (some.recipe.multi_task is None) == (len(names) == 1)


def test_the_recipe_with_heads_is_read_and_says_how_each_task_is_learned(tmp_path: Path) -> None:
    path = tmp_path / "mixed.yaml"
    path.write_text(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1], encoding="utf-8")
    recipe = load_recipe(path).recipe
    methods = [task_recipe(recipe, place).method for place in range(3)]
    assert [method.type for method in methods] == ["classify", "classify", "sft"]
    assert methods[1].abstain_below == 0.8


def test_files_of_heads_are_called_what_the_page_calls_them() -> None:
    assert f"`{HEADS}`" in PAGE


def test_the_recipe_with_an_adapter_each_is_read(tmp_path: Path) -> None:
    path = tmp_path / "each.yaml"
    path.write_text(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[2], encoding="utf-8")
    recipe = load_recipe(path).recipe
    assert recipe.has_own_adapters
    assert not task_recipe(recipe, 0).has_own_adapters


def test_what_the_page_says_does_not_go_with_an_adapter_each_is_refused(tmp_path: Path) -> None:
    text = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[2]
    refused = re.search(r"What needs shared weights is refused: (.*?)\n\n", PAGE, re.DOTALL)[1]
    changes = {
        "`sampling`": ("per_task}", "per_task, sampling: sqrt}"),
        "`loss: uncertainty`": ("per_task}", "per_task, loss: uncertainty}"),
        "`loss: pcgrad`": ("per_task}", "per_task, loss: pcgrad}"),
        "`weight` of an entry": ("method: sft}", "method: sft, weight: 2}"),
        "`adapter.type: full`": ("multi_task:", "adapter: {type: full}\nmulti_task:"),
        "`adapter.bias`": ("multi_task:", "adapter: {bias: all}\nmulti_task:"),
    }
    for said, change in changes.items():
        assert said in re.sub(r"\s+", " ", refused)
        assert change[0] in text
        path = tmp_path / "refused.yaml"
        path.write_text(text.replace(*change), encoding="utf-8")
        with pytest.raises(RecipeError, match="per_task"):
            load_recipe(path)
