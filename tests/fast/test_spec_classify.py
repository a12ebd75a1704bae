"""What does not go with a classification head is refused when the recipe is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import samples
import yaml

from luthier.errors import RecipeError
from luthier.pipeline.order import STAGES
from luthier.spec.filler import Machine
from luthier.spec.load import load_recipe
from luthier.spec.resolve import ResolvedRecipe, resolve
from luthier.spec.tasks import joined
from luthier.store.runs import RunFolder


def recipe(folder: Path, **changes: Any) -> ResolvedRecipe:
    entry = {"path": "d.csv", "name": "intent", "task": "classification", "input": "{message}", "label": "intent"}
    tree = {"name": "r", "model": "m", "data": {"train": [entry]}, "method": "classify"}
    for key, value in changes.items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(tree.get(key), dict) else value  # type: ignore[dict-item]
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return resolve(
        load_recipe(path), samples.profile(), samples.shape(), machine=Machine(threads=1), data_sha256={},
        luthier_version="0",
    )  # fmt: skip


def test_a_name_alone_is_the_method_with_its_usual_settings(tmp_path: Path) -> None:
    method = recipe(tmp_path).recipe.method.model_dump()
    assert method == {
        "type": "classify", "label_smoothing": 0.0, "focal_gamma": 0.0, "logit_adjustment": 0.0, "ordered": False,
        "calibrate": True, "abstain_below": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "why", "way_out"),
    [
        (
            {"method": {"type": "classify", "logit_adjustment": 1.0}, "train": {"sampler": "balanced"}},
            r"method.logit_adjustment and train.sampler make up for the same thing", "keep one",
        ),
        (
            {"method": {"type": "classify", "logit_adjustment": 1.0}, "train": {"class_weight": "balanced"}},
            r"method.logit_adjustment and train.class_weight make up", "keep one",
        ),
        (
            {"adapter": {"modules_to_save": ["embed_tokens", "lm_head"]}},
            r"r.yaml:\d+: adapter.modules_to_save: 'lm_head' writes words, and a classification head reads no label",
            "leave it out",
        ),
        ({"data": {"canaries": {}}}, r"data.canaries are secrets that are written", "method: sft"),
        (
            {"data": {"train": [{"path": "d.csv", "task": "translation", "input": "{message}", "label": "intent"}]}},
            r"method 'classify' does not do 'translation'", "its tasks: classification, sentiment",
        ),
        (
            {"objective": {"targets": {"intent.perplexity": "<= 2"}}},
            r"'intent.perplexity' is not measured, a classification head writes nothing", "method: sft",
        ),
        (
            {"objective": {"targets": {"intent.coverage": ">= 0.7"}}},
            r"'intent.coverage' is not measured, this version always gives a label", "abstain_below: 0.7",
        ),
        (
            {"method": {"type": "classify", "ordered": True}},
            r"method.ordered learns by the order of the labels, and data.labels.order gives none", "LOWEST",
        ),
        (
            {"data": {"train": [{"path": "d.csv", "task": "generation", "input": "{message}", "label": "intent"}],
                      "labels": {"order": ["a", "b"]}}, "method": {"type": "sft"}},
            r"data.labels.order puts labels in order, and generation has none", "leave data.labels.order out",
        ),
        (
            {"objective": {"targets": {"intent.mae": "<= 0.5"}}},
            r"'intent.mae' is not measured, the labels have no order", "data.labels.order",
        ),
        ({"data": {"labels": {"order": ["a"]}}}, r"names at least two labels, each once", ""),
        ({"data": {"labels": {"order": ["a", "b", "a"]}}}, r"names at least two labels, each once", ""),
        ({"method": {"type": "classify", "abstain_below": 1.5}}, r"abstain_below", ""),
        ({"method": {"type": "sft", "focal_gamma": 1}}, r"focal_gamma", ""),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_named_with_a_way_out(
    tmp_path: Path, changes: dict[str, Any], why: str, way_out: str
) -> None:
    with pytest.raises(RecipeError, match=why) as caught:
        recipe(tmp_path, **changes)
    assert way_out in caught.value.way_out


def test_settings_of_a_head_are_part_of_what_prepare_depends_on(tmp_path: Path) -> None:
    """They stand in the contract; those of other methods do not, so their data is not prepared again."""
    run = RunFolder(tmp_path)

    def inputs(**method: Any) -> object:
        return STAGES["prepare"].inputs(run, recipe(tmp_path, method=method))

    assert inputs(type="classify") != inputs(type="classify", abstain_below=0.5) != inputs(type="sft")
    assert inputs(type="auto") == inputs(type="classify")  # which these rows suit


def test_a_head_stands_beside_other_tasks_each_with_its_own_method(tmp_path: Path) -> None:
    alone = recipe(tmp_path)
    loaded = load_recipe(tmp_path / "r.yaml")
    whole = joined(loaded, [alone, recipe(tmp_path, method="sft")])
    assert [part.recipe.method.type for part in whole.parts] == ["classify", "sft"]
    assert [entry.method.type for entry in whole.recipe.data.train] == ["classify", "sft"]
