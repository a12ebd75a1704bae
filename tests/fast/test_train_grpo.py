"""GRPO is exact: as a float64 formula says, whatever the micro-batch; what is worth more is written more often."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import samples
import test_train_loop
import torch
from test_train_loop import EXAMPLES, SETTINGS, relative_error
from test_train_preference import moved, tuned
from torch import Tensor

from luthier.data.shards import Example
from luthier.errors import Stopped
from luthier.models.adapters import bare
from luthier.models.generate import go_on, go_on_together, greedy, sampled
from luthier.spec.methods import grpo
from luthier.train.batches import micro_batches
from luthier.train.methods import load_method
from luthier.train.methods.grpo import Grpo, Verified, advantages
from luthier.train.own import OnPolicy, Written, rewards_of_step, with_own_answers
from ranks_kit import together
from rows_kit import inputs_of
from tiny import llama

CONTRACT = samples.contract(
    stop_ids=(2,), end_of_turn_ids=(2,), max_new_tokens=6, max_length=64, labels=(), task="generation",
    rewards=({"type": "exact", "weight": 1.0, "ignore_case": False},),
)  # fmt: skip
KINDS = [(loss, beta) for loss in ("dapo", "grpo", "dr_grpo") for beta in (0.0, 0.3)]


def low(answer: str, expected: str) -> float:
    """Share of the tokens of an answer with a number below 192, of which the vocabulary has half."""
    tokens = [int(token) for token in answer.split()]
    return sum(token < 192 for token in tokens) / max(1, len(tokens))


def method(loss: str = "dapo", beta: float = 0.0, **more: Any) -> Grpo:
    said = {"loss_type": loss, "beta": beta, "num_generations": 4, **more}
    made = Grpo(grpo.Grpo.model_validate(said), CONTRACT, low)
    return made.reading(lambda ids: " ".join(map(str, ids)))


def written(number: int) -> Written:
    """A row with answers of several lengths."""
    rng = np.random.default_rng(number)
    one = EXAMPLES[number]
    answers = tuple(tuple(int(token) for token in rng.integers(3, 380, rng.integers(1, 6))) for _ in range(4))
    worth = rng.random(4).tolist()
    kept = {name: getattr(one, name) for name in Example.__slots__}
    return Written(**kept, answers=answers, rewards=tuple(worth), advantages=tuple(advantages(worth, scaled=True)))


GROUPS = [written(number) for number in range(5)]


def formula(loss: str, beta: float, groups: list[Written]) -> tuple[dict[str, Tensor], float]:
    """Plain transformers, one answer at a time, in float64, with the ratio of the paper and its clip left out."""
    model = moved(test_train_loop.fresh()).double()
    units = sum(group.num_supervised for group in groups) if loss == "dapo" else len(groups)
    total = torch.zeros((), dtype=torch.float64)
    for group in groups:
        for answer, advantage in zip(group.answers, group.advantages, strict=True):
            own = token_logprobs(model, group.prompt_ids, answer)
            with torch.no_grad(), model.disable_adapter():
                base = token_logprobs(model, group.prompt_ids, answer)
            ratio = torch.exp(base) / torch.exp(own)
            each = -advantage * own + beta * (ratio - torch.log(ratio) - 1)
            share = {"dapo": 1.0, "grpo": 1 / (4 * len(answer)), "dr_grpo": 1 / (4 * CONTRACT.max_new_tokens)}[loss]
            total = total + share * each.sum() / units
    total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}, float(total.detach())


def token_logprobs(model: Any, prompt: list[int], answer: tuple[int, ...]) -> Tensor:
    ids = torch.tensor([[*prompt, *answer]])
    scores = torch.log_softmax(model(input_ids=ids).logits[0, :-1], dim=-1)
    return scores.gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0]


def gradients(made: Grpo, rows: list[Example], budget: int, model: Any = None) -> dict[str, Tensor]:
    model = model or tuned()
    model.zero_grad()
    total = sum(map(made.count, rows))
    for part in micro_batches(range(len(rows)), [made.computed(one) for one in rows], max_tokens=budget):
        (made.loss_sum(model, [rows[row] for row in part.rows]) / total).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(("loss", "beta"), KINDS)
def test_gradients_are_those_of_a_float64_formula_whatever_the_micro_batch(loss: str, beta: float) -> None:
    expected, _ = formula(loss, beta, GROUPS)
    for budget in (1, 90, 10_000):
        assert relative_error(gradients(method(loss, beta), GROUPS, budget), expected) < 2e-5


def test_the_loss_is_that_of_the_paper_where_the_ratio_is_one() -> None:
    """- A a token, and how far the model is from its base."""
    made = method("grpo", 0.0)
    expected = sum(sum(-gain / 4 for gain in group.advantages) for group in GROUPS)
    assert float(made.loss_sum(tuned(), GROUPS).detach()) == pytest.approx(expected, abs=1e-6)
    far = float(method("dapo", 0.5).loss_sum(tuned(), GROUPS).detach())
    near = float(method("dapo", 0.0).loss_sum(tuned(), GROUPS).detach())
    apart = 0.0
    for group in GROUPS:
        for answer in group.answers:
            own = token_logprobs(tuned(), group.prompt_ids, answer)
            with tuned().disable_adapter():
                base = token_logprobs(tuned(), group.prompt_ids, answer)
            apart += float((torch.exp(base - own) - (base - own) - 1).sum().detach())
    assert far - near == pytest.approx(0.5 * apart, rel=1e-4)


def test_rows_count_by_their_weights_and_answers_without_an_advantage_teach_nothing() -> None:
    made = method("grpo")
    one, two = (float(made.loss_sum(tuned(), GROUPS[:2], [float(w == 0), float(w == 1)]).detach()) for w in (0, 1))
    both = float(made.loss_sum(tuned(), GROUPS[:2], [0.25, 2.0]).detach())
    assert both == pytest.approx(0.25 * one + 2.0 * two, rel=1e-5)
    row = {name: getattr(GROUPS[0], name) for name in Example.__slots__}
    nothing = tuple(advantages([0.5] * 4, scaled=True))
    alike = Written(**row, answers=GROUPS[0].answers, rewards=(0.5,) * 4, advantages=nothing)
    assert all(float(one.abs().max()) == 0.0 for one in gradients(made, [alike], 100).values())


def test_advantages_are_standard_scores_or_differences() -> None:
    worth = [0.0, 1.0, 0.5, 0.25]
    apart = np.array(worth) - np.mean(worth)
    assert advantages(worth, scaled=False) == pytest.approx(apart)
    assert advantages(worth, scaled=True) == pytest.approx(apart / (np.std(worth, ddof=1) + 1e-4))
    assert advantages([0.3, 0.3, 0.3], scaled=True) == [0.0, 0.0, 0.0]


def test_ways_that_go_on_together_are_those_that_go_on_alone() -> None:
    model, prompt = llama(), EXAMPLES[0].prompt_ids
    given: dict[str, Any] = {"max_new_tokens": 7, "stop_ids": (2,)}
    with torch.no_grad():
        alone = go_on(model, prompt, choose=greedy, **given)
        assert go_on_together(model, prompt, count=3, choose=greedy, **given) == [alone] * 3
        one, other = (
            go_on_together(model, prompt, count=5, choose=sampled(np.random.default_rng(seed)), **given)
            for seed in (1, 1)
        )
        assert one == other
        assert len({tuple(way.ids) for way in one}) > 1
        single = go_on_together(model, prompt, count=1, choose=sampled(np.random.default_rng(4)), **given)
        assert single == [go_on(model, prompt, choose=sampled(np.random.default_rng(4)), **given)]
        # A way that has ended stands still while others go on: each is its own greedy continuation of what it has.
        stop = next(token for way in one for token in way.ids[1:3])
        ended = go_on_together(
            model, prompt, count=5, choose=sampled(np.random.default_rng(1)), max_new_tokens=7, stop_ids=(stop,)
        )
    assert any(way.end is not None for way in ended)
    assert all(stop not in way.ids for way in ended)


def test_answers_are_drawn_with_the_chances_that_the_model_gives_them() -> None:
    """Of 3000 first tokens as many are of a half of the vocabulary as the model gives it, to four standard errors."""
    model, prompt = bare(tuned()), EXAMPLES[0].prompt_ids
    with torch.no_grad():
        drawn = go_on_together(
            model, prompt, count=3000, max_new_tokens=1, stop_ids=(2,), choose=sampled(np.random.default_rng(0))
        )
        chances = torch.softmax(model(input_ids=torch.tensor([prompt])).logits[0, -1].double(), dim=-1)
    share = np.mean([bool(way.ids) and way.ids[0] < 192 for way in drawn])
    expected = float(chances[:192].sum() - chances[2])
    assert share == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 3000) ** 0.5)


def test_what_is_learned_ends_with_the_token_that_was_drawn() -> None:
    """Of two that end an answer the model may draw either, and the other was no choice of its."""
    stops = (2, *range(100, 384))
    contract = CONTRACT.model_copy(update={"stop_ids": stops, "end_of_turn_ids": (2,)})
    made = Grpo(grpo.Grpo(num_generations=8), contract, low).reading(lambda ids: " ".join(map(str, ids)))
    model = tuned()
    with torch.no_grad():
        row = made.rewritten(model, EXAMPLES[0], np.random.default_rng(0))
        drawn = go_on_together(
            bare(model), EXAMPLES[0].prompt_ids, count=8, max_new_tokens=6, stop_ids=stops,
            choose=sampled(np.random.default_rng(0)),
        )  # fmt: skip
    assert row.answers == tuple(tuple(one.whole) for one in drawn)
    assert any(answer[-1] in stops[1:] for answer in row.answers)
    assert all(answer[-1] in stops or len(answer) == 6 for answer in row.answers)


def test_before_anything_is_written_a_row_counts_as_the_largest_that_it_may_become() -> None:
    made, one = method(), EXAMPLES[0]
    assert isinstance(made, OnPolicy)
    assert isinstance(made, Verified)
    assert [len(ids) for ids in made.computed(one)] == [one.prompt_tokens + 5] * 4
    assert made.count(one) == 24
    assert method("grpo").count(one) == 1
    assert torch.isfinite(made.loss_sum(tuned(), [one]))
    with torch.no_grad():
        row = made.rewritten(tuned(), one, np.random.default_rng(0))
    assert all(len(answer) <= 7 for answer in row.answers)  # the end of turn beside six tokens
    assert sum(map(len, made.computed(row))) <= sum(map(len, made.computed(one))) + 4
    assert row.num_supervised == sum(map(len, row.answers))
    assert row.num_tokens == row.prompt_tokens + row.num_supervised


def settings() -> Any:
    return SETTINGS.model_copy(update={"learning_rate": 0.03, "lr_scheduler_type": "constant", "num_train_epochs": 5})


def test_what_is_worth_more_is_written_more_often_and_a_run_that_was_stopped_ends_with_the_same_bits(
    tmp_path: Path,
) -> None:
    whole = test_train_loop.run(tmp_path / "whole", method=method(num_generations=16), settings=settings())
    worth = [event.metrics["reward"] for event in whole.history]
    quarter = len(worth) // 4
    assert np.mean(worth[-quarter:]) > np.mean(worth[:quarter]) + 0.08
    assert all(0.0 <= event.metrics["rewards_alike"] <= 1.0 for event in whole.history)
    torch.seed()
    with pytest.raises(Stopped):
        test_train_loop.run(tmp_path / "cut", method=method(num_generations=16), settings=settings(), stop_after=5)
    torch.seed()
    again = test_train_loop.run(tmp_path / "cut", method=method(num_generations=16), settings=settings())
    assert again.weights_sha256 == whole.weights_sha256
    assert [event.metrics for event in again.history] == [event.metrics for event in whole.history]


def test_what_a_step_writes_follows_from_seed_step_and_row() -> None:
    inputs = inputs_of(EXAMPLES[:4], method())
    one, same, other, part = (
        with_own_answers(tuned(), inputs, rows, seed=seed, step=3).own
        for rows, seed in (([0, 1, 2], 0), ([2, 0, 1], 0), ([0, 1, 2], 1), ([1], 0))
    )
    assert one == same
    assert one[1] == part[1]
    assert any(one[row] != other[row] for row in one)
    told = rewards_of_step(with_own_answers(tuned(), inputs, [0, 1, 2], seed=0, step=3))
    assert told["reward"] == pytest.approx(np.mean([row.rewards for row in one.values()]))
    assert rewards_of_step(inputs) == {}


ONCE = SETTINGS.model_copy(update={"num_train_epochs": 1})


def on_ranks(ranks: Any, folder: str, strategy: str) -> list[float]:
    from luthier.train import shard

    model = test_train_loop.fresh()
    if strategy == "fsdp":
        shard.shard(model, ranks)
    result = test_train_loop.run(Path(folder) / strategy, model=model, method=method("grpo"), settings=ONCE)
    return [value for event in result.history for value in (event.grad_norm, event.metrics["reward"])]


def test_ranks_share_the_prompts_and_all_write_the_same(tmp_path: Path) -> None:
    alone = test_train_loop.run(tmp_path / "alone", method=method("grpo"), settings=ONCE).history
    expected = [value for event in alone for value in (event.grad_norm, event.metrics["reward"])]
    for strategy in ("ddp", "fsdp"):
        for found in together(2, on_ranks, str(tmp_path), strategy):
            assert found == pytest.approx(expected, rel=1e-4)


def test_the_table_opens_it_with_the_rewards_of_the_contract() -> None:
    made = load_method(grpo.Grpo(), CONTRACT)
    assert isinstance(made, Grpo)
    assert made.reward("a", "a ") == 1.0
    assert made.reward("a", "b") == 0.0
