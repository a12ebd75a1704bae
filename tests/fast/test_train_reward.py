"""A reward model learns what plain PEFT learns by the formula, in float64, whatever the cut into micro-batches."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import echo_engine
import pytest
import test_train_loop
import torch
from classify_kit import LORA, plain
from test_train_classify import peft_name
from test_train_loop import SETTINGS, relative_error
from test_train_preference import ALIKE, PAIRS, pair
from test_train_trunk import open_at
from torch import Tensor

from luthier.data.shards import Example
from luthier.errors import RunError
from luthier.models.adapters import attach
from luthier.models.classifier import head_of, put_head
from luthier.models.packing import num_laid_out
from luthier.spec.methods.reward import RewardModel as Settings
from luthier.train import over_prompts
from luthier.train.batches import micro_batches
from luthier.train.methods import load_method
from luthier.train.methods.reward import RewardModel
from luthier.train.trunk import on_trunk
from rows_kit import inputs_of
from tiny import llama

CENTER = 0.05


def contract(**changes: Any) -> Any:
    return echo_engine.contract(**{"task": "preference", "labels": (), "answered_by": "head"} | changes)


def method(**settings: Any) -> RewardModel:
    made = load_method(Settings(**settings), contract())
    assert isinstance(made, RewardModel)
    return made


def fresh(**changes: Any) -> Any:
    """As training begins."""
    model = attach(llama(), LORA.model_copy(update=changes), base_name="tiny", seed=0)
    put_head(model, 1)
    return model


@lru_cache(maxsize=2)
def moved(*, dropout: float = 0.0) -> Any:
    """As training leaves it: neither the adapter's second factor nor the head is zero."""
    model = fresh(dropout=dropout)
    with torch.no_grad():
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
        head = head_of(model)
        assert head is not None
        head.weight.normal_(std=0.2)
    return model


def gradients(learns: RewardModel, pairs: list[Example], budget: int) -> tuple[float, dict[str, Tensor]]:
    model, total = moved(), 0.0
    model.zero_grad(set_to_none=True)
    for part in micro_batches(range(len(pairs)), [learns.computed(one) for one in pairs], max_tokens=budget):
        loss = learns.loss_sum(model, [pairs[row] for row in part.rows]) / len(pairs)
        loss.backward()
        total += float(loss.detach())
    return total, {peft_name(name): p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def plain_gradients(model: Any, pairs: list[Example], center: float) -> tuple[float, dict[str, Tensor]]:
    """Plain PEFT's sequence classification, an answer at a time, and TRL's loss (1.16, RewardTrainer.compute_loss)."""
    model.zero_grad(set_to_none=True)
    total = 0.0
    for one in pairs:
        rows = (one.input_ids, one.prompt_ids + one.rejected_ids)
        chosen, rejected = (model(input_ids=torch.tensor([ids])).logits[0, 0] for ids in rows)
        loss = (-torch.log(torch.sigmoid(chosen - rejected)) + center * (chosen + rejected) ** 2) / len(pairs)
        loss.backward()
        total += float(loss.detach())
    return total, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return plain(moved(), tmp_path_factory.mktemp("plain"), num_labels=1, pad_token_id=0).double()


@pytest.mark.parametrize("center", [0.0, CENTER])
@pytest.mark.parametrize("pairs", [PAIRS[:6], ALIKE], ids=["own prompts", "one prompt"])
def test_loss_and_gradient_are_those_of_plain_peft_in_float64_whatever_the_micro_batch(
    theirs: Any, pairs: list[Example], center: float
) -> None:
    wanted, expected = plain_gradients(theirs, pairs, center)
    for budget in (1, 45, 10_000):
        loss, found = gradients(method(center_rewards_coefficient=center), pairs, budget)
        assert loss == pytest.approx(wanted, rel=1e-5)
        assert set(found) == set(expected)
        assert relative_error(found, expected) < 1e-5


def test_the_centre_costs_what_it_says_and_no_common_shift_costs_without_it() -> None:
    scores = torch.tensor([[1.5, 0.2], [-3.0, 1.0], [40.0, -40.0], [-400.0, 400.0]], dtype=torch.float64)
    free, held = (method(center_rewards_coefficient=c).losses(scores) for c in (0.0, CENTER))
    assert torch.allclose(free, torch.nn.functional.softplus(scores[:, 1] - scores[:, 0]))
    assert torch.allclose(held - free, CENTER * (scores[:, 0] + scores[:, 1]) ** 2)
    assert torch.allclose(method().losses(scores + 7.0), free)
    assert torch.isfinite(held).all()


def test_a_prompt_is_computed_once_for_both_answers_unless_noise_makes_each_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    laid_out: list[int] = []
    real = over_prompts.lay_out_rows

    def counted(rows: Any, **how: Any) -> Any:
        made = real(rows, **how)
        laid_out.append(made[0].input_ids.numel())
        return made

    monkeypatch.setattr(over_prompts, "lay_out_rows", counted)
    one = pair(3, chosen=4, rejected=6)
    for dropout in (0.0, 0.3):
        method().loss_sum(moved(dropout=dropout).train(), [one])
    # Both answers begin alike; their last tokens are read, for they are scored there.
    shared = one.prompt_tokens + 1 + 5 + 7
    assert laid_out == [shared, shared + one.prompt_tokens + 1]
    assert num_laid_out(method().computed(one)) == shared


def test_a_score_is_read_at_the_last_token_of_its_answer_and_knows_no_other_row() -> None:
    one, other = PAIRS[0], PAIRS[1]
    rows = [*method().computed(one), *method().computed(other)]
    with torch.no_grad():
        whole = over_prompts.scores_at_ends(moved().eval(), rows, "letter")
        alone = [over_prompts.scores_at_ends(moved(), [row], "letter")[0] for row in rows]
        shorter = over_prompts.scores_at_ends(moved(), [rows[0][:-1]], "letter")[0]
    assert whole.shape == (4, 1)
    assert torch.allclose(whole, torch.stack(alone), atol=1e-5)
    assert not torch.allclose(shorter, alone[0], atol=1e-3)


def test_weights_of_rows_multiply_their_losses() -> None:
    model, learns = moved(), method(center_rewards_coefficient=CENTER)
    alone = [float(learns.loss_sum(model, [one]).detach()) for one in PAIRS[:3]]
    weighted = float(learns.loss_sum(model, PAIRS[:3], [0.0, 2.0, 0.5]).detach())
    assert weighted == pytest.approx(2 * alone[1] + 0.5 * alone[2], rel=1e-5)


def test_training_begins_undecided_learns_and_counts_pairs(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"num_train_epochs": 8})
    result = test_train_loop.run(tmp_path, model=fresh(), inputs=inputs_of(PAIRS, method()), settings=settings)
    losses = [event.loss for event in result.history]
    assert losses[0] == pytest.approx(math.log(2))
    assert losses[-1] < 0.5 * losses[0]
    assert result.supervised_tokens == 8 * len(PAIRS)  # no token is learned: the unit is the pair
    whole = sum(len(one.input_ids) + len(one.rejected_ids) for one in PAIRS)
    assert result.trained_tokens == 8 * whole


def test_kept_states_of_frozen_layers_give_the_same_gradient(tmp_path: Path) -> None:
    def upper() -> Any:
        model = fresh(layers_to_transform=(1,))
        with torch.no_grad():
            torch.manual_seed(2)
            head = head_of(model)
            assert head is not None
            head.weight.normal_(std=0.2)
        return model

    given = inputs_of(PAIRS[:6], method())
    found = []
    for name in ("whole", "kept"):
        model = upper()
        rows = list(dict.fromkeys(tuple(ids) for one in PAIRS[:6] for ids in method().computed(one)))
        inputs = given if name == "whole" else on_trunk(given, open_at(tmp_path, model, rows, first=1))
        assert inputs.learned(0) == 1
        inputs.tasks[0].method.loss_sum(model, PAIRS[:6]).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert relative_error(found[1], found[0]) < 1e-5


@pytest.mark.parametrize("changes", [{"answered_by": "words"}, {"task": "classification", "labels": ("a", "b")}])
def test_a_contract_of_another_method_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="not made for a head that scores answers"):
        load_method(Settings(), contract(**changes))
