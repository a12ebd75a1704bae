"""What cannot be a GGUF file is said by `luthier check`, before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import samples
import yaml
from gguf_kit import write_gguf

from command import call, paper_model
from luthier.errors import ModelError, RecipeError
from luthier.pipeline.exporting import refuse_unready_exports
from luthier.records import ModelShape
from luthier.spec.export_rules import refuse_unfit_exports
from luthier.spec.new_tokens import NewTokens
from luthier.spec.plugins import EXPORTS
from luthier.spec.prune import Prune, pruned_shape
from luthier.spec.recipe import Recipe
from tiny import write_model, write_recipe


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_recipe(tmp_path, paper_model(tmp_path / "model"))
    return tmp_path


def change(file: Path, **changes: Any) -> None:
    tree = json.loads(file.read_text())
    file.write_text(json.dumps(tree | changes))


def with_export(place: Path, *names: str, **changes: Any) -> None:
    tree = yaml.safe_load((place / "tiny.yaml").read_text()) | {"export": list(names)} | changes
    (place / "tiny.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))


def test_check_shows_the_form(place: Path) -> None:
    with_export(place, "adapter", "gguf", "gguf_q8_0")
    shown = call("check", "tiny.yaml", "--explain", cwd=place).succeeds().out
    assert "gguf_q8_0" in shown


def test_check_lists_the_forms_that_there_are(place: Path) -> None:
    with_export(place, "gguf_q4")
    call("check", "tiny.yaml", cwd=place).fails(
        2, "unknown export 'gguf_q4'", "adapter, gguf, gguf_f32, gguf_q8_0, merged"
    )


def test_a_head_is_refused_and_where_the_method_is_open_words_are_taken(place: Path) -> None:
    with_export(place, "merged", "gguf", method={"type": "classify"})
    call("check", "tiny.yaml", cwd=place).fails(
        2, "export: gguf: method classify answers by a head", "take a method that answers in words"
    )
    with_export(place, "gguf", method={"type": "auto"})
    tree = yaml.safe_load(call("check", "tiny.yaml", "--json", cwd=place).succeeds().out)
    assert tree["recipe"]["method"]["type"] == "sft"


def test_a_tokenizer_or_a_config_that_cannot_be_written_is_refused(place: Path) -> None:
    with_export(place, "gguf")
    change(place / "model/config.json", rope_scaling={"type": "yarn", "factor": 2.0})
    call("check", "tiny.yaml", cwd=place).fails(2, "cannot be written as GGUF: its rope_type is 'yarn'")
    change(place / "model/config.json", rope_scaling=None)
    call("check", "tiny.yaml", cwd=place).succeeds()
    change(place / "model/tokenizer.json", normalizer={"type": "NFKC"})
    call("check", "tiny.yaml", cwd=place).fails(
        2, "tokenizer.json cannot go into a GGUF file: it splits by", "after NFKC"
    )
    with_export(place, "merged")
    call("check", "tiny.yaml", cwd=place).succeeds()


def recipe_for(*names: str, method: str = "sft") -> Recipe:
    return samples.resolved().recipe.model_copy(
        update={"export": names, "method": samples.resolved().recipe.method.model_copy(update={"type": method})}
    )


@pytest.mark.parametrize(
    ("changes", "what", "way_out"),
    [
        ({"architecture": "gemma3_text"}, "is a gemma3_text, written for llama.cpp are llama, qwen2, qwen3", "leave"),
        ({"intermediate_size": 1000}, "has rows of 1000 weights, and 32 share a scale", "export gguf instead"),
        ({"hidden_size": 100}, "has rows of 100 weights", "export gguf instead"),
    ],
)
def test_a_base_that_does_not_fit_is_refused(changes: dict[str, Any], what: str, way_out: str) -> None:
    shape: ModelShape = samples.shape()
    refuse_unfit_exports(recipe_for("merged", *EXPORTS.names()), shape)
    with pytest.raises(RecipeError) as caught:
        refuse_unfit_exports(recipe_for("merged", "gguf_q8_0"), shape.model_copy(update=changes))
    assert what in caught.value.what
    assert way_out in caught.value.way_out
    assert caught.value.key == "export.1"
    refuse_unfit_exports(recipe_for("merged"), shape.model_copy(update=changes))


def test_what_pruning_leaves_and_words_of_its_own_are_looked_at() -> None:
    recipe, shape = recipe_for("gguf_q8_0"), samples.shape(intermediate_size=1024)
    prune = Prune.model_validate({"mlp": {"keep": 0.53125}})
    assert pruned_shape(shape, prune).intermediate_size == 544
    refuse_unfit_exports(recipe.model_copy(update={"prune": prune}), shape)
    odd = Prune.model_validate({"heads": {"keep": 2 / 3}})
    narrow = shape.model_copy(update={"head_dim": 8})
    with pytest.raises(RecipeError, match="has rows of 48 weights"):
        refuse_unfit_exports(recipe.model_copy(update={"prune": odd}), narrow.model_copy(update={"num_kv_heads": 3}))
    grown = recipe.model_copy(update={"model": recipe.model.model_copy(update={"new_tokens": NewTokens()})})
    with pytest.raises(RecipeError, match=r"cut words that model\.new_tokens added in pieces again"):
        refuse_unfit_exports(grown, shape)


def test_a_base_in_gguf_is_looked_at_by_its_header(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    resolved = samples.resolved()
    asked = resolved.model_copy(update={"recipe": recipe_for("gguf")})
    for pre, fits in (("smollm", True), ("deepseek-llm", False)):
        file = write_gguf(tmp_path / f"{pre}.gguf", folder, pre=pre)
        shape = samples.shape().model_copy(update={"path": str(file)})
        if fits:
            refuse_unready_exports(asked, shape)
            continue
        with pytest.raises(ModelError, match="tokenizer 'gpt2' with pre-tokenizer 'deepseek-llm' cannot be written"):
            refuse_unready_exports(asked, shape)
        refuse_unready_exports(resolved.model_copy(update={"recipe": recipe_for("merged")}), shape)


def test_check_says_what_is_to_be_installed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    whole = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "xllamacpp" else whole(name, *a))
    with_export(place, "gguf")
    call("check", "tiny.yaml", cwd=place).fails(2, "needs the package 'xllamacpp'", "pip install 'luthier[gguf]'")
    with_export(place, "merged")
    call("check", "tiny.yaml", cwd=place).succeeds()


def test_nothing_here_needs_torch() -> None:
    import subprocess
    import sys

    program = (
        "import sys; import luthier.pipeline.exporting; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
