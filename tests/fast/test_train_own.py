"""Answers that the model writes itself: drawn with its chances, by seed, step, row and weights alone, then judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import samples
import test_train_loop
import torch
from test_train_distill import ALPHA, CONTRACT, METHODS, formula, method, other
from test_train_loop import EXAMPLES, SETTINGS, relative_error
from test_train_preference import moved, tuned

from luthier.data.shards import Example
from luthier.errors import RecipeError, Stopped
from luthier.models.adapters import bare
from luthier.models.generate import go_on, greedy, sampled
from luthier.plan.make import make_plan
from luthier.records import Teacher
from luthier.train import own, probe
from luthier.train.inputs import Inputs
from luthier.train.methods.sft import Sft
from luthier.train.own import OWN, with_own_answers
from ranks_kit import together
from rows_kit import inputs_of

INPUTS = inputs_of(EXAMPLES, method("jsd", on_policy=0.5))


def written(
    inputs: Inputs = INPUTS, *, model: Any = None, rows: Any = range(18), seed: int = 0, step: int = 3
) -> Inputs:
    return with_own_answers(model or tuned(), inputs, rows, seed=seed, step=step)


def test_a_token_is_drawn_with_its_chance_and_never_without_one() -> None:
    scores = torch.tensor([1.0, -float("inf"), 0.0, 2.0, -float("inf")])
    rng = np.random.default_rng(0)
    choose = sampled(rng)
    drawn = np.bincount([choose(scores) for _ in range(20_000)], minlength=5) / 20_000
    chances = torch.softmax(scores, dim=-1).numpy()
    assert drawn[1] == drawn[4] == 0
    assert np.abs(drawn - chances).max() < 4 * np.sqrt(0.25 / 20_000)

    class Edge:
        def random(self) -> float:
            return np.nextafter(1.0, 0.0)

    assert sampled(Edge())(scores) == 3  # type: ignore[arg-type]
    assert greedy(scores) == 3


def test_an_answer_is_what_the_model_says_token_by_token() -> None:
    """Against whole forward passes without a cache, and the same numbers."""
    model, example = tuned().eval(), EXAMPLES[4]
    ids, rng = list(example.prompt_ids), np.random.default_rng((0, 5, 3, 4))
    choose, said = sampled(rng), list[int]()
    with torch.no_grad():
        while len(said) < CONTRACT.max_new_tokens:
            token = choose(bare(model)(input_ids=torch.tensor([ids + said])).logits[0, -1])
            if token == 2:
                said.append(token)
                break
            said.append(token)
    made = written(rows=[4], inputs=inputs_of(EXAMPLES, method("jsd", on_policy=1.0))).own[4]
    assert made.input_ids == ids + said
    assert made.supervised == [False] * len(ids) + [True] * len(said)
    assert (made.made_by, made.prompt_tokens, made.line) == (OWN, len(ids), example.line)


def test_an_answer_ends_by_itself_or_where_there_is_no_more_room() -> None:
    model, prompt = tuned().eval(), EXAMPLES[0].prompt_ids
    with torch.no_grad():
        said = go_on(bare(model), prompt, max_new_tokens=4, stop_ids=(), choose=greedy)
        assert (len(said.ids), said.end) == (4, None)
        cut = go_on(bare(model), prompt, max_new_tokens=4, stop_ids=(said.ids[0],), choose=greedy)
        assert cut == ([], said.ids[0])
    end = len(CONTRACT.end_of_turn_ids)
    for room in range(4):
        longest = len(prompt) + end + room
        tight = replace(method("jsd", on_policy=1.0), contract=CONTRACT.model_copy(update={"max_length": longest}))
        with torch.no_grad():
            made = [tight.rewritten(model, EXAMPLES[0], np.random.default_rng(seed)) for seed in range(20)]
        assert all(len(one.input_ids) <= longest for one in made if one.made_by == OWN)
        assert any(one.made_by == OWN for one in made) == (room > 0), "without room the row keeps its answer"


def test_what_is_written_follows_from_seed_step_row_and_weights_alone() -> None:
    first = written().own
    assert 3 < len(first) < 15
    assert written().own == first
    assert written(rows=list(range(17, -1, -1))).own == first
    alone = {row: made for row in range(18) for made in written(rows=[row]).own.values()}
    assert alone == first
    assert written(step=4).own != first
    assert written(seed=1).own != first
    assert written(model=test_train_loop.fresh()).own.keys() == first.keys()
    assert written(model=test_train_loop.fresh()).own != first
    assert len(written(inputs_of(EXAMPLES, method("jsd", on_policy=1.0))).own) == 18
    plain = inputs_of(EXAMPLES, method("jsd"))
    assert written(plain) is plain
    sft = inputs_of(EXAMPLES, Sft())
    assert written(sft) is sft
    model = tuned().train()
    written(model=model)
    assert model.training
    assert written().example(next(iter(first))) == first[next(iter(first))]


def gradients(ready: Any, rows: list[Example], model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    ready.loss_sum(model, rows).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", METHODS)
def test_of_its_own_answer_the_teachers_part_alone_is_learned(name: str) -> None:
    """Against the float64 formula; what others said earlier in a conversation still counts."""
    said = replace(EXAMPLES[1], supervised=[False, False, True, *EXAMPLES[1].supervised[3:]])
    rows = [replace(EXAMPLES[0], made_by=OWN), replace(said, made_by=OWN), EXAMPLES[2]]
    found = gradients(method(name), rows, tuned())
    model, teacher, alpha = moved(test_train_loop.fresh()).double(), other(), METHODS[name].alpha
    for one in rows:
        ids, on = torch.tensor([one.input_ids]), torch.tensor(one.supervised[1:])
        mine = model(input_ids=ids).logits[0, :-1][on]
        with torch.no_grad():
            theirs = teacher(input_ids=ids).logits[0, :-1][on].double()
        targets, places = ids[0, 1:][on], on.nonzero()[:, 0] + 1
        losses = formula(name, mine, theirs, targets)
        hard = torch.nn.functional.cross_entropy(mine, targets, reduction="none")
        own_answer = (places >= one.prompt_tokens) & (one.made_by == OWN)
        (losses - (1 - alpha) * hard * own_answer).sum().backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert relative_error(found, expected) < 2e-5


HALF = method("jsd", on_policy=0.5)
ONCE = SETTINGS.model_copy(update={"num_train_epochs": 1})


def test_a_stopped_run_writes_the_same_and_ends_in_the_same_bits(tmp_path: Path) -> None:
    torch.use_deterministic_algorithms(True)
    whole = test_train_loop.run(tmp_path / "whole", method=HALF)
    with pytest.raises(Stopped):
        test_train_loop.run(tmp_path / "cut", method=HALF, stop_after=3)
    assert test_train_loop.run(tmp_path / "cut", method=HALF).weights_sha256 == whole.weights_sha256
    torch.use_deterministic_algorithms(False)
    plain = test_train_loop.run(tmp_path / "plain", method=method("jsd"))
    assert plain.weights_sha256 != whole.weights_sha256
    assert whole.supervised_tokens != plain.supervised_tokens, "what it wrote is counted as it is"
    assert whole.trained_tokens != plain.trained_tokens
    assert whole.steps == plain.steps, "how long the run is goes by the rows"


def on_ranks(ranks: Any, folder: str) -> list[float]:
    return [event.loss for event in test_train_loop.run(Path(folder), method=HALF, settings=ONCE).history]


def test_ranks_write_the_same_answers(tmp_path: Path) -> None:
    alone = [event.loss for event in test_train_loop.run(tmp_path / "alone", method=HALF, settings=ONCE).history]
    for losses in together(2, on_ranks, str(tmp_path / "ranks")):
        assert losses == pytest.approx(alone, rel=1e-5)


def test_the_probe_times_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = own.with_own_answers

    def counted(*given: Any, **more: Any) -> Inputs:
        made = real(*given, **more)
        calls.append(len(made.own))
        return made

    monkeypatch.setattr(probe, "with_own_answers", counted)
    made = probe.pace(test_train_loop.fresh(), INPUTS, SETTINGS, seconds=0.0)
    assert len(calls) == made.steps + 1
    assert sum(calls) > 0


def resolved(**sections: Any) -> Any:
    distill = {"type": "distill", "teacher": "t", "on_policy": sections.pop("on_policy", 0.5)}
    teacher = Teacher(named="t", shape=samples.shape())
    return samples.resolved(method=distill, **sections).model_copy(update={"teacher": teacher})


def test_the_plan_counts_the_writing_and_frozen_layers_are_not_kept() -> None:
    def seconds(share: float) -> float:
        return float(
            make_plan(resolved(on_policy=share), samples.profile(), samples.shape(), matmul_gflops=50.0)
            .prediction.train_seconds
        )  # fmt: skip

    none, half, all_ = (seconds(share) for share in (0.0, 0.5, 1.0))
    assert half - none == pytest.approx((all_ - none) / 2)
    assert all_ > 1.5 * none
    upper = {"adapter": {"type": "lora", "layers_to_transform": [28, 29]}}
    made = resolved(**upper)
    assert made.recipe.train.cache_trunk is False
    assert made.reasons["train.cache_trunk"] == "answers that the model writes itself are others in every step"
    with pytest.raises(RecipeError, match="with this method the model writes"):
        resolved(**upper, train={"cache_trunk": True})
    with pytest.raises(RecipeError, match="documents have none"):
        resolved(data={"train": [{"path": "support.csv", "task": "domain", "input": "{message}"}]}, objective={})
    assert 0 < ALPHA < 1
