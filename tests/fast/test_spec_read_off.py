"""What does not go with several labels or a number is said before anything is read."""

from __future__ import annotations

from typing import Any

import pytest
import samples

from luthier.errors import RecipeError
from luthier.spec.resolve import ResolvedRecipe

ENTRY = {"path": "support.csv", "input": "{message}", "label": "intent", "name": "intent"}


def resolved(task: str, targets: dict[str, str] | None = None, **sections: Any) -> ResolvedRecipe:
    data = {"train": [{**ENTRY, "task": task}], **sections.pop("data", {})}
    return samples.resolved(
        **{"method": {"type": "auto"}, "objective": {"targets": targets or {}}, "data": data, **sections}
    )


@pytest.mark.parametrize(
    ("task", "baselines"),
    [("multi_label", ("majority", "tfidf_logreg", "base")), ("regression", ("mean", "tfidf_ridge", "base"))],
)
def test_each_task_has_its_head_its_baselines_and_a_question(task: str, baselines: tuple[str, ...]) -> None:
    made = resolved(task).recipe
    assert made.method.type == task
    assert made.evaluate.baselines == baselines
    assert made.entry.system
    assert made.data.clean == samples.resolved().recipe.data.clean
    assert made.data.labels.separator == ("," if task == "multi_label" else None)
    assert resolved(task, method={"type": "sft"}).recipe.method.type == "sft"


@pytest.mark.parametrize(
    ("task", "said", "words"),
    [
        ("regression", {"data": {"labels": {"separator": ";"}}}, "this task has one answer a row"),
        ("classification", {"data": {"labels": {"separator": ";"}}}, "this task has one answer a row"),
        ("regression", {"method": {"type": "classify"}}, "does not do 'regression'"),
        ("classification", {"method": {"type": "multi_label"}}, "does not do 'classification'"),
        ("multi_label", {"train": {"class_weight": "balanced"}}, "goes by label"),
        ("multi_label", {"targets": {"intent.mae": "<= 1"}}, "not measured for multi_label"),
        ("regression", {"targets": {"intent.accuracy": ">= 0.5"}}, "not measured for regression"),
        (
            "multi_label",
            {"targets": {"intent.binary_log_loss": "<= 0.5"}, "method": {"type": "sft"}},
            "labels that are written have no probabilities",
        ),
        (
            "regression",
            {"data": {"teacher": {"endpoint": "http://127.0.0.1:1/v1", "model": "m", "path": "more.csv"}}},
            "nobody holds to the labels or the numbers",
        ),
    ],
)
def test_what_does_not_go_with_it_is_refused(task: str, said: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        resolved(task, **said)


def test_targets_of_numbers_are_lower_or_higher_as_they_should_be() -> None:
    limits = resolved("regression", {"intent.mae": "<= 2", "intent.r_squared": ">= 0.3"}).limits
    assert [(one.metric, one.op) for one in limits] == [("mae", "<="), ("r_squared", ">=")]
