"""What docs/domain-adaptation.md says is what there is."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from luthier.cli import app
from luthier.data.documents import CONTEXT
from luthier.evals.glossary import DOCUMENTS, PIECES
from luthier.evals.terminology import read_terminology
from luthier.spec.fill_texts import WITH_TERMS, fill_texts
from luthier.spec.filler import Filler
from luthier.spec.load import limits_of, load_recipe
from luthier.spec.methods.pretrain import Pretrain

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "domain-adaptation.md").read_text(encoding="utf-8")


def test_the_recipe_shown_is_read_and_nothing_in_it_is_foreign_to_documents(tmp_path: Path) -> None:
    import samples
    from test_spec_texts import PROFILE

    (tmp_path / "r.yaml").write_text(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1], encoding="utf-8")
    recipe = load_recipe(tmp_path / "r.yaml").recipe
    assert isinstance(recipe.method, Pretrain)
    assert recipe.method.replay is not None
    assert (recipe.method.replay.share, recipe.evaluate.glossary) == (0.2, "terms.txt")
    filler = Filler(recipe)
    fill_texts(filler, samples.profile(**PROFILE))
    assert filler.tree["data"]["train"][0]["task"] == "domain"


@pytest.mark.parametrize("verb", sorted(set(re.findall(r"luthier ([a-z]+)", PAGE))))
def test_every_verb_named_exists(verb: str) -> None:
    assert CliRunner().invoke(app, [verb, "--help"]).exit_code == 0


def test_the_recipe_for_translations_is_read_and_its_limits_are_known(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1], encoding="utf-8")
    loaded = load_recipe(tmp_path / "r.yaml")
    assert [limit.text for limit in limits_of(loaded.recipe)] == ["de.term_accuracy >= 0.9", "de.term_accuracy >= 1x"]
    assert (loaded.recipe.entry.task, loaded.recipe.evaluate.glossary) == ("translation", "terms.tsv")


def test_what_is_said_of_terms_is_what_is_counted() -> None:
    shown = re.search(r"`(sound post<tab>.*?)`", PAGE)[1].replace("<tab>", "\t")
    terms = read_terminology(f"# remark\n{shown}\nbow\tBogen\npost\tPfosten\n", name="t.tsv", task="translation")
    assert terms.find("An elbow, a sound post, a BOW") == ("sound post", "bow")
    assert terms.kept(("bow", "sound post"), "Bogenhaar am Stimmstock") == {"sound post"}
    assert terms.statistics([("bow", "bow")], ["Der Bogen, er"]).tolist() == [[2, 2]]
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == set(WITH_TERMS)
    assert read_terminology("弓\tbow\n", name="t.tsv", task="translation").find("新弓弦") == ("弓",)


def test_the_numbers_of_the_rules_are_those_of_the_code() -> None:
    assert (CONTEXT, DOCUMENTS, PIECES) == (8, 3, 3)
    assert "the last eighth of `max_length`" in PAGE
    assert "at least three training documents use and the tokenizer cuts into three or more tokens" in PAGE


def test_every_number_measured_stands_in_the_results() -> None:
    with (ROOT / "benchmarks" / "results" / "domain.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    table = [line for line in PAGE.splitlines() if line.startswith("| ") and "[" in line]
    assert table
    kept = {value for row in rows for value in row.values()}
    for line in table:
        for cell in re.findall(r"-?\d\S* \[[^\]]+\]", line):
            assert cell in kept, cell
