"""What docs/domain-adaptation.md says is what there is."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from luthier.cli import app
from luthier.data.documents import CONTEXT
from luthier.data.vocabulary import FILE
from luthier.evals.glossary import DOCUMENTS, PIECES
from luthier.evals.terminology import read_terminology
from luthier.spec.fill_texts import WITH_TERMS, fill_texts
from luthier.spec.filler import Filler
from luthier.spec.load import limits_of, load_recipe
from luthier.spec.methods.pretrain import Pretrain
from luthier.spec.new_tokens import ADAPTERS_WITH, METHODS_WITH, USUAL_COUNT, NewTokens
from luthier.spec.recipe import Recipe

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


def test_what_is_said_of_new_tokens_is_what_there_is(tmp_path: Path) -> None:
    text = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[2]
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    new = load_recipe(tmp_path / "r.yaml").recipe.model.new_tokens
    assert new == NewTokens(count=USUAL_COUNT), "{} is the same, once it is resolved"
    part = PAGE.partition("## Words of your own as tokens")[2].partition("\n## ")[0]
    assert FILE in part
    assert all(f"`{name}`" in part for name in (*METHODS_WITH, *ADAPTERS_WITH))
    refused = part.partition("Refused with it")[2]
    given = re.findall(r"`((?:train|data|model|adapter|launch)\.\w+|merge|target_modules)", refused)
    assert sorted(given) == sorted(REFUSED)
    for asked in REFUSED.values():
        tree: dict[str, Any] = {
            "name": "r",
            "model": {"name": "m", "new_tokens": {}},
            "data": {"train": [{"path": "a.csv"}]},
        }
        Recipe.model_validate(tree)
        for section, values in asked.items():
            tree[section] = {**tree.get(section, {}), **values}
        with pytest.raises(ValidationError, match=r"model\.new_tokens is not built together with"):
            Recipe.model_validate(tree)


REFUSED: dict[str, dict[str, dict[str, object]]] = {
    "merge": {"merge": {"runs": ["a", "b"]}},
    "model.load_in_4bit": {"model": {"load_in_4bit": True}},
    "launch.strategy": {"launch": {"strategy": "fsdp", "type": "torchrun", "nproc_per_node": 2}},
    "train.bf16": {"train": {"bf16": True}},
    "train.torch_compile": {"train": {"torch_compile": True}},
    "train.cache_trunk": {"train": {"cache_trunk": True}, "adapter": {"layers_to_transform": [1]}},
    "train.neftune_noise_alpha": {"train": {"neftune_noise_alpha": 5.0}},
    "data.too_long": {"data": {"too_long": "cut_end"}},
    "adapter.modules_to_save": {"adapter": {"modules_to_save": ["lm_head"]}},
    "target_modules": {"adapter": {"target_modules": ["q_proj", "embed_tokens"]}},
}
"""What the page says is refused -> a recipe of it."""
