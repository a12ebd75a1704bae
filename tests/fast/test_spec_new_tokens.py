"""`model.new_tokens` in a recipe: what is filled in, and what it is not built together with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import samples
from pydantic import ValidationError

from luthier.pipeline.explain import explained
from luthier.spec.filler import Machine
from luthier.spec.load import LoadedRecipe
from luthier.spec.new_tokens import USUAL_COUNT, NewTokens
from luthier.spec.recipe import Recipe
from luthier.spec.resolve import ResolvedRecipe, resolve

TEXTS: dict[str, Any] = {
    "name": "r",
    "model": {"name": "m", "new_tokens": {}},
    "data": {"train": [{"path": "a.csv", "task": "domain", "input": "{message}"}]},
    "method": {"type": "pretrain"},
}


def resolved(tree: dict[str, Any]) -> ResolvedRecipe:
    loaded = LoadedRecipe(Recipe.model_validate(tree), Path("r.yaml"), "", ())
    return resolve(
        loaded, samples.profile(), samples.shape(), machine=Machine(threads=1), data_sha256={}, luthier_version="0"
    )


def test_its_presence_switches_it_on_and_everything_is_shown_with_a_reason() -> None:
    made = resolved(TEXTS)
    assert made.recipe.model.new_tokens == NewTokens(count=USUAL_COUNT, min_count=10, min_documents=5, terms=None)
    lines = [line for line in explained(made) if "model.new_tokens." in line]
    assert len(lines) == 4
    assert "about a hundredth of a usual vocabulary" in lines[0]
    named = resolved({**TEXTS, "model": {"name": "m", "new_tokens": {"terms": ["purfling"]}}}).recipe.model.new_tokens
    assert named is not None
    assert (named.count, named.most, named.file) == (0, 2, None)
    in_a_file = NewTokens(terms="terms.txt", count=3)
    assert (in_a_file.most, in_a_file.file) == (3, "terms.txt")
    assert resolved({**TEXTS, "model": {"name": "m"}}).recipe.model.new_tokens is None


@pytest.mark.parametrize(
    ("section", "what"),
    [
        ({"method": {"type": "dpo"}}, "is built for method pretrain and sft, not for dpo"),
        ({"method": {"type": "classify"}}, "not for classify"),
        ({"method": {"type": "grpo"}}, "not for grpo"),
        ({"method": {"type": "distill", "teacher": "t"}}, "not for distill"),
        ({"adapter": {"type": "ia3"}}, "adapter.type ia3 cannot learn model.new_tokens; take lora or full"),
        ({"adapter": {"type": "oft"}}, "adapter.type oft cannot learn"),
        ({"adapter": {"init_lora_weights": "pissa"}}, "together with adapter.init_lora_weights"),
        ({"adapter": {"modules_to_save": ["embed_tokens"]}}, "with embeddings in adapter.modules_to_save"),
        ({"adapter": {"target_modules": ["q_proj", "lm_head"]}}, "with embeddings in adapter.target_modules"),
        ({"adapter": {"target_modules": ".*"}}, "with embeddings in adapter.target_modules"),
        ({"adapter": {"type": "full", "layers_to_transform": [1]}}, "with adapter.layers_to_transform"),
        ({"train": {"bf16": True}}, "with train.bf16"),
        ({"train": {"torch_compile": True}}, "with train.torch_compile"),
        ({"train": {"neftune_noise_alpha": 5}}, "with train.neftune_noise_alpha"),
        ({"adapter": {"layers_to_transform": [1]}, "train": {"cache_trunk": True}}, "with train.cache_trunk"),
        ({"launch": {"strategy": "fsdp", "nproc_per_node": 2, "type": "torchrun"}}, "with launch.strategy fsdp"),
        ({"model": {"name": "m", "new_tokens": {}, "load_in_4bit": True}}, "with model.load_in_4bit"),
        ({"prune": {"layers": {"remove": 1}}}, "with prune"),
        ({"model": {"name": "m", "new_tokens": {"count": 0}}}, "looks for no word (count: 0) and names none"),
        ({"model": {"name": "m", "new_tokens": {"terms": []}}}, "is a list of words"),
        ({"model": {"name": "m", "new_tokens": {"terms": ["a", " "]}}}, "is a list of words"),
        ({"merge": {"runs": ["a", "b"]}}, "with merge"),
    ],
)
def test_what_it_is_not_built_with_is_refused(section: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(what)):
        Recipe.model_validate({**TEXTS, **section})


def test_several_tasks_and_cut_rows_are_refused() -> None:
    entries = [{"name": name, "path": f"{name}.csv"} for name in ("a", "b")]
    with pytest.raises(ValidationError, match=re.escape("with several tasks (data.train)")):
        Recipe.model_validate({**TEXTS, "data": {"train": entries}})
    with pytest.raises(ValidationError, match=re.escape("with data.too_long: cut")):
        Recipe.model_validate({**TEXTS, "data": {"train": entries[:1], "too_long": "cut_end"}})


def test_rows_may_learn_at_a_rate_of_their_own() -> None:
    rate = {"train": {"embedding_learning_rate": 0.001}}
    assert Recipe.model_validate({**TEXTS, **rate}).train.embedding_learning_rate == 0.001
    with pytest.raises(ValidationError, match="embedding_learning_rate is for embeddings that learn"):
        Recipe.model_validate({**TEXTS, **rate, "model": {"name": "m"}})
