"""What `merge` of a recipe may say, what is filled in, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import samples
import torch
from merge_kit import WHOLE, parent

from luthier.compress.merge.arithmetic import Mix, combine
from luthier.errors import RecipeError
from luthier.pipeline.merging import mix_of
from luthier.spec.fill_merge import _untaught
from luthier.spec.filler import Machine, leaves
from luthier.spec.load import LoadedRecipe, load_recipe
from luthier.spec.merge import MERGES, Parent, refuse_learning, why_no_rank
from luthier.spec.recipe import Recipe
from luthier.spec.resolve import ResolvedRecipe, resolve
from luthier.spec.tasks import joined, task_loaded

TEXT = """\
name: r
model: m
data: {train: [{path: d.csv, name: intent, task: classification, input: "{message}", label: intent}]}
"""


def loaded(place: Path, merge: str, more: str = "") -> LoadedRecipe:
    (place / "r.yaml").write_text(f"{TEXT}merge: {merge}\n{more}", encoding="utf-8")
    return load_recipe(place / "r.yaml")


def resolved(place: Path, merge: str, *parents: Parent, more: str = "") -> ResolvedRecipe:
    return resolve(
        loaded(place, merge, more), samples.profile(), samples.shape(), machine=Machine(threads=1),
        data_sha256={}, luthier_version="0", parents=parents or (parent("a"), parent("b")),
    )  # fmt: skip


def merge_of(made: ResolvedRecipe) -> Any:
    assert made.recipe.merge is not None
    return made.recipe.merge


def test_sums_of_adapters_are_an_adapter_of_all_their_ranks(tmp_path: Path) -> None:
    made = resolved(tmp_path, "{runs: [a, b]}", parent("a"), parent("b", rank=8))
    merge = merge_of(made)
    assert (merge.runs, merge.weights, merge.into, merge.rank) == (("a/0123", "b/0123"), (0.5, 0.5), "adapter", 12)
    assert (made.recipe.adapter.type, made.recipe.adapter.r) == ("lora", 12)  # type: ignore[attr-defined]
    assert made.recipe.export == ("adapter", "merged")
    assert made.recipe.method.type == "sft"
    assert made.reasons["method.type"] == "of the runs that are merged"
    assert "not used" in made.reasons["train.learning_rate"]
    assert "not used" not in made.reasons["train.max_length"]


@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties"])
def test_what_has_no_low_rank_is_written_as_whole_weights(method: str, tmp_path: Path) -> None:
    made = resolved(tmp_path, f"{{runs: [a, b], method: {method}}}")
    merge, facts = merge_of(made), MERGES[method]
    assert (merge.into, merge.rank, merge.density) == ("weights", None, facts.usual_density)
    assert merge.weights == ((0.5, 0.5) if method == "dare_linear" else (1.0, 1.0))
    assert merge.seed == (0 if facts.draws else None)
    assert made.recipe.adapter.type == "full"
    assert made.recipe.export == ("merged",)


def test_a_rank_asks_for_an_adapter(tmp_path: Path) -> None:
    merge = merge_of(resolved(tmp_path, "{runs: [a, b], method: ties, rank: 16}"))
    assert (merge.into, merge.rank) == ("adapter", 16)


def test_runs_of_whole_weights_make_whole_weights(tmp_path: Path) -> None:
    made = resolved(tmp_path, "{runs: [a, b]}", parent("a"), parent("b", **WHOLE))
    assert merge_of(made).into == "weights"
    assert "b/0123 is no change of low rank: its own weights learned" in made.reasons["merge.into"]
    with pytest.raises(RecipeError, match=r"r.yaml:4: merge.into: adapter: b/0123 cannot .* exactly.*own weights"):
        resolved(tmp_path, "{runs: [a, b], into: adapter}", parent("a"), parent("b", **WHOLE))


def test_a_rank_that_no_adapter_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"rank 600.*\n.*merge.rank: 512 or less"):
        resolved(tmp_path, "{runs: [a, b]}", parent("a", rank=300), parent("b", rank=300))
    assert (
        merge_of(resolved(tmp_path, "{runs: [a, b], rank: 64}", parent("a", rank=300), parent("b", rank=300))).rank
        == 64
    )


def test_what_describes_the_adapter_holds_all_that_the_runs_adapt(tmp_path: Path) -> None:
    def adapter(targets: object, layers: object) -> dict[str, Any]:
        return {"adapter": {"type": "lora", "target_modules": targets, "layers_to_transform": layers}}

    one, other = parent("a", **adapter(["q_proj"], [0])), parent("b", **adapter(["v_proj", "q_proj"], [1]))
    made = resolved(tmp_path, "{runs: [a, b]}", one, other).recipe.adapter
    assert made.target_modules == ("q_proj", "v_proj")  # type: ignore[attr-defined]
    assert made.layers_to_transform == (0, 1)
    every = resolved(tmp_path, "{runs: [a, b]}", one, parent("b")).recipe.adapter
    assert (every.target_modules, every.layers_to_transform) == ("all-linear", None)  # type: ignore[attr-defined]


def test_what_a_teacher_taught_is_asked_as_it_would_be_without_one(tmp_path: Path) -> None:
    taught = {"methods": {"intent": {"type": "distill", "teacher": "t", "alpha": 0.5}}}
    made = resolved(tmp_path, "{runs: [a, b]}", parent("a", **taught), parent("b"))
    assert made.recipe.method.model_dump(mode="json") == {"type": "sft"}
    replay = {"type": "pretrain", "replay": {"path": "general.csv"}}
    assert _untaught(replay, "domain") == {"type": "pretrain", "replay": None}
    assert _untaught({"type": "distill", "teacher": "t"}, "domain")["type"] == "pretrain"


def test_the_method_is_that_of_the_runs_or_has_to_be_said(tmp_path: Path) -> None:
    head = {"methods": {"intent": {"type": "classify", "calibrate": False}}}
    made = resolved(tmp_path, "{runs: [a, b]}", parent("a", **head), parent("b", **head))
    assert made.recipe.method.model_dump(exclude_defaults=True) == {"calibrate": False}
    with pytest.raises(RecipeError, match="do not say in one way how intent"):
        resolved(tmp_path, "{runs: [a, b]}", parent("a"), parent("b", **head))
    assert (
        resolved(tmp_path, "{runs: [a, b]}", parent("a"), parent("b", **head), more="method: sft\n").recipe.method.type
        == "sft"
    )
    other = parent("b", methods={"mood": {"type": "sft"}}, tasks={"mood": "sentiment"})
    assert resolved(tmp_path, "{runs: [a, b]}", parent("a"), other).recipe.method.type == "sft"


@pytest.mark.parametrize(
    ("merge", "said"),
    [
        ("{runs: [a, a]}", "'a' stands twice"),
        ("{runs: [a, b], density: 0.5}", "density has no effect with method linear; it is for ties, dare_linear"),
        (
            "{runs: [a, b], method: ties, seed: 1}",
            "seed has no effect with method ties; it is for dare_linear, dare_ties",
        ),
        ("{runs: [a, b], method: greedy, weights: [1, 1]}", "weights has no effect with method greedy"),
        ("{runs: [a, b], weights: [1]}", "1 numbers for 2 runs"),
        ("{runs: [a, b], weights: [0, 0]}", "all 0"),
        ("{runs: [a, b], weights: [.inf, 0]}", "finite"),
        ("{runs: [a], method: greedy}", "greedy chooses among runs"),
        ("{runs: [a, b], into: weights, rank: 4}", "rank is that of an adapter"),
        ("{runs: [a, b], method: tie}", "tie"),
        ("{runs: []}", "runs"),
        ("{run: [a]}", "runs"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_line(merge: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        loaded(tmp_path, merge)
    assert "r.yaml:4" in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ("train: {learning_rate: 0.1}", "train.learning_rate"),
        ("train: {num_train_epochs: 1}", "train.num_train_epochs"),
        ("adapter: {r: 4}", "adapter"),
        ("launch: {nproc_per_node: 2}", "launch.nproc_per_node"),
        ("method: {type: distill, teacher: t}", "method.teacher"),
    ],
)
def test_what_says_how_to_learn_is_refused(more: str, key: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=rf"r.yaml:5: {key} says how to learn, and with merge nothing learns"):
        refuse_learning(loaded(tmp_path, "{runs: [a, b]}", more + "\n"))
    refuse_learning(loaded(tmp_path, "{runs: [a, b]}", "train: {max_length: 64, seed: 1, threads: 1, device: cpu}\n"))


def test_data_that_is_made_for_training_is_refused(tmp_path: Path) -> None:
    for key, value in (("augment", "{typos: 0.1}"), ("canaries", "{count: 1}")):
        (tmp_path / "r.yaml").write_text(
            f"name: r\nmodel: m\nmerge: {{runs: [a, b]}}\ndata: {{train: d.csv, {key}: {value}}}\n"
        )
        with pytest.raises(RecipeError, match=rf"data.{key} says how to learn"):
            refuse_learning(load_recipe(tmp_path / "r.yaml"))


def test_where_the_runs_lie_is_no_part_of_the_identity_but_what_they_learned_is(tmp_path: Path) -> None:
    first = resolved(tmp_path, "{runs: [a, b]}").sha256
    assert resolved(tmp_path, "{runs: [x, y]}", parent("a", path="/elsewhere"), parent("b")).sha256 == first
    for change in ({"weights_sha256": "f" * 64}, {"config_sha256": "f" * 64}, {"data_sha256": "f" * 64}):
        assert resolved(tmp_path, "{runs: [a, b]}", parent("a", **change), parent("b")).sha256 != first
    grand = parent("b", parents=[parent("g").model_dump()])
    again = parent("b", parents=[parent("g", path="/elsewhere").model_dump()])
    deeper = [resolved(tmp_path, "{runs: [a, b]}", parent("a"), one).sha256 for one in (grand, again)]
    assert first != deeper[0] == deeper[1]
    assert [one.run for one in grand.everyone()] == ["b/0123", "g/0123"]


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"peft_type": "LORA", "bias": "none", "modules_to_save": ["score"]}, ""),
        ({"peft_type": "LOHA"}, "its type is LOHA"),
        ({"peft_type": "LORA", "use_dora": True}, "DoRA"),
        ({"peft_type": "LORA", "bias": "all"}, "biases"),
        ({"peft_type": "LORA", "modules_to_save": ["norm", "score"]}, "norm learned whole"),
        ({"peft_type": "LORA", "rank_pattern": {"q_proj": 2}}, "different ranks"),
    ],
)
def test_what_is_of_low_rank_is_seen_by_its_config(config: dict[str, Any], why: str) -> None:
    assert bool(why_no_rank(config)) == bool(why)
    assert why in why_no_rank(config)


def test_settings_reach_the_sum_as_they_are(tmp_path: Path) -> None:
    settings = merge_of(
        resolved(tmp_path, "{runs: [a, b], method: dare_ties, weights: [2, 0.5], density: 0.3, seed: 7}")
    )
    assert mix_of(settings, 2) == Mix("dare_ties", (2.0, 0.5), 0.3, 7)
    chosen = merge_of(resolved(tmp_path, "{runs: [a, b], method: greedy}"))
    assert mix_of(chosen, 1) == Mix("linear", (1.0,), 1.0, 0)
    seeds = [Mix("dare_linear", (1.0,), 0.5, seed) for seed in (0, 1)]
    first, second = (combine([torch.ones(9, 9)], mix, name="w") for mix in seeds)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("merge", ["{runs: [a, b]}", "{runs: [a, b], method: ties}", "{runs: [a, b], method: greedy}"])
def test_every_value_has_its_reason_and_what_is_resolved_resolves_to_itself(merge: str, tmp_path: Path) -> None:
    made = resolved(tmp_path, merge)
    assert set(made.reasons) == set(dict(leaves(made.recipe.model_dump(mode="json"))))
    assert all(made.reasons.values())
    again = resolve(
        LoadedRecipe(Recipe.model_validate(made.recipe.model_dump(mode="json")), tmp_path / "r.yaml", "", ()),
        samples.profile(), samples.shape(), machine=Machine(threads=1),
        data_sha256={}, luthier_version="0", parents=(parent("a"), parent("b")),
    )  # fmt: skip
    assert again.recipe == made.recipe
    assert again.sha256 == made.sha256


def test_heads_of_several_tasks_are_refused_with_the_entrys_line(tmp_path: Path) -> None:
    entry = '{path: d.csv, task: classification, input: "{message}", label: intent, method: classify, name: '
    (tmp_path / "r.yaml").write_text(
        f"name: r\nmodel: m\nmerge: {{runs: [a, b]}}\ndata:\n  train:\n  - {entry}one}}\n  - {entry}two}}\n"
    )
    whole = load_recipe(tmp_path / "r.yaml")
    parts = [
        resolve(
            task_loaded(whole, place), samples.profile(), samples.shape(), machine=Machine(threads=1),
            data_sha256={}, luthier_version="0", parents=(parent("a"), parent("b")),
        )
        for place in range(2)
    ]  # fmt: skip
    with pytest.raises(RecipeError, match=r"r.yaml:6: data.train.0: heads of several tasks are not merged"):
        joined(whole, parts)
