"""What a run with new tokens is refused for before anything is trained, and what it is not taken up for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import samples
import yaml
from tokenizers import Tokenizer, models
from typer.testing import CliRunner

from luthier.cli import app
from luthier.data.shards import Example
from luthier.errors import DataError, ModelError, RunError
from luthier.pipeline.behind import as_trained
from luthier.pipeline.vocabulary import refuse_too_long_for_base
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.files import write_atomic
from luthier.store.runs import RunFolder
from tiny import write_model, write_recipe


def recipe(folder: Path, **new: Any) -> Path:
    path = write_recipe(folder, write_model(folder / "model"))
    tree = yaml.safe_load(path.read_text())
    tree["model"]["new_tokens"] = new
    path.write_text(yaml.safe_dump(tree))
    return path


def test_check_refuses_a_tokenizer_that_cannot_grow(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    assert CliRunner().invoke(app, ["check", str(path)]).exit_code == 0
    Tokenizer(models.Unigram([("a", 0.0)])).save(str(tmp_path / "model" / "tokenizer.json"))
    refused = CliRunner().invoke(app, ["check", str(path)]).exception
    assert isinstance(refused, ModelError)
    assert "only byte-level BPE is built" in refused.what


def test_a_missing_file_of_terms_is_named(tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["check", str(recipe(tmp_path, terms="terms.txt"))]).exception
    assert isinstance(refused, DataError)
    assert "model.new_tokens.terms: 'terms.txt': it does not exist" in refused.what


def test_a_row_that_the_base_has_no_places_for_is_refused() -> None:
    """Sixty new tokens of nine pieces, and a base with 512 positions."""
    row = Example(
        line=7, group="g", text="", answer="", prompt_tokens=0, input_ids=[400] * 60, supervised=[True] * 60,
        contaminated="",
    )  # fmt: skip
    refuse_too_long_for_base([row], samples.shape(max_positions=540), {400: tuple(range(9))})
    with pytest.raises(DataError, match=r"line 7 \(test\): 60 tokens are 540 to the base's own tokenizer"):
        refuse_too_long_for_base([row], samples.shape(max_positions=512), {400: tuple(range(9))})


def test_such_a_run_stands_behind_no_other(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "r" / "1")
    run.path.mkdir(parents=True)
    made = samples.resolved()
    tree = json.loads(made.to_json())
    tree["recipe"]["model"]["new_tokens"] = {"count": 3}
    write_atomic(run.resolved, ResolvedRecipe.model_validate(tree).to_json())
    run.train.mkdir()
    write_atomic(run.train_result, samples.train_result().to_json())
    with pytest.raises(RunError, match="learned words that its base does not have") as error:
        as_trained(run)
    assert "'merged'" in (error.value.way_out or "")
