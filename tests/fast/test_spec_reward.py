"""A reward model is what a recipe asks for by name; what it cannot do is said before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import samples
from test_data_preference import resolved, row

from luthier.data.profile import profile
from luthier.errors import RecipeError
from luthier.plan import cost
from luthier.plan.make import make_plan
from luthier.plan.predict import learner_of
from luthier.plan.search import why_no_search
from luthier.plan.workload import workload
from luthier.spec.plugins import METHODS
from luthier.spec.recipe import Recipe
from luthier.spec.resolve import ResolvedRecipe
from luthier.spec.suits import suited

ROWS = [row(n) for n in range(60)]


def made(folder: Path, **more: Any) -> ResolvedRecipe:
    return resolved(folder, ROWS, **{"method": {"type": "reward"}, **more})


def test_nothing_chooses_it_and_beside_it_nothing_else_is_weighed(tmp_path: Path) -> None:
    assert resolved(tmp_path, ROWS).recipe.method.type == "dpo"
    names = [one.facts.name for one in suited("preference", num_labels=0, train_rows=100)]
    assert names == ["dpo", "kto", "orpo", "simpo"]
    assert [one.facts.name for one in suited("preference", num_labels=0, train_rows=100, given="dpo")] == names
    (alone,) = suited("preference", num_labels=0, train_rows=100, given="reward")
    assert (alone.facts.name, "scores answers and writes none" in alone.why) == ("reward", True)
    found = make_plan(made(tmp_path), profile(tmp_path / "data.jsonl"), samples.shape(), matmul_gflops=100.0)
    assert [one.technique for one in found.candidates] == ["lora reward", "do not fine-tune: zero-shot"]
    assert "learns which answer is better" in found.candidates[0].speaks_for
    assert "scores answers that others write, and writes none" in found.candidates[0].speaks_against


@pytest.mark.parametrize(
    ("said", "words", "way_out"),
    [
        (
            {"objective": {"targets": {"preference.perplexity": "<= 9"}}},
            "'preference.perplexity' is not measured, a reward model writes nothing",
            "ask for preference_accuracy, or set method: dpo",
        ),
        (
            {"adapter": {"modules_to_save": ["lm_head"]}},
            "a head that scores answers reads nothing off it",
            "or set method: dpo",
        ),
        ({"entry": {"rewards": [{"type": "exact"}]}}, "rewards verify free answers, and preference has none", ""),
        ({"entry": {"task": "generation", "rejected": None}}, "method 'reward' does not do 'generation'", "preference"),
        ({"data": {"canaries": {"count": 2}}}, "data.canaries does not go with preferences", ""),
    ],
)
def test_what_does_not_go_with_it_is_refused(tmp_path: Path, said: dict[str, Any], words: str, way_out: str) -> None:
    with pytest.raises(RecipeError, match=words) as refused:
        made(tmp_path, **said)
    assert way_out in refused.value.way_out


def test_a_search_does_not_weigh_scoring_against_writing() -> None:
    tree = {"name": "r", "model": {"name": "m"}, "data": {"train": [{"path": "d.jsonl"}]}, "method": {"type": "reward"}}
    for names, why in ((["lora reward", "loha reward"], ""), (["lora dpo", "lora reward"], "no metric says which")):
        said = why_no_search(Recipe.model_validate({**tree, "search": {"candidates": names, "hours": 1.0}}))
        assert why in said
        assert bool(why) == bool(said)


def test_what_holds_for_methods_that_measure_from_the_base_does_not_hold_for_it(tmp_path: Path) -> None:
    for said in ({"train": {"neftune_noise_alpha": 5.0}}, {"launch": {"strategy": "fsdp", "nproc_per_node": 2}}):
        assert made(tmp_path, **said).recipe.method.type == "reward"


def test_the_plan_counts_both_answers_the_prompt_once_and_no_scores_of_the_vocabulary(tmp_path: Path) -> None:
    given, found = made(tmp_path), None
    found = profile(tmp_path / "data.jsonl")
    ours = workload(given, found, tokens_per_char=0.3)
    dpo = workload(resolved(tmp_path, ROWS), found, tokens_per_char=0.3)
    assert (ours.head, ours.is_paired, ours.reference_rows) == (True, True, 0)
    assert ours.computed_tokens == dpo.computed_tokens
    assert (ours.supervised_tokens, dpo.supervised_tokens > 0) == (0.0, True)
    assert cost.linear_seconds(ours) == 0.0
    shape, rates = samples.shape(), cost.usual_rates(100.0)
    once = cost.forward_flops(shape, tokens=ours.prompt_tokens, context=ours.prompt_tokens, with_logits=0)
    asked = cost.tuned_seconds(shape, ours, rates) * rates.score * 1e9
    assert (
        2 * once
        < asked
        < 2 * once + 2 * cost.forward_flops(shape, tokens=ours.answer_tokens, context=ours.row_tokens, with_logits=0)
    )
    learns = learner_of(given, shape, num_labels=0)
    assert learns.words == "an adapter and a head"
    assert learns.parameters == learner_of(resolved(tmp_path, ROWS), shape, num_labels=0).parameters + shape.hidden_size
    assert METHODS.get("reward").only_if_asked
