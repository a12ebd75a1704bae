"""What the README says is what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from luthier.cli import app
from luthier.pipeline.start import recipe_path
from luthier.spec.load import load_recipe

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_recipe_shown_is_the_shipped_one_but_for_words(tmp_path: Path) -> None:
    shown = tmp_path / "recipe.yaml"
    shown.write_text(re.search(r"```yaml\n(.*?)```", README, re.DOTALL)[1], encoding="utf-8")
    ours, shipped = load_recipe(shown).recipe, load_recipe(recipe_path("support-intents")).recipe
    assert ours.objective == shipped.objective
    assert ours.data.split == shipped.data.split
    assert ours.data.privacy == shipped.data.privacy
    assert ours.model == shipped.model
    assert (ours.train.max_tokens, ours.export) == (shipped.train.max_tokens, shipped.export)


@pytest.mark.parametrize("words", sorted(set(re.findall(r"`luthier ([a-z]+)", README))))
def test_every_verb_named_exists(words: str) -> None:
    assert CliRunner().invoke(app, [words, "--help"]).exit_code == 0


def test_every_make_target_named_exists() -> None:
    text = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for target in set(re.findall(r"make ([a-z][a-z-]+)(?= |`|\n)", text)) - {"and"}:
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target


def test_ci_runs_the_readmes_test_command() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "    make test " in README


@pytest.mark.parametrize("name", [path.parent.name for path in (ROOT / "src/luthier/recipes").glob("*/recipe.yaml")])
def test_every_shipped_recipe_parses(name: str) -> None:
    assert load_recipe(recipe_path(name)).recipe.name == name


def test_every_benchmark_recipe_parses() -> None:
    for path in (ROOT / "benchmarks" / "recipes").glob("*.yaml"):
        assert load_recipe(path, environment={"LUTHIER_DATA": "data"}).recipe.name == path.stem
        assert yaml.safe_load(path.read_text(encoding="utf-8"))["objective"]["budget"]["hours"] <= 0.34


def test_the_picture_of_the_report_is_there() -> None:
    assert (ROOT / "docs" / "report.png").stat().st_size < 600_000
