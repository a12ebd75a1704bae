"""A recipe for documents: what is filled in, what does not go with them, and the methods that learn them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import samples
from data_kit import shape

from luthier.errors import RecipeError
from luthier.plan.lines import lines
from luthier.plan.make import make_plan
from luthier.spec.filler import Machine
from luthier.spec.load import LoadedRecipe
from luthier.spec.methods.pretrain import Pretrain
from luthier.spec.recipe import Recipe
from luthier.spec.resolve import ResolvedRecipe, resolve

PROFILE = {
    "shape": "plain_text", "task": "domain", "input": "{text}", "label": "", "labels": {}, "group_by": "",
    "columns": tuple(
        column.model_copy(update={"name": "text"}) for column in samples.profile().columns if column.name == "message"
    ),
}  # fmt: skip


def resolved(
    entry: dict[str, Any] | None = None, *, profile: dict[str, Any] | None = None, **tree: Any
) -> ResolvedRecipe:
    data = {"train": [{"path": "docs", **(entry or {})}], **tree.pop("data", {})}
    recipe = Recipe.model_validate({"name": "r", "model": {"name": "m"}, "data": data, **tree})
    return resolve(
        LoadedRecipe(recipe, Path("r.yaml"), "", ()), samples.profile(**(PROFILE | (profile or {}))), shape(),
        machine=Machine(threads=1), data_sha256={}, luthier_version="0",
    )  # fmt: skip


def test_documents_are_taken_as_they_are_found() -> None:
    made = resolved()
    entry = made.recipe.entry
    assert (entry.task, entry.input, entry.label, entry.system, entry.name) == ("domain", "{text}", "", "", "domain")
    assert made.recipe.method == Pretrain(replay=None)
    assert (made.recipe.evaluate.baselines, made.recipe.train.batch_size) == (("base",), 4)
    assert "labels" not in (made.recipe.data.steps or ())
    assert made.reasons["method.replay"] == "open on purpose"
    with_replay = resolved(method={"type": "pretrain", "replay": {"path": "general"}})
    assert (with_replay.recipe.data.steps or ())[-1] == "replay"


@pytest.mark.parametrize(
    ("entry", "tree", "words"),
    [
        ({"label": "b"}, {}, r"data\.train\[?\.?0\]?\.label does not go with task 'domain': documents have no answer"),
        ({"system": "Be kind."}, {}, "system does not go with task 'domain': documents are learned as they stand"),
        ({"roles_to_train": ["user", "assistant"]}, {}, "roles_to_train does not go with task 'domain'"),
        ({"mask_history": True}, {}, "mask_history does not go with task 'domain'"),
        ({}, {"data": {"augment": {}}}, r"data\.augment does not go with task 'domain': offspring"),
        ({}, {"data": {"canaries": {}}}, r"data\.canaries does not go with task 'domain': a canary is a question"),
        ({}, {"data": {"too_long": "cut_end"}}, r"data\.too_long does not go with task 'domain': long documents"),
        ({}, {"method": {"type": "sft"}}, "method 'sft' does not do 'domain'"),
        ({"task": "generation", "input": "{text}", "label": "b"}, {"method": {"type": "pretrain"}}, "does not do"),
        (
            {"task": "extraction", "input": "{text}", "label": "b"},
            {"evaluate": {"glossary": "t"}},
            r"evaluate\.glossary is for tasks domain, translation, generation, this is extraction",
        ),
        (
            {"task": "generation", "input": "{text}", "label": "b", "name": "x"},
            {"objective": {"targets": {"x.term_accuracy": ">= 0.5"}}},
            r"objective: 'x\.term_accuracy' is not measured, no glossary is given",
        ),
        (
            {"task": "generation", "input": "{text}", "label": "b", "name": "x"},
            {"objective": {"non_regression": {"x.term_accuracy": ">= 1x"}}},
            r"objective: 'x\.term_accuracy' is not measured, no glossary is given",
        ),
        ({}, {"objective": {"targets": {"domain.accuracy": ">= 0.5"}}}, "is not measured for domain"),
    ],
)
def test_what_does_not_go_with_documents_is_refused(entry: dict[str, Any], tree: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words) as error:
        resolved(entry, **tree)
    assert error.value.way_out


def test_a_text_must_be_found_or_named() -> None:
    unknown = {"shape": "unknown", "task": None, "input": ""}
    with pytest.raises(RecipeError, match="cannot tell which column is the text") as error:
        resolved({"task": "domain"}, profile=unknown)
    assert "data.train.0.input" in error.value.way_out
    assert resolved({"task": "domain", "input": "{text}"}, profile=unknown).recipe.entry.task == "domain"


def test_a_recipe_may_still_say_what_answers_what() -> None:
    made = resolved({"task": "generation", "input": "{text}", "label": "title"})
    assert (made.recipe.method.type, made.recipe.entry.label) == ("sft", "title")


def test_the_plan_counts_pieces_and_promises_no_accuracy() -> None:
    made = resolved(train={"max_length": 100, "num_train_epochs": 1})
    profile = samples.profile(**PROFILE, num_rows=10, mean_input_chars=4000.0).model_copy(
        update={"columns": tuple(one.model_copy(update={"mean_chars": 4000.0}) for one in PROFILE["columns"])}
    )
    plan = make_plan(made, profile, shape(), matmul_gflops=10.0)
    assert plan.detectable.num_test > 10, "pieces of 100 tokens of documents of a thousand"
    assert plan.prediction.trained_tokens == pytest.approx(0.7 * 10 * 4000 * 0.25, rel=0.3)
    said = "\n".join(lines(plan))
    assert "pieces of held-out documents" in said
    assert "McNemar" not in said
    assert "learns words and subjects from" in said


def test_replayed_texts_are_a_share_of_all_tokens_that_the_plan_counts() -> None:
    settings = {"max_length": 100, "num_train_epochs": 1}
    plain = resolved(train=settings)
    mixed = resolved(train=settings, method={"type": "pretrain", "replay": {"path": "general.csv", "share": 0.6}})
    profile = samples.profile(**PROFILE, num_rows=10, mean_input_chars=4000.0)
    tokens = [make_plan(one, profile, shape(), matmul_gflops=10.0).prediction.trained_tokens for one in (plain, mixed)]
    assert tokens[1] == pytest.approx(tokens[0] / 0.4, abs=3)
