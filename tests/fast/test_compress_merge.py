"""Merging by algebra: the papers' formulas on small matrices, PEFT as the reference where it is exact, soups."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import classify_kit
import numpy as np
import pytest
import torch
from peft import PeftModel
from peft.utils.merge_utils import dare_linear as peft_dare_linear
from peft.utils.merge_utils import ties as peft_ties
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.compress.merge.arithmetic import Mix, agreed_mean, combine, drop, trim
from luthier.compress.merge.greedy import greedy_soup
from luthier.compress.merge.lowrank import LowRank, cut, of_dense, padded, stacked
from luthier.compress.merge.vectors import (
    Change,
    add_to,
    mean_of,
    merge_dense,
    merge_low_rank,
    parameters_of,
    read_dense,
    read_low_rank,
)
from luthier.compress.merge.write import write_adapter, write_weights
from luthier.errors import ModelError, RunError
from luthier.models.adapters import attach, bare, save_adapter
from luthier.models.classifier import head_of
from luthier.models.tuned import load_tuned
from luthier.spec.adapter_section import Adapter
from luthier.spec.adapters.ia3 import Ia3
from luthier.spec.adapters.lora import Lora
from luthier.store.files import sha256_file
from tiny import llama, write_tokenizer

IDS = torch.tensor([[5, 9, 20, 300, 7, 41]])
LORA = Lora(r=4, alpha=8.0, dropout=0.0, target_modules="all-linear")


def silent(done: int, total: int) -> None:
    pass


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- the arithmetic of one weight -------------------------------------------------------------------------------------


def ties_by_hand(vectors: Sequence[np.ndarray], weights: Sequence[float], density: float) -> np.ndarray:
    """Algorithm 1 of arXiv 2306.01708, value by value; the weights multiply the task vectors."""
    trimmed = []
    for vector, weight in zip(vectors, weights, strict=True):
        count = max(1, round(density * vector.size))
        least = np.sort(np.abs(vector).ravel())[-count]
        trimmed.append(np.where(np.abs(vector) >= least, weight * vector, 0.0))
    merged = np.zeros_like(vectors[0])
    for place in np.ndindex(merged.shape):
        values = [float(vector[place]) for vector in trimmed]
        sign = np.sign(sum(values))
        agreeing = [value for value in values if sign != 0 and np.sign(value) == sign]
        merged[place] = np.mean(agreeing) if agreeing else 0.0
    return merged


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.7, 0.7, 0.7), (2.0, 0.5, -1.0)])
@pytest.mark.parametrize("density", [0.2, 0.55, 1.0])
def test_ties_is_the_papers_algorithm(weights: tuple[float, ...], density: float) -> None:
    vectors = [noise(5, 7, seed=seed) for seed in range(3)]
    ours = combine(vectors, Mix("ties", weights, density), name="w")
    by_hand = ties_by_hand([vector.numpy() for vector in vectors], weights, density)
    torch.testing.assert_close(ours, torch.from_numpy(by_hand).float())


def test_ties_is_pefts_where_weights_are_equal() -> None:
    """With other weights PEFT elects signs before it weighs."""
    vectors = [noise(6, 10, seed=seed) for seed in range(3)]
    ours = combine(vectors, Mix("ties", (0.8,) * 3, 0.3), name="w")
    torch.testing.assert_close(ours, peft_ties(vectors, torch.tensor([0.8] * 3), 0.3))


def test_signs_are_elected_and_only_those_that_agree_are_averaged() -> None:
    parts = [torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]), torch.tensor([3.0, -0.5, -1.0, 0.0, 2.0])]
    # both agree; the larger wins alone; a draw is nothing; nobody; one alone
    assert agreed_mean(parts).tolist() == [2.0, 1.0, 0.0, 0.0, 2.0]


def test_trim_keeps_the_largest_and_at_least_one() -> None:
    vector = torch.tensor([[0.1, -3.0], [2.0, 0.5]])
    assert trim(vector, 0.5).tolist() == [[0.0, -3.0], [2.0, 0.0]]
    assert trim(vector, 0.01).tolist() == [[0.0, -3.0], [0.0, 0.0]]
    assert trim(vector, 1.0) is vector
    assert trim(torch.ones(10), 0.2).tolist() == [1.0, 1.0] + [0.0] * 8, "of equal ones as many as were asked for"


def test_dare_drops_by_chance_and_rescales() -> None:
    """Equations 1 and 2 of arXiv 2311.03099: what stays is divided by its chance, so the mean is the vector."""
    vector = noise(40, 50, seed=0)
    kept = drop(vector, 0.25, seed=3, run=0, name="w")
    stays = kept != 0
    torch.testing.assert_close(kept[stays], vector[stays] / 0.25)
    assert abs(float(stays.float().mean()) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / vector.numel())
    mean = torch.stack([drop(vector, 0.25, seed=seed, run=0, name="w") for seed in range(400)]).mean(0)
    assert float((mean - vector).abs().mean()) < 4 * float(vector.abs().mean()) * math.sqrt(3 / 400)


def test_what_dare_drops_follows_from_seed_run_and_weight() -> None:
    vector = noise(30, 30, seed=0)

    def dropped(seed: int = 1, run: int = 0, name: str = "w") -> Tensor:
        torch.manual_seed(torch.randint(1000, ()).item())  # whatever the state was
        return drop(vector, 0.5, seed=seed, run=run, name=name)

    assert torch.equal(dropped(), dropped())
    others = [dropped(seed=2), dropped(run=1), dropped(name="v")]
    assert not any(torch.equal(dropped(), other) for other in others)


def test_dare_is_pefts_on_what_it_keeps() -> None:
    """Given one mask: PEFT draws its own, so ours is handed to it as vectors that are dropped already."""
    vectors = [noise(8, 9, seed=seed) for seed in range(2)]
    kept = [drop(vector, 0.5, seed=5, run=run, name="w") for run, vector in enumerate(vectors)]
    for method, then in (("dare_linear", peft_dare_linear), ("dare_ties", peft_ties)):
        ours = combine(vectors, Mix(method, (0.6, 0.6), 0.5, 5), name="w")
        with pytest.warns(UserWarning, match="no pruning"):
            torch.testing.assert_close(ours, then(kept, torch.tensor([0.6, 0.6]), 1.0))


def test_linear_is_the_weighted_sum_and_a_run_that_left_a_weight_alone_counts_as_zeros() -> None:
    one, other = noise(3, 4, seed=0), noise(3, 4, seed=1)
    torch.testing.assert_close(combine([one, other], Mix("linear", (0.3, -2.0)), name="w"), 0.3 * one - 2.0 * other)
    torch.testing.assert_close(combine([one, None], Mix("linear", (0.5, 0.5)), name="w"), 0.5 * one)
    torch.testing.assert_close(combine([one, None], Mix("ties", (1.0, 1.0), 1.0), name="w"), one)


# --- low rank ---------------------------------------------------------------------------------------------------------


def low(rank: int, seed: int, *, turned: bool = False) -> LowRank:
    return LowRank(noise(rank, 9, seed=seed), noise(7, rank, seed=seed + 100), turned)


def test_stacked_factors_are_the_sum_and_a_cut_is_the_nearest_of_its_rank() -> None:
    one, other = low(2, 0), low(3, 1)
    both = stacked([one, other], [0.25, -1.5])
    whole = 0.25 * one.dense() - 1.5 * other.dense()
    assert both.a.shape[0] == 5
    torch.testing.assert_close(both.dense(), whole)
    assert both.squares() == pytest.approx(float(whole.square().sum()), rel=1e-5)
    assert cut(both, 5) is both
    sizes = torch.linalg.svdvals(whole.double())
    for rank in (1, 2, 4):
        for made in (cut(both, rank), of_dense(whole, rank, turned=False)):
            assert made.a.shape == (rank, 9)
            lost = float((made.dense() - whole).square().sum())
            assert lost == pytest.approx(float(sizes[rank:].square().sum()), rel=1e-4)  # Eckart and Young
    torch.testing.assert_close(of_dense(whole, 7, turned=False).dense(), whole, rtol=1e-4, atol=1e-5)


def test_zeros_up_to_a_rank_change_nothing_and_turned_weights_stay_turned() -> None:
    one = low(2, 0)
    assert padded(one, 6).a.shape == (6, 9)
    torch.testing.assert_close(padded(one, 6).dense(), one.dense(), rtol=0, atol=0)
    turned = low(2, 0, turned=True)
    torch.testing.assert_close(turned.dense(), one.dense().T)
    torch.testing.assert_close(of_dense(turned.dense(), 2, turned=True).dense(), one.dense().T, rtol=1e-4, atol=1e-5)


# --- adapters and weights of a model ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_tokenizer(folder)
    llama().save_pretrained(folder)
    return folder


def trained(section: Adapter, folder: Path, *, seed: int) -> Path:
    """What a training leaves: an adapter of which every parameter has moved."""
    model = attach(llama(), section, base_name="tiny", seed=seed)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng))
    folder.mkdir(parents=True)
    save_adapter(model, folder)
    return folder


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return bare(model)(input_ids=IDS).logits


def config(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "adapter_config.json").read_text()))


def as_adapter(folders: Sequence[Path], out: Path, mix: Mix, rank: int) -> float:
    """Merge and write; the share that the rank holds."""
    merged = merge_low_rank([read_low_rank(folder) for folder in folders], mix, rank=rank, tick=silent)
    write_adapter(merged.vector, out, rank=rank, configs=[config(folder) for folder in folders])
    return merged.kept


def weighted(folders: Sequence[Path], weights: Sequence[float]) -> Any:
    """The base with the weighted sum of what PEFT merges of each into it."""
    model, before = llama(), dict(llama().named_parameters())
    with torch.no_grad():
        for folder, weight in zip(folders, weights, strict=True):
            one = PeftModel.from_pretrained(llama(), folder).merge_and_unload()
            for name, parameter in one.named_parameters():
                model.get_parameter(name).add_(weight * (parameter - before[name]))
    return model


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """Two LoRAs of other ranks and scalings."""
    other = LORA.model_copy(update={"r": 2, "alpha": 3.0, "use_rslora": True})
    return [trained(LORA, tmp_path / "one", seed=1), trained(other, tmp_path / "other", seed=2)]


def test_a_linear_merge_is_the_weighted_sum_and_opens_in_plain_peft(
    pair: list[Path], base: Path, tmp_path: Path
) -> None:
    assert as_adapter(pair, tmp_path / "merged", Mix("linear", (0.7, -0.4)), 6) == 1.0
    plain = PeftModel.from_pretrained(llama(), tmp_path / "merged").eval()
    expected = logits(weighted(pair, (0.7, -0.4)))
    torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(load_tuned(base, tmp_path / "merged")), expected, rtol=1e-4, atol=1e-4)
    assert config(tmp_path / "merged")["use_rslora"] is False  # PEFT would scale by the root of the rank


def test_halves_of_one_adapter_are_that_adapter(tmp_path: Path) -> None:
    """Where factors are averaged instead, as PEFT's `linear` does, they are twice of it."""
    one = trained(LORA, tmp_path / "one", seed=1)
    as_adapter([one, one], tmp_path / "merged", Mix("linear", (0.5, 0.5)), 8)
    alone = logits(PeftModel.from_pretrained(llama(), one).eval())
    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(llama(), tmp_path / "merged").eval()), alone, rtol=1e-4, atol=1e-4
    )
    theirs = PeftModel.from_pretrained(llama(), one, adapter_name="a")
    theirs.load_adapter(one, "b")
    theirs.add_weighted_adapter(["a", "b"], [0.5, 0.5], "sum", combination_type="linear")
    theirs.set_adapter("sum")
    doubled = logits(weighted([one], [2.0]))
    torch.testing.assert_close(logits(theirs.eval()), doubled, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("theirs", "mix", "rank"),
    [
        ("cat", Mix("linear", (0.5, 0.3)), 6),
        ("svd", Mix("linear", (0.5, 0.3)), 3),
        ("ties_svd", Mix("ties", (0.8, 0.8), 0.5), 5),
    ],
)
def test_merges_are_pefts_where_it_merges_products(theirs: str, mix: Mix, rank: int, tmp_path: Path) -> None:
    plain = [LORA, LORA.model_copy(update={"r": 2, "alpha": 3.0})]
    folders = [trained(one, tmp_path / f"{place}", seed=place) for place, one in enumerate(plain)]
    as_adapter(folders, tmp_path / "merged", mix, rank)
    model = PeftModel.from_pretrained(llama(), folders[0], adapter_name="a")
    model.load_adapter(folders[1], "b")
    settings = {} if theirs == "cat" else {"svd_rank": rank, "density": mix.density}
    model.add_weighted_adapter(["a", "b"], list(mix.weights), "sum", combination_type=theirs, **settings)
    model.set_adapter("sum")
    ours = PeftModel.from_pretrained(llama(), tmp_path / "merged").eval()
    torch.testing.assert_close(logits(ours), logits(model.eval()), rtol=2e-3, atol=2e-3)


def test_an_svd_at_full_rank_is_the_sum_and_a_lower_one_says_what_it_holds(pair: list[Path], tmp_path: Path) -> None:
    mix = Mix("ties", (1.0, 1.0), 0.5)
    vectors = [read_low_rank(folder) for folder in pair]
    exact = merge_dense(vectors, mix, silent).vector
    shares = []
    for rank in (2, 8, 64):
        merged = merge_low_rank(vectors, mix, rank=rank, tick=silent)
        shares.append(merged.kept)
    assert shares == sorted(shares)
    assert shares[0] < 0.9 < shares[-1] == pytest.approx(1.0, abs=1e-5)
    whole = merge_low_rank(vectors, mix, rank=64, tick=silent).vector
    for name, change in whole.items():
        assert isinstance(change, LowRank)
        torch.testing.assert_close(change.dense(), exact[name], rtol=1e-3, atol=1e-5)


def test_weights_and_adapter_of_one_merge_say_the_same(pair: list[Path], base: Path, tmp_path: Path) -> None:
    mix, before = Mix("linear", (0.6, 0.6)), parameters_of(base)
    as_adapter(pair, tmp_path / "adapter", mix, 6)
    merged = merge_dense([read_low_rank(folder) for folder in pair], mix, silent)
    changed = write_weights(merged.vector, base, before, tmp_path / "model")
    assert changed == sum(before[name].numel() for name in merged.vector)
    again = read_dense(base, tmp_path / "model", before)
    assert again.keys() == merged.vector.keys()
    for name, change in again.items():
        torch.testing.assert_close(change, merged.vector[name], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(
        logits(load_tuned(base, tmp_path / "model")),
        logits(load_tuned(base, tmp_path / "adapter")),
        rtol=1e-4,
        atol=1e-4,
    )


def test_runs_that_adapt_other_modules_and_layers_are_merged_too(base: Path, tmp_path: Path) -> None:
    sections = [
        LORA.model_copy(update={"target_modules": ("q_proj", "down_proj")}),
        LORA.model_copy(update={"target_modules": ("q_proj", "v_proj"), "layers_to_transform": (1,)}),
    ]
    folders = [trained(one, tmp_path / f"{place}", seed=place) for place, one in enumerate(sections)]
    as_adapter(folders, tmp_path / "merged", Mix("linear", (0.5, 0.5)), 8)
    plain = PeftModel.from_pretrained(llama(), tmp_path / "merged").eval()
    torch.testing.assert_close(logits(plain), logits(weighted(folders, (0.5, 0.5))), rtol=1e-4, atol=1e-4)
    assert len(config(tmp_path / "merged")["target_modules"]) == 5  # by their whole names


@pytest.mark.parametrize(
    "section",
    [
        LORA.model_copy(update={"use_dora": True}),
        LORA.model_copy(update={"modules_to_save": ("norm", "embed_tokens")}),
        LORA.model_copy(update={"init_lora_weights": "pissa"}),
        Ia3(target_modules=("k_proj", "v_proj", "down_proj"), feedforward_modules=("down_proj",)),
    ],
    ids=["dora", "whole modules", "pissa", "ia3"],
)
def test_whatever_a_run_is_its_task_vector_is_what_it_did_to_the_base(
    section: Adapter, base: Path, tmp_path: Path
) -> None:
    folder, before = trained(section, tmp_path / "one", seed=1), parameters_of(base)
    vector = read_dense(base, folder, before)
    write_weights(merge_dense([vector], Mix("linear", (1.0,)), silent).vector, base, before, tmp_path / "model")
    torch.testing.assert_close(
        logits(load_tuned(base, tmp_path / "model")), logits(load_tuned(base, folder)), rtol=1e-4, atol=1e-4
    )
    if section.type == "lora" and not getattr(section, "use_dora", False) and not section.whole_modules:
        for name, change in read_low_rank(folder).items():
            assert isinstance(change, LowRank)
            torch.testing.assert_close(change.dense(), vector[name], rtol=1e-3, atol=1e-5)
    else:
        with pytest.raises(ModelError, match="no change of low rank"):
            read_low_rank(folder)


def test_a_stray_tensor_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = trained(LORA, tmp_path / "one", seed=1)
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in tensors if "lora_B" in name)
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="has no place in a plain LoRA"):
        read_low_rank(folder)


def test_a_weight_that_the_base_has_not_is_refused(base: Path) -> None:
    with pytest.raises(ModelError, match=r"has no weight model\.other"):
        add_to(llama(), parameters_of(base), {"model.other": torch.zeros(1)})


def test_heads_are_merged_like_every_other_weight(base: Path, tmp_path: Path) -> None:
    """They start at zero, so what a run did to its head is the head."""
    models, folders = [classify_kit.moved(), classify_kit.moved(r=2)], []
    for place, model in enumerate(models):
        (tmp_path / f"{place}").mkdir()
        save_adapter(model, tmp_path / f"{place}")
        folders.append(tmp_path / f"{place}")
    as_adapter(folders, tmp_path / "merged", Mix("linear", (0.25, 0.75)), 6)
    mean = sum(weight * head_of(model).weight for weight, model in zip((0.25, 0.75), models, strict=True))
    merged = merge_dense([read_low_rank(folder) for folder in folders], Mix("linear", (0.25, 0.75)), silent)
    write_weights(merged.vector, base, parameters_of(base), tmp_path / "model")
    for folder in (tmp_path / "merged", tmp_path / "model"):
        torch.testing.assert_close(head_of(load_tuned(base, folder)).weight, mean)
    assert config(tmp_path / "merged")["modules_to_save"] == ["score"]


def test_the_same_seed_writes_the_same_bytes_and_another_one_others(pair: list[Path], tmp_path: Path) -> None:
    def written(name: str, seed: int) -> str:
        as_adapter(pair, tmp_path / name, Mix("dare_linear", (0.5, 0.5), 0.5, seed), 6)
        return sha256_file(tmp_path / name / "adapter_model.safetensors")

    assert written("a", 1) == written("b", 1) != written("c", 2)


# --- soups ------------------------------------------------------------------------------------------------------------


def test_a_uniform_soup_is_the_mean_of_the_weights(base: Path, tmp_path: Path) -> None:
    before = parameters_of(base)
    rng = [{name: t + 0.1 * noise(*t.shape, seed=s) for name, t in before.items()} for s in (1, 2, 3)]
    vectors: list[dict[str, Change]] = [{name: t - before[name] for name, t in one.items()} for one in rng]
    made = llama()
    add_to(made, before, mean_of(vectors))
    for name, parameter in made.named_parameters():
        torch.testing.assert_close(parameter, sum(one[name] for one in rng) / 3)
    again = merge_dense(vectors, Mix("linear", (1 / 3,) * 3), silent).vector
    torch.testing.assert_close(again["model.norm.weight"], mean_of(vectors)["model.norm.weight"])


def test_the_mean_of_adapters_is_that_of_their_products_not_of_their_factors(pair: list[Path]) -> None:
    vectors = [read_low_rank(folder) for folder in pair]
    for name, change in mean_of(vectors).items():
        assert isinstance(change, LowRank)
        parts = [vector[name] for vector in vectors]
        expected = sum(part.dense() for part in parts if isinstance(part, LowRank)) / 2
        torch.testing.assert_close(change.dense(), expected)


def greedy_by_hand(count: int, value: dict[frozenset[int], float]) -> list[int]:
    """Recipe 1 of arXiv 2203.05482."""
    ingredients: list[int] = []
    for place in sorted(range(count), key=lambda one: -value[frozenset({one})]):
        if not ingredients or value[frozenset({*ingredients, place})] >= value[frozenset(ingredients)]:
            ingredients.append(place)
    return ingredients


@pytest.mark.parametrize("seed", range(20))
def test_a_greedy_soup_is_the_papers_recipe(seed: int) -> None:
    rng, asked = np.random.default_rng(seed), list[frozenset[int]]()
    sets = [frozenset(one for one in range(4) if mask >> one & 1) for mask in range(1, 16)]
    value = {one: float(rng.integers(5)) for one in sets}  # with ties

    def judge(places: Sequence[int]) -> tuple[float, float]:
        asked.append(frozenset(places))
        return value[frozenset(places)], 0.0

    tried = greedy_soup(4, judge)
    chosen = [one.place for one in tried if one.weight]
    assert chosen == greedy_by_hand(4, value)
    assert all(one.weight == pytest.approx(1 / len(chosen)) for one in tried if one.weight)
    assert sorted(one.place for one in tried) == [0, 1, 2, 3]
    assert len(asked) == 4 + 3
    assert value[frozenset(chosen)] >= max(value[frozenset({one})] for one in range(4))


def test_of_what_is_better_the_lower_the_metric_is_told_as_it_is() -> None:
    tried = greedy_soup(2, lambda places: (-2.0 if len(places) == 1 else -3.0, 0.0), sign=-1.0)
    assert [(one.place, one.value, one.weight) for one in tried] == [(0, 2.0, 1.0), (1, 3.0, 0.0)]


def test_a_run_whose_metric_is_no_number_joins_no_soup_before_others() -> None:
    alone = [math.nan, 0.5, 0.9]
    tried = greedy_soup(3, lambda places: (alone[places[0]] if len(places) == 1 else math.nan, 0.0))
    assert [(one.place, one.weight) for one in tried] == [(2, 1.0), (1, 0.0), (0, 0.0)]
    with pytest.raises(RunError, match="not a number for any of the runs"):
        greedy_soup(2, lambda places: (math.nan, 0.0))


def test_values_that_are_no_numbers_are_not_merged(pair: list[Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pair[0], tmp_path / "broken"))
    tensors = load_file(folder / "adapter_model.safetensors")
    name = sorted(tensors)[0]
    tensors[name] = tensors[name].clone()
    tensors[name][0, 0] = math.nan
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=f"the tensor {re.escape(name)} holds values that are no numbers"):
        read_low_rank(folder)
