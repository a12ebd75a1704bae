"""Methods over preferences are exact: as float64 formulas say, whatever the micro-batch, after any interruption."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import test_train_loop
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from test_train_loop import SETTINGS, relative_error
from torch import Tensor

from luthier.data.shards import Example
from luthier.engines.transformers import TransformersEngine
from luthier.errors import ModelError, Stopped
from luthier.models.packing import num_laid_out
from luthier.pipeline.progress import Progress
from luthier.pipeline.reference import with_reference
from luthier.spec.methods import dpo, orpo, simpo
from luthier.store.events import EventLog
from luthier.train import reference, shard
from luthier.train import rows as learned
from luthier.train.batches import micro_batches
from luthier.train.dist import Ranks
from luthier.train.methods.dpo import Dpo
from luthier.train.methods.orpo import Orpo
from luthier.train.methods.simpo import Simpo
from luthier.train.pairs import Pairs
from luthier.train.reference import Reference, on_trial, open_reference, seen_pairs
from ranks_kit import together
from rows_kit import inputs_of

BETA, SMOOTHING, GAMMA = 0.3, 0.1, 0.7


def pair(number: int, *, prompt: list[int] | None = None, chosen: int = 0, rejected: int = 0) -> Example:
    """A prompt of at least 9 tokens with two answers that differ, the first tokens of which may be alike."""
    rng = torch.Generator().manual_seed(number)

    def some(count: int) -> list[int]:
        return torch.randint(3, 380, (count,), generator=rng).tolist()

    asked = prompt or [1, *some(9 + number % 5)]
    one, other = [50, *some(chosen or 2 + number % 4), 2], [50, *some(rejected or 1 + number % 6), 2]
    return Example(
        number + 2, f"g{number}", "text", f"a{number}", len(asked), asked + one,
        [False] * len(asked) + [True] * len(one), rejected="other", rejected_ids=other,
    )  # fmt: skip


PAIRS = [pair(number) for number in range(14)]
ALIKE = [pair(number, prompt=[1, *range(3, 20)]) for number in range(4)]
METHODS: dict[str, Callable[[Reference], Pairs]] = {
    "dpo": lambda known: Dpo(dpo.Dpo(beta=BETA), known),
    "cdpo": lambda known: Dpo(dpo.Dpo(beta=BETA, label_smoothing=SMOOTHING), known),
    "ipo": lambda known: Dpo(dpo.Dpo(beta=BETA, loss="ipo"), known),
    "orpo": lambda known: Orpo(orpo.Orpo(beta=BETA)),
    "simpo": lambda known: Simpo(simpo.Simpo(beta=BETA, gamma=GAMMA)),
}


def moved(model: Any) -> Any:
    """The adapter has left its start, so that it says something else than the base; alike in every precision."""
    with torch.no_grad():
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.empty(parameter.shape, dtype=torch.float32).normal_(std=0.05))
    return model


@lru_cache(maxsize=2)
def tuned(*, dropout: float = 0.0) -> Any:
    """Made once: making one takes longer than its losses."""
    return moved(test_train_loop.fresh(dropout=dropout))


@lru_cache(maxsize=1)
def untouched() -> Any:
    return test_train_loop.fresh()


def open_at(folder: Path, pairs: list[Example], *, model: Any = None, **changes: Any) -> Reference:
    usual: dict[str, Any] = {
        "method": Dpo(dpo.Dpo()), "base_sha256": "b", "max_tokens": 60,
        "tell": (lambda done, total: None, lambda: False),
    }  # fmt: skip
    return open_reference(model or untouched(), pairs, folder=folder, **(usual | changes))


def gradients(method: Pairs, pairs: list[Example], budget: int) -> dict[str, Tensor]:
    model = tuned()
    model.zero_grad()
    for part in micro_batches(range(len(pairs)), [method.computed(one) for one in pairs], max_tokens=budget):
        total = sum(map(method.count, pairs))
        (method.loss_sum(model, [pairs[row] for row in part.rows]) / total).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def plain_logprob(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """Plain transformers, one sequence at a time."""
    ids = torch.tensor([prompt + answer])
    scores = torch.log_softmax(model(input_ids=ids).logits[0, :-1], dim=-1)
    return scores.gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0].sum()


def both(model: Any, one: Example) -> tuple[Tensor, Tensor]:
    chosen = one.input_ids[one.prompt_tokens :]
    return plain_logprob(model, one.prompt_ids, chosen), plain_logprob(model, one.prompt_ids, one.rejected_ids)


def formula(name: str, policy: tuple[Tensor, Tensor], base: tuple[Tensor, Tensor], lengths: tuple[int, int]) -> Tensor:
    """As the papers write them, without any function that is made for numbers."""
    (w, v), (w0, v0), (n, m) = policy, base, lengths
    s = torch.sigmoid
    if name in ("dpo", "cdpo"):
        h, e = BETA * ((w - w0) - (v - v0)), SMOOTHING if name == "cdpo" else 0.0
        return -(1 - e) * torch.log(s(h)) - e * torch.log(s(-h))
    if name == "ipo":
        return ((w - w0) / n - (v - v0) / m - 1 / (2 * BETA)) ** 2
    if name == "simpo":
        return -torch.log(s(BETA / n * w - BETA / m * v - GAMMA))
    p, q = torch.exp(w / n), torch.exp(v / m)
    ratio = (p / (1 - p)) / (q / (1 - q))
    return -w / n - BETA * torch.log(s(torch.log(ratio)))


def reference_gradients(name: str, pairs: list[Example]) -> tuple[dict[str, Tensor], float]:
    model = moved(test_train_loop.fresh()).double()
    total = 0.0
    for one in pairs:
        with torch.no_grad(), model.disable_adapter():
            base = both(model, one)
        lengths = (len(one.input_ids) - one.prompt_tokens, len(one.rejected_ids))
        loss = formula(name, both(model, one), base, lengths) / len(pairs)
        loss.backward()
        total += float(loss.detach())
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}, total


@pytest.mark.parametrize("pairs", [PAIRS[:6], ALIKE], ids=["own prompts", "one prompt"])
@pytest.mark.parametrize("name", METHODS)
def test_the_gradient_is_that_of_a_float64_formula_whatever_the_micro_batch(
    tmp_path: Path, name: str, pairs: list[Example]
) -> None:
    method = METHODS[name](open_at(tmp_path, pairs))
    expected, loss = reference_gradients(name, pairs)
    found = method.loss_sum(tuned(), pairs).detach()
    assert float(found) / len(pairs) == pytest.approx(loss, rel=1e-5)
    for budget in (1, 45, 10_000):
        assert relative_error(gradients(method, pairs, budget), expected) < 1e-5


ANSWER = st.lists(st.integers(3, 380), min_size=1, max_size=7)


@settings(max_examples=8, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(1, 20), ANSWER, ANSWER), min_size=1, max_size=5),
    budget=st.integers(1, 90),
    name=st.sampled_from(sorted(METHODS)),
)
def test_neither_the_lengths_nor_the_cut_matter(
    rows: list[tuple[int, list[int], list[int]]], budget: int, name: str
) -> None:
    pairs = []
    for number, (length, chosen, rejected) in enumerate(rows):
        asked = [1, *range(3, 3 + length)]
        ids, marks = [*asked, *chosen, 2], [False] * len(asked) + [True] * (len(chosen) + 1)
        pairs.append(Example(number, "", "", "", len(asked), ids, marks, rejected_ids=[*rejected, 2]))
    known = {reference._digest(one): (-3.0 - n, -4.0) for n, one in enumerate(pairs)}
    method = METHODS[name](
        Reference(known, reference.About(num_pairs=len(pairs), sha256="", seconds=0.0), reused=False)
    )
    whole = gradients(method, pairs, 10_000)
    alone: dict[str, Tensor] = {}
    for one in pairs:
        for key, grad in gradients(method, [one], 1).items():
            alone[key] = alone.get(key, 0.0) + grad / len(pairs)
    scale = max(float(grad.abs().max()) for grad in whole.values())
    for other in (gradients(method, pairs, budget), alone):
        assert max(float((other[key] - whole[key]).abs().max()) for key in whole) < 1e-5 * max(scale, 1e-2)


def test_a_prompt_is_computed_once_for_both_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    laid_out: list[int] = []
    real = learned.lay_out_rows

    def counted(rows: Any, **how: Any) -> Any:
        made = real(rows, **how)
        laid_out.append(made[0].input_ids.numel())
        return made

    monkeypatch.setattr(learned, "lay_out_rows", counted)
    one, method = pair(3, chosen=4, rejected=6), Simpo(simpo.Simpo())
    for dropout in (0.0, 0.3):
        method.loss_sum(tuned(dropout=dropout).train(), [one])
    # Both answers begin alike; their last tokens are never read.
    shared = one.prompt_tokens + 1 + 4 + 6
    assert laid_out == [shared, shared + one.prompt_tokens + 1]
    assert num_laid_out(method.computed(one)) == shared


def test_weights_of_rows_multiply_their_losses() -> None:
    model, method = tuned(), Simpo(simpo.Simpo())
    alone = [float(method.loss_sum(model, [one]).detach()) for one in PAIRS[:3]]
    weighted = float(method.loss_sum(model, PAIRS[:3], [0.0, 2.0, 0.5]).detach())
    assert weighted == pytest.approx(2 * alone[1] + 0.5 * alone[2], rel=1e-6)


def test_odds_of_an_answer_that_is_certain_are_finite() -> None:
    means = torch.tensor([0.0, -1e-30, -1e-9, -40.0], dtype=torch.float64, requires_grad=True)
    from luthier.train.methods.orpo import _log_odds

    odds = _log_odds(means)
    odds.sum().backward()
    assert torch.isfinite(odds).all()
    assert torch.isfinite(means.grad).all()
    assert float(odds.detach()[3]) == pytest.approx(-40.0)
    assert float(odds.detach()[2]) == pytest.approx(math.log(1e9), rel=1e-6)


def test_the_reference_is_the_base_and_holds_no_gradient(tmp_path: Path) -> None:
    """As an engine says it with the adapter off, to the precision of float32 sums."""
    model = test_train_loop.fresh()
    found = open_at(tmp_path, PAIRS, model=model).of(PAIRS)
    assert not found.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    engine = TransformersEngine(moved(model)).without_adapter()
    for one, (chosen, rejected) in zip(PAIRS, found.tolist(), strict=True):
        said = engine.score(one.prompt_ids, [one.input_ids[one.prompt_tokens :], one.rejected_ids])
        assert [one.logprob for one in said] == pytest.approx([chosen, rejected], abs=1e-4)


def test_before_the_first_step_no_answer_has_gained(tmp_path: Path) -> None:
    model = test_train_loop.fresh()
    method = Dpo(dpo.Dpo(), open_at(tmp_path, PAIRS, model=model))
    assert float(method.loss_sum(model, PAIRS).detach()) / len(PAIRS) == pytest.approx(math.log(2), abs=1e-5)


def test_the_reference_is_kept_and_made_anew_only_where_it_is_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    real = reference.pair_scores
    monkeypatch.setattr(reference, "pair_scores", lambda model, pairs: calls.append(len(pairs)) or real(model, pairs))
    first = open_at(tmp_path, PAIRS)
    assert sum(calls) == len(PAIRS)
    (folder,) = tmp_path.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["about.json", "logprobs.f64"]
    again = open_at(tmp_path, PAIRS)
    assert (first.reused, again.reused, again.logprobs) == (False, True, first.logprobs)
    assert sum(calls) == len(PAIRS)
    whole = (folder / "logprobs.f64").read_bytes()
    for damage in (whole[:-8], bytes([whole[0] ^ 1]) + whole[1:], b""):
        (folder / "logprobs.f64").write_bytes(damage)
        repaired = open_at(tmp_path, PAIRS)
        assert (repaired.reused, repaired.logprobs) == (False, first.logprobs)
        assert (folder / "logprobs.f64").read_bytes() == whole
    assert not open_at(tmp_path, PAIRS[1:]).reused
    assert not open_at(tmp_path, PAIRS, base_sha256="other").reused


def test_a_stop_while_the_base_reads_keeps_nothing(tmp_path: Path) -> None:
    asked = iter([False, True])
    with pytest.raises(Stopped, match=r"stopped after \d+ of 14 pairs .*\n  -> run the same command again"):
        open_at(tmp_path, PAIRS, max_tokens=30, tell=(lambda done, total: None, lambda: next(asked)))
    assert not list(tmp_path.iterdir())


def test_a_method_learns_only_once_it_knows_where_the_model_stood() -> None:
    model, method = tuned(), Dpo(dpo.Dpo())
    with pytest.raises(AssertionError, match="the reference is opened before training"):
        method.loss_sum(model, PAIRS[:1])
    (task,) = on_trial(inputs_of(PAIRS, method)).tasks
    assert torch.isfinite(task.method.loss_sum(model, PAIRS[:2]))
    (task,) = on_trial(inputs_of(PAIRS, without := Simpo(simpo.Simpo()))).tasks
    assert task.method is without


def test_only_pairs_that_a_step_sees_are_read() -> None:
    some = SETTINGS.model_copy(update={"max_tokens": 150, "batch_size": 2, "num_train_epochs": 1})
    given = inputs_of(PAIRS, Simpo(simpo.Simpo()))
    assert 0 < len(seen_pairs(given, 0, some)) < len(PAIRS)
    assert seen_pairs(given, 0, SETTINGS) == PAIRS


def test_a_stopped_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    """Its second session finds the reference of the first, and so does one whose file was lost."""
    torch.use_deterministic_algorithms(True)

    def run(out: Path, **more: Any) -> Any:
        model = test_train_loop.fresh()
        method = Dpo(dpo.Dpo(), open_at(out / "reference", PAIRS, model=model))
        return test_train_loop.run(out, model=model, inputs=inputs_of(PAIRS, method), **more)

    whole = run(tmp_path / "whole")
    for name, lose in (("kept", False), ("lost", True)):
        with pytest.raises(Stopped):
            run(tmp_path / name, stop_after=3)
        if lose:
            shutil.rmtree(tmp_path / name / "reference")
        assert run(tmp_path / name).weights_sha256 == whole.weights_sha256
    torch.use_deterministic_algorithms(False)
    (event, *_) = whole.history
    assert event.loss == pytest.approx(math.log(2), abs=1e-5)
    assert event.supervised_tokens > event.num_tokens // 5


def test_what_a_section_refuses() -> None:
    with pytest.raises(ValidationError, match="label_smoothing belongs to loss: sigmoid"):
        dpo.Dpo(loss="ipo", label_smoothing=0.1)
    for section, wrong in ((dpo.Dpo, {"beta": 0}), (dpo.Dpo, {"label_smoothing": 0.5}), (simpo.Simpo, {"gamma": -1})):
        with pytest.raises(ValidationError):
            section.model_validate(wrong)


def on_ranks(ranks: Any, folder: str) -> tuple[bool, list[float]]:
    model = test_train_loop.fresh()
    known = ranks.first_first(lambda: open_at(Path(folder) / "reference", PAIRS, model=model))
    inputs = inputs_of(PAIRS, Dpo(dpo.Dpo(), known))
    result = test_train_loop.run(Path(folder) / "out", model=model, inputs=inputs, settings=ONCE)
    return known.reused, [event.loss for event in result.history]


ONCE = SETTINGS.model_copy(update={"num_train_epochs": 1})


def test_ranks_share_the_pairs_and_the_first_alone_asks_the_base(tmp_path: Path) -> None:
    (reads, losses), (found, others) = together(2, on_ranks, str(tmp_path / "two"))
    assert (reads, found, losses) == (False, True, others)
    assert losses == pytest.approx(on_ranks(Ranks(), str(tmp_path / "one"))[1], rel=1e-5)


def test_layers_that_are_divided_between_ranks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "is_sharded", lambda model: True)
    given: dict[str, Any] = {
        "settings": SETTINGS, "folder": tmp_path, "progress": Progress(), "events": EventLog(tmp_path / "e.jsonl"),
        "stop_asked": lambda: False,
    }  # fmt: skip
    with pytest.raises(ModelError, match="task is measured from the base") as caught:
        with_reference(untouched(), inputs_of(PAIRS, Dpo(dpo.Dpo())), **given)
    assert "strategy: ddp" in caught.value.way_out
    inputs = inputs_of(PAIRS, Simpo(simpo.Simpo()))
    assert with_reference(untouched(), inputs, **given) == (inputs, 0.0)
    monkeypatch.undo()
    ready, seconds = with_reference(untouched(), inputs_of(PAIRS, Dpo(dpo.Dpo())), **given)
    assert seconds > 0
    assert [event["pairs"] for event in EventLog.read(tmp_path / "e.jsonl")] == [len(PAIRS)]
    assert torch.isfinite(ready.tasks[0].method.loss_sum(untouched(), PAIRS[:2]))
