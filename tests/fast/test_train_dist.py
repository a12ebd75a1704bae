"""Ranks: however many share a training, losses, gradients and decisions are those of one process."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_train_loop import EXAMPLES, INPUTS, SETTINGS, fresh, reference_gradients, relative_error, run, scripted

from luthier.data.shards import Example
from luthier.errors import NonFinite, RankLost, RunError, Stopped
from luthier.train import loop
from luthier.train.batches import MicroBatch, dealt, micro_batches
from luthier.train.dist import Ranks, joined, lost_ranks, present
from luthier.train.memory import device_peak_gib
from luthier.train.methods.sft import Sft
from luthier.train.shard import clip, local, shard, whole
from luthier.train_records import StepEvent, TrainResult
from ranks_kit import together

SIZES = (1, 2, 3)


# --- how the work is divided ------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 99), max_size=30), st.integers(1, 6))
def test_every_micro_batch_is_dealt_once_and_no_rank_gets_much_more_than_its_share(tokens: list[int], n: int) -> None:
    parts = [MicroBatch((number,), count) for number, count in enumerate(tokens)]
    hands = dealt(parts, n)
    assert len(hands) == n
    assert sorted(part.rows[0] for hand in hands for part in hand) == list(range(len(tokens)))
    assert all(list(hand) == sorted(hand, key=lambda part: part.rows) for hand in hands)
    longest = max(sum(part.num_tokens for part in hand) for hand in hands)
    assert longest <= sum(tokens) / n + (1 - 1 / n) * max(tokens, default=0)  # Graham's bound for any list


TOKENS = st.builds(lambda start, end: [1] * start + end, st.integers(0, 40), st.lists(st.integers(0, 1), min_size=1))


@given(st.lists(TOKENS, min_size=1, max_size=12), st.integers(1, 120), st.integers(2, 4))
def test_for_ranks_the_cut_is_a_multiple_of_them_within_the_budget(
    tokens: list[list[int]], budget: int, ranks: int
) -> None:
    rows = range(len(tokens))
    groups = micro_batches(rows, [[ids] for ids in tokens], max_tokens=budget, ranks=ranks)
    assert sorted(row for group in groups for row in group.rows) == list(rows)
    assert all(len(group.rows) == 1 or group.num_tokens <= budget for group in groups)
    fewest = len(micro_batches(rows, [[ids] for ids in tokens], max_tokens=budget))
    assert fewest <= len(groups) <= -(-fewest // ranks) * ranks


def test_a_step_that_fits_one_micro_batch_is_cut_evenly_for_the_ranks() -> None:
    tokens = [[10 * n + k for k in range(10)] for n in range(8)]
    assert [len(group.rows) for group in micro_batches(range(8), [[ids] for ids in tokens], max_tokens=999)] == [8]
    assert [
        len(group.rows) for group in micro_batches(range(8), [[ids] for ids in tokens], max_tokens=999, ranks=2)
    ] == [4, 4]
    assert [
        len(group.rows) for group in micro_batches(range(8), [[ids] for ids in tokens], max_tokens=999, ranks=3)
    ] == [3, 3, 2]
    assert [
        len(group.rows) for group in micro_batches(range(2), [[ids] for ids in tokens[:2]], max_tokens=999, ranks=3)
    ] == [1, 1]


# --- one process and several ------------------------------------------------------------------------------------------


def shared_gradients(ranks: Ranks, rows: list[Example]) -> dict[str, np.ndarray[Any, Any]]:
    """Of one step, as the loop makes them."""
    model = fresh()
    with torch.no_grad():
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    tokens, count = [Sft().computed(one) for one in rows], sum(map(Sft().count, rows))
    for part in dealt(micro_batches(range(len(rows)), tokens, max_tokens=40, ranks=ranks.size), ranks.size)[ranks.rank]:
        (Sft().loss_sum(model, [rows[row] for row in part.rows]) / count).backward()
    ranks.sum_gradients(parameters.values())
    return {name: p.grad.numpy() for name, p in parameters.items() if p.grad is not None}


@pytest.mark.parametrize("count", [8, 1], ids=["eight rows", "fewer rows than ranks"])
def test_the_summed_gradient_is_that_of_a_float64_reference_whatever_the_number_of_ranks(count: int) -> None:
    expected = reference_gradients(EXAMPLES[:count])
    for size in SIZES:
        found = together(size, shared_gradients, EXAMPLES[:count])
        assert all(np.array_equal(one[name], found[0][name]) for one in found for name in expected), "ranks differ"
        assert relative_error({name: torch.from_numpy(g) for name, g in found[0].items()}, expected) < 1e-5


def measured(ranks: Ranks, out: Path, more: dict[str, Any]) -> tuple[TrainResult, float]:
    """A run, and this rank's own memory at its end."""
    return trained(ranks, out, more)[0], device_peak_gib()


def trained(ranks: Ranks, out: Path, more: dict[str, Any]) -> tuple[TrainResult, dict[str, np.ndarray[Any, Any]]]:
    """A run, and this rank's weights at its end."""
    dropout = more.pop("dropout", 0.0)
    model = fresh(dropout=dropout)
    if more.pop("sharded", False):
        shard(model, ranks)
    if dropout:
        torch.seed()  # as every process begins: with a state of its own
    result = run(out, model=model, **more)
    return result, {name: local(p.detach()).numpy() for name, p in model.named_parameters() if p.requires_grad}


def losses(result: TrainResult) -> list[float]:
    return [event.loss for event in result.history]


@pytest.mark.slow
def test_memory_is_that_of_all_ranks_together(tmp_path: Path) -> None:
    made = together(2, measured, tmp_path, {"settings": SETTINGS})
    own = [peak for _, peak in made]
    for result, _ in made:
        assert max(own) < 0.9 * sum(own)
        assert 0.9 * sum(own) < result.history[-1].memory_gib <= sum(own)


@pytest.mark.parametrize("batch", [4, 2], ids=["enough rows", "fewer rows than ranks"])
@pytest.mark.slow
def test_one_two_and_three_ranks_train_alike(tmp_path: Path, batch: int) -> None:
    settings = SETTINGS.model_copy(update={"batch_size": batch})
    alone = run(tmp_path / "alone", settings=settings)
    for size in SIZES[1:]:
        made = together(size, trained, tmp_path / str(size), {"settings": settings})
        for result, weights in made:
            assert losses(result) == pytest.approx(losses(alone), rel=1e-5)
            assert [e.grad_norm for e in result.history] == pytest.approx(
                [e.grad_norm for e in alone.history], rel=1e-5
            )
            assert result.weights_sha256 == made[0][0].weights_sha256
            assert all(np.array_equal(weights[name], made[0][1][name]) for name in weights), "ranks drift apart"
            assert (result.ranks, alone.ranks) == (size, 1)


def stopped(ranks: Ranks, out: Path, settings: Any, after: int) -> Any:
    """The second rank alone is asked to stop."""
    return run(out, settings=settings, stop_after=after if ranks.rank == 1 else None)


@pytest.mark.slow
def test_a_stop_asked_of_one_rank_stops_all_and_the_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, _ = together(2, trained, tmp_path / "whole", {})[0]
    errors = together(2, stopped, tmp_path / "cut", SETTINGS, 4)
    assert [type(error) for error in errors] == [Stopped, Stopped]
    assert all("after step 4 of 10" in str(error) for error in errors)
    resumed, _ = together(2, trained, tmp_path / "cut", {})[0]
    assert resumed.resumed_from == (4,)
    assert resumed.weights_sha256 == whole.weights_sha256
    assert losses(resumed) == losses(whole)


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks(tmp_path: Path, first: int, then: int) -> None:
    whole = run(tmp_path / "whole")
    if first == 1:
        with pytest.raises(Stopped):
            run(tmp_path / "cut", stop_after=5)
    else:
        together(2, stopped, tmp_path / "cut", SETTINGS, 5)
    resumed, _ = together(then, trained, tmp_path / "cut", {})[0]
    assert resumed.resumed_from == (5,)
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-5)


@pytest.mark.slow
def test_dropout_is_drawn_by_each_rank_for_itself_and_again_after_a_stop(tmp_path: Path) -> None:
    def go(name: str) -> TrainResult:
        return together(2, trained, tmp_path / name, {"dropout": 0.2})[0][0]  # type: ignore[no-any-return]

    whole = go("whole")
    together(2, trained, tmp_path / "cut", {"dropout": 0.2, "stop_after": 4})
    assert go("cut").weights_sha256 == whole.weights_sha256 == go("again").weights_sha256
    mine, theirs = together(2, noise)
    assert mine != theirs


def noise(ranks: Ranks) -> list[float]:
    loop._seed(0, 3, ranks.rank)
    return torch.rand(8).tolist()


# --- what the first rank decides, and what goes wrong -----------------------------------------------------------------


def validated(ranks: Ranks, out: Path) -> TrainResult:
    """The others must not measure: they would find something else."""
    values = [0.1, 0.9, 0.3, 0.2] if ranks.is_first else []
    settings = SETTINGS.model_copy(update={"validations": 5, "patience": 2})
    return run(out, settings=settings, validation=scripted(values))


@pytest.mark.slow
def test_the_first_rank_measures_and_all_decide_alike(tmp_path: Path) -> None:
    for result in together(2, validated, tmp_path):
        assert (result.best_step, result.best_value, result.steps, result.stopped_early) == (4, 0.9, 8, True)


def broken(ranks: Ranks, out: Path) -> Any:
    if ranks.rank == 1:  # one token of a row that this rank alone will see
        model = fresh()
        with torch.no_grad():
            next(p for n, p in model.named_parameters() if n.endswith("layers.0.input_layernorm.weight")).fill_(
                float("nan")
            )
        return run(out, model=model)
    return run(out)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_rank_stops_all_before_the_optimizer(tmp_path: Path) -> None:
    errors = together(2, broken, tmp_path)
    assert [type(error) for error in errors] == [NonFinite, NonFinite]
    assert str(errors[0]) == str(errors[1])
    assert not (tmp_path / "adapter").exists()


def killed(ranks: Ranks, out: Path) -> Any:
    def watch(event: StepEvent, *, total_steps: int) -> None:
        if ranks.rank == 1 and event.step == 5:
            os._exit(9)

    return run(out, watch=watch)


@pytest.mark.slow
def test_a_rank_that_dies_is_noticed_by_the_others(tmp_path: Path) -> None:
    error, nothing = together(2, killed, tmp_path)
    assert nothing is None
    assert isinstance(error, RankLost)
    assert "rank 0 of 2: another rank has ended\n  -> run the same command again" in str(error)
    assert error.exit_code == 5


def exchanged(ranks: Ranks) -> tuple[Any, ...]:
    weights = torch.nn.Parameter(torch.full((3,), float(ranks.rank + 7)))
    ranks.same_weights([weights])
    said = [ranks.told(text if ranks.is_first else "not this") for text in ("", "grüße", '{"a": NaN}')]
    return said, ranks.any(ranks.rank == 1), ranks.any(False), ranks.sum_numbers(1.5, ranks.rank), weights.tolist()


def test_ranks_agree() -> None:
    for found in together(3, exchanged):
        assert found == (["", "grüße", '{"a": NaN}'], True, False, [4.5, 3.0], [7.0] * 3)


def test_one_process_is_alone_and_makes_no_group() -> None:
    with joined({"WORLD_SIZE": "1", "RANK": "0"}) as ranks:
        assert ranks == Ranks() == present()
        assert not torch.distributed.is_initialized()
    assert (ranks.told("x"), ranks.any(True), ranks.sum_numbers(2.0)) == ("x", True, [2.0])


def test_an_error_that_is_not_of_the_connection_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="a shape") as caught, lost_ranks(Ranks(0, 2)):
        raise RuntimeError("a shape does not fit")
    assert type(caught.value) is RuntimeError


# --- weights divided between ranks ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("batch", [4, 1], ids=["enough rows", "fewer rows than ranks"])
def test_ranks_that_hold_a_part_of_the_weights_train_like_one_process(tmp_path: Path, batch: int) -> None:
    settings = SETTINGS.model_copy(update={"batch_size": batch, "num_train_epochs": 1, "micro_batch_tokens": 20})
    alone = run(tmp_path / "alone", settings=settings)
    adapter = load_file(tmp_path / "alone" / "adapter" / "adapter_model.safetensors")
    for size in SIZES[1:]:
        made = together(size, trained, tmp_path / str(size), {"settings": settings, "sharded": True})
        for result, weights in made:
            assert losses(result) == pytest.approx(losses(alone), rel=1e-5)
            assert [e.grad_norm for e in result.history] == pytest.approx(
                [e.grad_norm for e in alone.history], rel=1e-5
            )
            assert sum(one.size for one in weights.values()) < 0.6 * result.trainable_parameters
        saved = load_file(tmp_path / str(size) / "adapter" / "adapter_model.safetensors")
        assert relative_error(saved, adapter) < 1e-4


@pytest.mark.slow
def test_a_stopped_run_of_divided_weights_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    whole, _ = together(2, trained, tmp_path / "whole", {"sharded": True})[0]
    errors = together(2, trained, tmp_path / "cut", {"sharded": True, "stop_after": 5})
    assert [type(error) for error in errors] == [Stopped, Stopped]
    resumed, _ = together(2, trained, tmp_path / "cut", {"sharded": True})[0]
    assert resumed.resumed_from == (5,)
    assert resumed.weights_sha256 == whole.weights_sha256
    assert losses(resumed) == losses(whole)
    names = {path.suffix for path in (tmp_path / "cut" / "checkpoints").rglob("*") if path.is_file()}
    assert names == {".safetensors", ".json"}, "nothing is pickled"


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2), (2, 3)])
def test_parts_are_read_again_by_another_number_of_ranks(tmp_path: Path, first: int, then: int) -> None:
    whole = run(tmp_path / "whole")
    together(first, trained, tmp_path / "cut", {"sharded": True, "stop_after": 5})
    for result, _ in together(then, trained, tmp_path / "cut", {"sharded": True}):
        assert result.resumed_from == (5,)
        assert losses(result) == pytest.approx(losses(whole), rel=1e-5)


@pytest.mark.slow
def test_a_missing_part_of_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    together(2, trained, tmp_path, {"sharded": True, "stop_after": 2})
    parts = sorted((tmp_path / "checkpoints" / "step-000002").glob("*.safetensors"))
    assert len(parts) == 2
    for part, words in ((parts[0], "is damaged"), (parts[1], "is damaged")):
        kept = part.read_bytes()
        part.unlink()
        with pytest.raises(RunError, match=f"step-000002 {words}"):
            run(tmp_path)
        part.write_bytes(kept)
    assert run(tmp_path).resumed_from == (2,)


def clipped(ranks: Ranks, most: float) -> tuple[float, list[float]]:
    model = fresh()
    shard(model, ranks)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for number, parameter in enumerate(parameters.values()):
        parameter.grad = torch.full_like(parameter, 0.01 * (number + 1))
    norm = clip(parameters.values(), most, ranks)
    gathered = whole({name: p.grad for name, p in parameters.items() if p.grad is not None})
    return norm, [float(g.flatten()[0]) for g in gathered.values()]


def test_the_norm_of_divided_gradients_is_that_of_whole_ones() -> None:
    for most in (0.1, 1000.0):
        expected = clipped(Ranks(), most)
        for found in together(2, clipped, most):
            assert found[0] == pytest.approx(expected[0], rel=1e-6)
            assert found[1] == pytest.approx(expected[1], rel=1e-6)


def strangers(ranks: Ranks, out: Path, others: str) -> str:
    """What a rank says that was given other data or another recipe than the first."""
    inputs = replace(INPUTS, data_sha256=others) if ranks.rank == 1 else INPUTS
    try:
        run(out, inputs=inputs)
    except RunError as error:
        return str(error)
    return "trained"


@pytest.mark.slow
def test_ranks_that_were_given_different_things_do_not_train_together(tmp_path: Path) -> None:
    first, second, third = together(3, strangers, tmp_path, "other")
    assert "rank 1 and the first one differ in: data\n  -> give all machines the same run folder" in second
    assert "another rank was given another recipe, data or base model than this one" in first
    assert third == first
    assert not list(tmp_path.glob("adapter*"))
