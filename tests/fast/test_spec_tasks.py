"""A recipe of several tasks: what an entry says for itself, what is refused, and what the whole is made of."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import samples

from luthier.errors import RecipeError
from luthier.spec.filler import Machine
from luthier.spec.load import load_recipe
from luthier.spec.recipe import Recipe
from luthier.spec.resolve import ResolvedRecipe, resolve
from luthier.spec.tasks import OWN_KEYS, joined, of_tasks, refuse_strange_targets, task_loaded, task_recipe

TWO = """name: r
model: m
objective:
  targets: {a.accuracy: '>= 0.5', b.exact_match: '>= 0.1'}
  non_regression: {general.perplexity: '<= 2x'}
data:
  split: {test: 0.3, validation: 0.1}
  train:
    - {name: a, path: a.csv, task: classification, input: '{message}', label: intent}
    - name: b
      path: b.csv
      task: generation
      input: '{message}'
      label: intent
      weight: 3
      split: {test: 0.2, validation: 0.2}
method: sft
"""


def load(tmp_path: Path, text: str) -> Any:
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    return load_recipe(tmp_path / "r.yaml")


def resolved(loaded: Any) -> ResolvedRecipe:
    parts = [
        resolve(
            task_loaded(loaded, place), samples.profile(), samples.shape(), machine=Machine(threads=1),
            data_sha256={"data.train.0.path": samples.sha("d")}, luthier_version="0",
        )
        for place in range(len(loaded.recipe.data.train))
    ]  # fmt: skip
    return parts[0] if len(parts) == 1 else joined(loaded, parts)


OWN: dict[str, Any] = {
    "validation": "v.csv",
    "test": "t.csv",
    "split": {"test": 0.4, "group_by": "customer_id"},
    "limit": {"train": 9},
    "labels": {"min_rows": 3},
    "filter": {"min_chars": 4},
    "augment": {"typos": 0.5},
    "features": {"size": "length(message)"},
    "columns": {"day": "date"},
}


@pytest.mark.parametrize("key", OWN_KEYS)
def test_what_an_entry_says_is_what_all_would_be_told(key: str) -> None:
    assert set(OWN) == set(OWN_KEYS)
    entry = {"name": "a", "path": "a.csv", "input": "{message}", "label": "intent", "task": "classification"}
    needs = {"features": OWN["features"]} if key == "columns" else {}
    own = Recipe.model_validate(
        {"name": "r", "model": {"name": "m"}, "data": {"train": [{**entry, key: OWN[key], **needs}]}}
    )
    for_all = Recipe.model_validate(
        {"name": "r", "model": {"name": "m"}, "data": {"train": [entry], key: OWN[key], **needs}}
    )
    assert task_recipe(own, 0) == for_all
    assert task_recipe(for_all, 0) == for_all


def test_a_glossary_of_an_entry_takes_the_place_of_the_one_for_all(tmp_path: Path) -> None:
    text = TWO.replace("weight: 3", "glossary: own.txt")
    a, b = resolved(load(tmp_path, text)).parts
    assert (a.recipe.evaluate.glossary, b.recipe.evaluate.glossary) == (None, "own.txt")
    assert task_loaded(load(tmp_path, text), 1).where("evaluate.glossary").endswith("r.yaml:15")
    one = {"name": "r", "model": {"name": "m"}, "data": {"train": [{"path": "a.csv"}]}, "evaluate": {"level": 0.9}}
    own = {**one, "data": {"train": [{"path": "a.csv", "glossary": "t"}]}}
    for_all = {**one, "evaluate": {"level": 0.9, "glossary": "t"}}
    assert task_recipe(Recipe.model_validate(own), 0) == Recipe.model_validate(for_all)


def test_a_glossary_for_a_task_of_labels_is_refused_with_the_way_to_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"r\.yaml:18: evaluate\.glossary is for tasks .*this is class") as caught:
        resolved(load(tmp_path, TWO + "evaluate: {glossary: t}\n"))
    assert "data.train[i].glossary" in caught.value.way_out


def test_lines_about_terms_go_to_their_task(tmp_path: Path) -> None:
    text = TWO.replace("weight: 3", "glossary: own.txt").replace("'<= 2x'", "'<= 2x', b.term_accuracy: '>= 0.9x'")
    loaded = load(tmp_path, text)
    refuse_strange_targets(loaded)
    whole = resolved(loaded)
    assert [[limit.key for limit in part.limits] for part in whole.parts] == [
        ["a.accuracy", "general.perplexity"],
        ["b.exact_match", "general.perplexity", "b.term_accuracy"],
    ]
    assert [limit.key for limit in whole.limits] == [
        "a.accuracy", "general.perplexity", "b.exact_match", "b.term_accuracy",
    ]  # fmt: skip
    assert of_tasks(loaded, ["a"]).recipe.objective.non_regression == {"general.perplexity": "<= 2x"}
    with pytest.raises(RecipeError, match=r"r\.yaml:5: objective\.non_regression\.c\.term_accuracy names no"):
        refuse_strange_targets(load(tmp_path, text.replace("b.term", "c.term")))


def test_each_task_has_its_own_split_method_and_targets(tmp_path: Path) -> None:
    whole = resolved(load(tmp_path, TWO))
    a, b = whole.parts
    assert whole.names == ("a", "b")
    assert (a.recipe.data.split.test, b.recipe.data.split.test) == (0.3, 0.2)
    assert [part.recipe.entry.task for part in whole.parts] == ["classification", "generation"]
    assert [limit.key for limit in a.limits] == ["a.accuracy", "general.perplexity"]
    assert [limit.key for limit in b.limits] == ["b.exact_match", "general.perplexity"]
    assert [limit.key for limit in whole.limits] == ["a.accuracy", "general.perplexity", "b.exact_match"]
    assert a.recipe.train == b.recipe.train == whole.recipe.train
    assert ResolvedRecipe.model_validate_json(whole.to_json()) == whole


@pytest.mark.parametrize(
    "change",
    [
        ("weight: 3", "weight: 2"),
        ("test: 0.2", "test: 0.25"),
        ("model: m\n", "model: m\nmulti_task: {sampling: equal}\n"),
        ("model: m\n", "model: m\nmulti_task: {loss: pcgrad}\n"),
    ],
)
def test_what_is_said_of_tasks_is_part_of_the_runs_identity(tmp_path: Path, change: tuple[str, str]) -> None:
    assert resolved(load(tmp_path, TWO)).sha256 != resolved(load(tmp_path, TWO.replace(*change))).sha256


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("name: b", "name: a"), "two entries are called 'a'"),
        (("name: b", "name: general"), "'general' means something else"),
        (("model: m\n", "model: m\ntrain: {sampler: sqrt}\n"), "of several tasks multi_task.sampling draws"),
        (("model: m\n", "model: m\nmulti_task: {sampling: {a: 1}}\n"), "gives shares to a; the tasks are a, b"),
        (("model: m\n", "model: m\nmulti_task: {sampling: 0.5}\n"), "r.yaml:3: multi_task.sampling: is 'proportional'"),
        (("model: m\n", "model: m\nmulti_task: {losses: x}\n"), "unknown key 'multi_task.losses'"),
        (("  train:\n", "  test: t.csv\n  train:\n"), "test is one file, and there are several tasks"),
        (
            ("model: m\n", "model: m\nlaunch: {strategy: fsdp}\nmulti_task: {loss: pcgrad}\n"),
            "pcgrad compares whole gradients; with it launch.strategy is ddp",
        ),
        (
            ("data:\n", "data:\n  privacy: {action: pseudonymise, keep_mapping: m.enc}\n"),
            "keep_mapping is the file of one task's pseudonyms",
        ),
        (("weight: 3", "weight: 0"), "r.yaml:15: data.train.1.weight: Input should be greater than 0"),
    ],
)
def test_what_does_not_go_with_several_tasks_is_refused(tmp_path: Path, change: tuple[str, str], what: str) -> None:
    assert change[0] in TWO
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, TWO.replace(*change))
    assert what in caught.value.what


def test_losses_of_rewards_say_nothing_of_how_uncertain_a_task_is(tmp_path: Path) -> None:
    """Their gradient is that of the rewards, their value about 0: learned weights would grow without end."""
    loaded = load(tmp_path, TWO.replace("model: m\n", "model: m\nmulti_task: {loss: uncertainty}\n"))
    tasks: list[Any] = [
        SimpleNamespace(recipe=SimpleNamespace(method=SimpleNamespace(type=name))) for name in ("sft", "grpo")
    ]
    with pytest.raises(RecipeError, match=r"r.yaml:3: multi_task.loss uncertainty .* data.train.1 learns from rewards"):
        joined(loaded, tasks)


def test_one_task_has_nothing_to_share(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.train has one entry"):
        load(tmp_path, "name: r\nmodel: m\nmulti_task: {}\ndata: d.csv\n")


def test_what_one_task_counts_beside_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"r\.yaml:3: data\.train\.0\.weight is what a task counts beside others"):
        load(tmp_path, "name: r\nmodel: m\ndata: {train: [{path: d.csv, weight: 2}]}\n")


def test_a_method_of_an_entry_may_be_its_name_alone(tmp_path: Path) -> None:
    loaded = load(tmp_path, TWO.replace("weight: 3", "method: sft"))
    assert [part.recipe.method.type for part in resolved(loaded).parts] == ["sft", "sft"]
    assert loaded.recipe.data.train[1].method.type == "sft"


def test_what_an_entry_says_has_to_fit_the_rest(tmp_path: Path) -> None:
    loaded = load(tmp_path, TWO.replace("weight: 3", "columns: {day: date}"))
    with pytest.raises(RecipeError, match="columns are types for the expressions of features") as caught:
        task_loaded(loaded, 1)
    assert "r.yaml:" in caught.value.what


def test_the_order_of_the_tasks_decides_no_shared_setting(tmp_path: Path) -> None:
    loaded = load(tmp_path, TWO)
    a, b = resolved(loaded).tasks
    small = b.model_copy(
        update={"recipe": b.recipe.model_copy(update={"train": b.recipe.train.model_copy(
            update={"batch_size": 4, "learning_rate": 1e-5, "gradient_checkpointing": True})})}
    )  # fmt: skip
    one, other = joined(loaded, [a, small]), joined(loaded, [small, a])
    assert one.recipe.train == other.recipe.train
    assert (one.recipe.train.batch_size, one.recipe.train.gradient_checkpointing) == (4, True)
    for whole in (one, other):
        assert all(part.recipe.train == whole.recipe.train for part in whole.parts)
        assert {part.reasons["train.batch_size"] for part in whole.parts} == {
            "the smallest of those that the tasks would have"
        }


def test_a_target_of_no_task_is_named_with_its_line(tmp_path: Path) -> None:
    loaded = load(tmp_path, TWO.replace("b.exact_match", "c.exact_match"))
    with pytest.raises(
        RecipeError, match=r"r\.yaml:4: objective\.targets\.c\.exact_match names no data entry"
    ) as caught:
        refuse_strange_targets(loaded)
    assert caught.value.way_out == "entries: a, b"


def test_an_error_of_a_task_names_the_line_of_its_entry(tmp_path: Path) -> None:
    loaded = load(tmp_path, TWO.replace("      label: intent\n      weight", "      label: message\n      weight"))
    with pytest.raises(RecipeError, match=r"r\.yaml:13: data\.train\[0\]\.input"):
        resolved(loaded)
