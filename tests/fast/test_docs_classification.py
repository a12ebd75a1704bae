"""What docs/classification.md says is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from luthier.evals.calibrate import MIN_ITEMS
from luthier.evals.metrics.calibration_error import BINS
from luthier.spec.load import load_recipe
from luthier.spec.methods.classify import Classify
from luthier.spec.methods.multi_label import MultiLabel
from luthier.spec.methods.regression import Regression
from luthier.spec.plugins import METRICS
from luthier.spec.recipe import Recipe

WHOLE = (Path(__file__).parents[2] / "docs" / "classification.md").read_text(encoding="utf-8")
PAGE, _, REST = WHOLE.partition("## Several labels, or none")
SEVERAL, _, NUMBERS = REST.partition("## Numbers")


def test_the_recipe_shown_is_read(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1], encoding="utf-8")
    method = load_recipe(tmp_path / "r.yaml").recipe.method
    assert method == Classify(label_smoothing=0.05, abstain_below=0.7)


def test_the_command_shown_asks_for_a_head() -> None:
    shown = re.search(r"`luthier run support-intents --set (\S+)`", PAGE)[1]
    from luthier.pipeline.start import recipe_path

    assert load_recipe(recipe_path("support-intents"), overrides=[shown]).recipe.method == Classify()


def test_every_value_shown_is_taken_and_every_setting_is_explained() -> None:
    shown = dict(re.findall(r"`method\.(\w+): ([^`]+)`", PAGE))
    for key, value in shown.items():
        Classify.model_validate({key: yaml.safe_load(value)})
    assert set(shown) | {"type"} == set(Classify.model_fields)


def test_numbers_and_names_are_those_of_the_code() -> None:
    assert f"With fewer than {MIN_ITEMS} validation rows" in PAGE
    assert f"({BINS} bins;" in PAGE
    for name in ("log_loss", "calibration_error", "coverage", "answered_accuracy"):
        assert f"`{name}`" in PAGE
        assert name in METRICS.names()


def test_degrees_are_given_as_shown(tmp_path: Path) -> None:
    shown = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])
    entry = {"path": "d.csv", "task": "classification", "input": "{message}", "label": "level"}
    tree = {"name": "r", "model": "m", **shown, "data": {**shown["data"], "train": [entry]}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    recipe = load_recipe(tmp_path / "r.yaml").recipe
    assert recipe.data.labels.order == ("low", "medium", "high", "critical")
    assert recipe.method == Classify(ordered=True)
    assert {"mae", "quadratic_kappa"} <= set(re.findall(r"`(\w+)`", PAGE)) & set(METRICS.names())


def recipe_in(text: str, folder: Path) -> Recipe:
    shown = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    (folder / "r.yaml").write_text(yaml.safe_dump({"name": "r", "model": "m", **shown}), encoding="utf-8")
    return load_recipe(folder / "r.yaml").recipe


def test_several_labels_and_numbers_are_given_as_shown(tmp_path: Path) -> None:
    several, number = recipe_in(SEVERAL, tmp_path), recipe_in(NUMBERS, tmp_path)
    assert (several.entry.task, several.data.labels.separator) == ("multi_label", ";")
    assert several.method == MultiLabel(threshold=0.5)
    assert (number.entry.task, number.method) == ("regression", Regression(huber_delta=1.5))
    shown = dict(re.findall(r"`method\.(\w+): ([^`]+)`", SEVERAL))
    for key, value in shown.items():
        MultiLabel.model_validate({key: yaml.safe_load(value)})
    assert set(shown) | {"type", "calibrate"} == set(MultiLabel.model_fields)
    assert "method.huber_delta" in NUMBERS
    assert {"mae", "rmse", "r_squared"} <= set(re.findall(r"`(\w+)`", NUMBERS)) & set(METRICS.names())
    assert "binary_log_loss" in METRICS.names()
