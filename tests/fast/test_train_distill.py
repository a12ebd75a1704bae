"""Distillation is exact: as float64 formulas say, whatever the micro-batch and the chunk, and a teacher only reads."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import samples
import test_train_loop
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from test_train_loop import EXAMPLES, SETTINGS, example, relative_error
from test_train_preference import moved, tuned
from torch import Tensor
from torch.nn import functional

from luthier.data.shards import Example
from luthier.errors import Stopped
from luthier.models import taught
from luthier.models.adapters import bare
from luthier.models.taught import Reading, Rule, share_weights, taught_losses
from luthier.spec.methods import distill
from luthier.train.batches import micro_batches
from luthier.train.methods.distill import Distill
from luthier.train.methods.sft import Sft
from ranks_kit import together
from rows_kit import inputs_of
from tiny import llama

ALPHA, TEMPERATURE, BETA = 0.7, 1.7, 0.3
METHODS = {
    "forward_kl": distill.Distill(teacher="t", alpha=ALPHA, temperature=TEMPERATURE),
    "reverse_kl": distill.Distill(teacher="t", alpha=ALPHA, temperature=TEMPERATURE, divergence="reverse_kl"),
    "jsd": distill.Distill(teacher="t", alpha=ALPHA, temperature=TEMPERATURE, divergence="jsd", beta=BETA),
    "jsd even": distill.Distill(teacher="t", alpha=ALPHA, divergence="jsd"),
    "teacher alone": distill.Distill(teacher="t", alpha=1.0),
}


@lru_cache(maxsize=1)
def other() -> Any:
    """A teacher of another size, whose head is padded to more scores than there are tokens."""
    return llama(seed=7, hidden_size=48, num_hidden_layers=3, vocab_size=390, tie_word_embeddings=False)


CONTRACT = samples.contract(stop_ids=(2,), end_of_turn_ids=(2,), max_new_tokens=6, max_length=64)


def method(name: str, teacher: Any = None, **changes: Any) -> Distill:
    settings = METHODS[name].model_copy(update=changes)
    return Distill(settings, CONTRACT).under(teacher or other())


def gradients(method: Distill, rows: list[Example], budget: int, model: Any = None) -> dict[str, Tensor]:
    model = model or tuned()
    model.zero_grad()
    total = sum(map(method.count, rows))
    for part in micro_batches(range(len(rows)), [method.computed(one) for one in rows], max_tokens=budget):
        (method.loss_sum(model, [rows[row] for row in part.rows]) / total).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def formula(name: str, own: Tensor, theirs: Tensor, targets: Tensor) -> Tensor:
    """As the papers write it, [N]; scores of both over the tokens that both know for the divergence."""
    section = METHODS[name]
    a, t, b = section.alpha, section.temperature, section.beta or 0.5
    known = min(own.shape[1], theirs.shape[1])
    p, q = (torch.softmax(scores[:, :known] / t, dim=-1) for scores in (theirs, own))
    if section.divergence == "forward_kl":
        apart = (p * torch.log(p / q)).sum(dim=-1)
    elif section.divergence == "reverse_kl":
        apart = (q * torch.log(q / p)).sum(dim=-1)
    else:
        m = b * p + (1 - b) * q
        apart = b * (p * torch.log(p / m)).sum(dim=-1) + (1 - b) * (q * torch.log(q / m)).sum(dim=-1)
    hard = -torch.log(torch.softmax(own, dim=-1).gather(1, targets[:, None])[:, 0])
    return (1 - a) * hard + a * t**2 * apart


def reference(name: str, rows: list[Example]) -> tuple[dict[str, Tensor], float]:
    """Plain transformers, one row at a time, in float64."""
    model, teacher = (
        moved(test_train_loop.fresh()).double(),
        llama(seed=7, hidden_size=48, num_hidden_layers=3, vocab_size=390, tie_word_embeddings=False).double(),
    )
    total, loss = sum(map(Sft().count, rows)), 0.0
    for one in rows:
        ids, on = torch.tensor([one.input_ids]), torch.tensor(one.supervised[1:])
        own, theirs = (asked(input_ids=ids).logits[0, :-1][on] for asked in (model, teacher))
        mean = formula(name, own, theirs.detach(), ids[0, 1:][on]).sum() / total
        mean.backward()
        loss += float(mean.detach())
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}, loss


@pytest.mark.parametrize("name", METHODS)
def test_loss_and_gradient_are_those_of_a_float64_formula_whatever_the_micro_batch(name: str) -> None:
    rows = EXAMPLES[:8]
    expected, loss = reference(name, rows)
    found = float(method(name).loss_sum(tuned(), rows).detach())
    assert found / sum(map(Sft().count, rows)) == pytest.approx(loss, rel=1e-5)
    for budget in (1, 40, 10_000):
        assert relative_error(gradients(method(name), rows, budget), expected) < 2e-5


def jsd_of_trl(own: Tensor, theirs: Tensor, beta: float, temperature: float) -> Tensor:
    """`GKDTrainer.generalized_jsd_loss` of TRL 1.x: by log-probabilities, beta 0 and 1 are the two KLs; [N]."""
    log_q = functional.log_softmax(own / temperature, dim=-1)
    log_p = functional.log_softmax(theirs / temperature, dim=-1)

    def kl(log_of: Tensor, log_from: Tensor) -> Tensor:
        return functional.kl_div(log_from, log_of, reduction="none", log_target=True).sum(dim=-1)

    if beta in (0, 1):
        return kl(log_p, log_q) if beta == 0 else kl(log_q, log_p)
    weights = torch.log(torch.tensor([1 - beta, beta], dtype=own.dtype))
    log_m = torch.logsumexp(torch.stack([log_q + weights[0], log_p + weights[1]]), dim=0)
    return beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)


@pytest.mark.parametrize(("divergence", "beta"), [("forward_kl", 0), ("reverse_kl", 1), ("jsd", 0.1), ("jsd", 0.9)])
def test_the_divergence_is_that_of_trl(divergence: Any, beta: float) -> None:
    torch.manual_seed(0)
    own, theirs = torch.randn(9, 50) * 3, torch.randn(9, 50) * 3
    states = own.clone().requires_grad_()
    rule = Rule(alpha=1.0, temperature=2.0, divergence=divergence, beta=beta)
    losses = taught_losses(Reading(states, None), Reading(theirs, None), torch.zeros(9, dtype=torch.long), rule)
    losses.sum().backward()
    again = own.double().requires_grad_()
    expected = 4.0 * jsd_of_trl(again, theirs.double(), beta, 2.0)
    expected.sum().backward()
    assert torch.allclose(losses.double(), expected, rtol=1e-5)
    assert torch.allclose(states.grad.double(), again.grad, rtol=1e-4, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    number=st.integers(1, 9), own=st.integers(2, 7), theirs=st.integers(2, 7), chunk=st.integers(1, 4),
    name=st.sampled_from(sorted(METHODS)), seed=st.integers(0, 99), scale=st.sampled_from([0.1, 3.0, 40.0]),
)  # fmt: skip
def test_neither_the_chunk_nor_the_size_of_a_head_matters(
    number: int, own: int, theirs: int, chunk: int, name: str, seed: int, scale: float
) -> None:
    """With a head and its bias that learn, weights of positions, and scores that leave no doubt."""
    rng = torch.Generator().manual_seed(seed)
    hidden = (scale * torch.randn(number, 5, generator=rng)).requires_grad_()
    weight, bias = torch.randn(own, 5, generator=rng).requires_grad_(), torch.randn(own, generator=rng).requires_grad_()
    teacher = scale * torch.randn(number, theirs, generator=rng)
    targets = torch.randint(0, min(own, theirs), (number,), generator=rng)
    factors = torch.rand(number, generator=rng)
    learning = (hidden, weight, bias)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(taught, "CHUNK", chunk)
        losses = taught_losses(Reading(*learning), Reading(teacher, None), targets, method(name).rule)
        found = torch.autograd.grad((losses * factors).sum(), learning)
    exact = [one.detach().double().requires_grad_() for one in learning]
    scores = exact[0] @ exact[1].T + exact[2]
    theirs_p = teacher.double()
    expected = formula_by_logs(name, scores, theirs_p, targets)
    assert torch.allclose(losses.double(), expected, rtol=2e-4, atol=2e-4)
    for one, other in zip(found, torch.autograd.grad((expected * factors).sum(), exact), strict=True):
        assert torch.allclose(one.double(), other, rtol=5e-3, atol=2e-4 * scale)


def formula_by_logs(name: str, own: Tensor, theirs: Tensor, targets: Tensor) -> Tensor:
    """`formula` where chances may round to zero."""
    section = METHODS[name]
    beta = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": section.beta or 0.5}[section.divergence]
    known = min(own.shape[1], theirs.shape[1])
    apart = jsd_of_trl(own[:, :known], theirs[:, :known], beta, section.temperature)
    hard = functional.cross_entropy(own, targets, reduction="none")
    return (1 - section.alpha) * hard + section.alpha * section.temperature**2 * apart


@pytest.mark.parametrize("name", METHODS)
def test_a_teacher_that_says_the_same_teaches_nothing(name: str) -> None:
    """The teacher's part of the gradient is zero then, and what is left is that of sft."""
    rows, same = EXAMPLES[:6], moved(test_train_loop.fresh())
    found = gradients(method(name, same), rows, 10_000)
    plain = gradients(Sft(), rows, 10_000)  # type: ignore[arg-type]
    share = 1.0 - METHODS[name].alpha
    scale = max(float(one.abs().max()) for one in plain.values())
    assert max(float((found[key] - share * plain[key]).abs().max()) for key in plain) < 2e-6 * scale


@pytest.mark.parametrize("name", ["forward_kl", "jsd"])
def test_a_token_that_a_teacher_rules_out_counts_as_one_that_it_finds_next_to_impossible(name: Any) -> None:
    torch.manual_seed(0)
    own, theirs, targets = torch.randn(4, 6), torch.randn(4, 6), torch.tensor([0, 1, 2, 3])
    rule, found = Rule(0.5, 2.0, name, 0.3), []
    for out in (float("-inf"), -1e4):
        theirs[:, 5] = out
        scores = own.clone().requires_grad_()
        losses = taught_losses(Reading(scores, None), Reading(theirs, None), targets, rule)
        losses.sum().backward()
        assert scores.grad is not None
        found.append((losses.detach(), scores.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_rows_do_not_see_each_other_and_the_teacher_reads_in_the_same_layout() -> None:
    rows = [example(number, length=12) for number in range(5)]
    start, marks = rows[0].input_ids[:12], [False] * 12 + [True] * 2
    shared = [Example(n, "", "", "", 12, [*start, 60 + n, 2], marks) for n in (1, 2)]
    together_ = float(method("jsd").loss_sum(tuned(), [*rows, *shared]).detach())
    alone = sum(float(method("jsd").loss_sum(tuned(), [one]).detach()) for one in (*rows, *shared))
    assert together_ == pytest.approx(alone, rel=1e-5)


def test_weights_of_rows_multiply_both_parts() -> None:
    ready = method("reverse_kl")
    alone = [float(ready.loss_sum(tuned(), [one]).detach()) for one in EXAMPLES[:3]]
    weighted = float(ready.loss_sum(tuned(), EXAMPLES[:3], [0.0, 2.0, 0.5]).detach())
    assert weighted == pytest.approx(2 * alone[1] + 0.5 * alone[2], rel=1e-6)


def test_the_teacher_is_itself_and_holds_no_gradient() -> None:
    """Its adapter is its own: it says what it says alone, whatever the other one has learned."""
    teacher, before = moved(test_train_loop.fresh()), other().training
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if "lora_A" in name:
                parameter.mul_(-1.0)
    ready = method("teacher alone", teacher)
    ids = torch.tensor([EXAMPLES[0].input_ids])
    alone = bare(teacher)(input_ids=ids).logits
    ready.loss_sum(tuned(), EXAMPLES[:4]).backward()
    assert torch.equal(bare(teacher)(input_ids=ids).logits, alone)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not before
    plain = ready.loss_sum(tuned(), EXAMPLES[:4]).detach()
    with torch.no_grad(), tuned().disable_adapter():
        assert not torch.equal(plain, ready.loss_sum(tuned(), EXAMPLES[:4]))


def test_scores_are_held_a_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """4,096 positions of 2,000 scores: what is held at once is counted as it is made."""
    seen: list[int] = []
    real = taught._of_chunk

    def counted(own: Tensor, theirs: Tensor, *rest: Any) -> Any:
        seen.append(own.numel() + theirs.numel())
        return real(own, theirs, *rest)

    monkeypatch.setattr(taught, "_of_chunk", counted)
    hidden, head = torch.randn(4096, 8, requires_grad=True), torch.randn(2000, 8)
    own, teacher = Reading(hidden, head), Reading(torch.randn(4096, 8), head)
    losses = taught_losses(own, teacher, torch.zeros(4096, dtype=torch.long), method("jsd").rule)
    losses.sum().backward()
    assert max(seen) == 2 * taught.CHUNK * 2000
    assert len(seen) == 4096 // taught.CHUNK


def test_what_both_have_of_one_base_is_held_once() -> None:
    model, teacher = tuned(), moved(test_train_loop.fresh())
    said = bare(teacher)(input_ids=torch.tensor([[1, 5, 9]])).logits
    frozen = sum(1 for name, p in model.named_parameters() if not p.requires_grad)
    assert share_weights(teacher, model) == frozen
    own = {p.data_ptr() for p in model.parameters() if not p.requires_grad}
    assert {p.data_ptr() for name, p in teacher.named_parameters() if "lora_" not in name} == own
    assert torch.equal(bare(teacher)(input_ids=torch.tensor([[1, 5, 9]])).logits, said)
    assert share_weights(llama(seed=3), model) == 5  # norms, all of ones
    assert share_weights(other(), model) == 0


def run(out: Path, **more: Any) -> Any:
    return test_train_loop.run(out, method=method("jsd"), **more)


def test_a_stopped_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    torch.use_deterministic_algorithms(True)
    whole = run(tmp_path / "whole")
    with pytest.raises(Stopped):
        run(tmp_path / "cut", stop_after=3)
    assert run(tmp_path / "cut").weights_sha256 == whole.weights_sha256
    torch.use_deterministic_algorithms(False)
    assert whole.history[-1].loss < whole.history[0].loss


def on_ranks(ranks: Any, folder: str, strategy: str) -> list[float]:
    from luthier.train import shard

    model = test_train_loop.fresh()
    if strategy == "fsdp":
        shard.shard(model, ranks)
    result = test_train_loop.run(Path(folder) / strategy, model=model, method=method("jsd"), settings=ONCE)
    return [event.loss for event in result.history]


ONCE = SETTINGS.model_copy(update={"num_train_epochs": 1})


def test_ranks_share_the_rows_and_each_asks_the_whole_teacher(tmp_path: Path) -> None:
    alone = [event.loss for event in run(tmp_path / "alone", settings=ONCE).history]
    for strategy in ("ddp", "fsdp"):
        for losses in together(2, on_ranks, str(tmp_path), strategy):
            assert losses == pytest.approx(alone, rel=1e-5)


def test_a_method_learns_only_once_it_has_a_teacher() -> None:
    with pytest.raises(AssertionError, match="the teacher is opened before training"):
        Distill(METHODS["jsd"], CONTRACT).loss_sum(tuned(), EXAMPLES[:1])


def test_what_a_section_refuses() -> None:
    with pytest.raises(ValidationError, match="beta belongs to divergence: jsd"):
        distill.Distill(teacher="t", beta=0.2)
    for wrong in ({}, {"teacher": ""}, {"teacher": "t", "alpha": 0}, {"teacher": "t", "temperature": 0}):
        with pytest.raises(ValidationError):
            distill.Distill.model_validate(wrong)
    assert inputs_of(EXAMPLES, method("jsd")).learned(0) == 2
