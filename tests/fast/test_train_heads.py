"""Heads and text objectives in one training: what each learns is what it learns alone, over one adapter."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from classify_kit import LORA, contract
from classify_kit import example as labelled
from safetensors.torch import load_file
from test_models_trunk import LAYERS, family, tuned
from test_train_loop import EXAMPLES, SETTINGS, relative_error, silent
from torch import Tensor
from torch.nn.functional import cross_entropy

from luthier.data.shards import Example
from luthier.errors import Stopped
from luthier.models.adapters import attach
from luthier.models.classifier import head_of, heads_of, put_head
from luthier.models.trunk import check_trunk
from luthier.models.tuned import save_tuned, tuned_state
from luthier.pipeline.heads import calibrate_head
from luthier.records import RequestContract
from luthier.spec.methods.classify import Classify as Settings
from luthier.spec.multi_task import MultiTask
from luthier.store.runs import HEADS, tuned_in
from luthier.train import loop
from luthier.train.batches import Step, turns_of
from luthier.train.checkpoint import LoopState
from luthier.train.dist import Ranks
from luthier.train.inputs import Inputs, TaskRows
from luthier.train.methods.classify import Classify
from luthier.train.methods.sft import Sft
from luthier.train.optim import make_optimizer
from luthier.train.shard import shard
from luthier.train.trunk import learned_rows, on_trunk, open_trunk
from luthier.train.validation import Judged, Validation
from luthier.train.weighting import Weighting, without_conflict
from luthier.train_records import TrainResult
from ranks_kit import together
from tiny import llama

KIND, MOOD = ("a", "b", "c", "d"), ("good", "bad")
LABELLED = [labelled(number) for number in range(10)]
FELT = [replace(labelled(number + 20), answer=MOOD[number % 2]) for number in range(6)]
SAID = EXAMPLES[:8]


@pytest.fixture(autouse=True)
def _deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def contract_of(name: str) -> RequestContract:
    labels = {"kind": KIND, "mood": MOOD}[name]
    return contract().model_copy(update={"name": name, "labels": labels, "label_rows": (3,) * len(labels)})


def rows_of(name: str, *, weight: float = 1.0, **settings: Any) -> TaskRows:
    if name == "reply":
        return TaskRows(name, Sft(), SAID, weight)
    return TaskRows(
        name, Classify(Settings(**settings), contract_of(name)), {"kind": LABELLED, "mood": FELT}[name], weight
    )


def mixed(*tasks: TaskRows, **mix: Any) -> Inputs:
    """Two heads and a task in words: rows 0 to 9 are of kind, 10 to 15 of mood, 16 to 23 of reply."""
    given = tasks or (rows_of("kind"), rows_of("mood", weight=2.0), rows_of("reply", weight=0.5))
    return Inputs(given, "m", "d", "r", mix=MultiTask.model_validate(mix))


def fresh(base: Any = None, *, beside_words: bool = True) -> Any:
    """As such a training begins."""
    model = attach(base or llama(), LORA, base_name="tiny", seed=0)
    for name, labels in (("kind", KIND), ("mood", MOOD)):
        put_head(model, len(labels), task=name, beside_words=beside_words)
    return model


@torch.no_grad()
def moved(model: Any) -> Any:
    """As training leaves it: nothing that learns is zero."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "score_" in name:
            parameter.copy_(torch.empty(parameter.shape).normal_(std=0.1, generator=generator))
    return model


def looping(model: Any, inputs: Inputs, *, budget: int = 40) -> loop._Loop:
    weighting = Weighting(inputs)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad} | weighting.parameters()
    settings = SETTINGS.model_copy(update={"micro_batch_tokens": budget})
    return loop._Loop(
        model, inputs, settings, parameters, make_optimizer(parameters, settings), weighting, total=4, watch=silent
    )  # fmt: skip


def left_by_loop(rows: tuple[int, ...], inputs: Inputs, *, budget: int = 40, model: Any = None) -> dict[str, Tensor]:
    """The gradient that a step leaves before it is clipped; what has none is left out."""
    model = moved(fresh()) if model is None else model
    made = looping(model, inputs, budget=budget)
    made._backward(turns_of(rows, inputs, max_tokens=budget, ranks=made.ranks.size), 0)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


STEP = (0, 11, 3, 17, 7, 14, 19, 9)  # four of kind, two of mood, two of reply
SHARES = {"kind": 1.0 * 4 / 8, "mood": 2.0 * 2 / 8, "reply": 0.5 * 2 / 8}


def reference(place: Path) -> dict[str, Tensor]:
    """Each task alone, as PEFT and transformers open what is saved, in float64, one row at a time."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from luthier.models.head_files import write_head_adapter

    llama().save_pretrained(place / "base")
    model = moved(fresh())
    (place / "tuned").mkdir()
    save_tuned(model, place / "tuned", tuned_state(model))
    total: dict[str, Tensor] = {}
    for name, share in SHARES.items():
        if name == "reply":
            base, folder = AutoModelForCausalLM.from_pretrained(place / "base"), place / "tuned"
        else:
            folder, labels = place / name, contract_of(name).labels
            folder.mkdir()
            write_head_adapter(place / "tuned", name, folder)
            base = AutoModelForSequenceClassification.from_pretrained(place / "base", num_labels=len(labels))
        alone = PeftModel.from_pretrained(base, folder, is_trainable=True).double()
        alone.base_model.model.model.set_attn_implementation("eager")
        inputs = mixed()
        own = [inputs.example(row) for row in STEP if inputs.tasks[inputs.task_of(row)].name == name]
        losses = [_words(alone, one) if name == "reply" else _label(alone, one, labels) for one in own]
        units = sum(map(Sft().count, own)) if name == "reply" else len(own)
        (share * torch.stack(losses).sum() / units).backward()
        for key, parameter in alone.named_parameters():
            if parameter.grad is not None:
                key = key.replace("score.modules_to_save.default.weight", f"score_{name}.weight")
                total[key] = total.get(key, 0.0) + parameter.grad
    return total


def _words(model: Any, one: Example) -> Tensor:
    labels = [token if on else -100 for token, on in zip(one.input_ids, one.supervised, strict=True)]
    mean = model(input_ids=torch.tensor([one.input_ids]), labels=torch.tensor([labels])).loss
    return mean * Sft().count(one)


def _label(model: Any, one: Example, labels: tuple[str, ...]) -> Tensor:
    scores = model(input_ids=torch.tensor([one.prompt_ids])).logits
    return cross_entropy(scores, torch.tensor([labels.index(one.answer)]))


@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_the_gradient_of_a_step_is_the_sum_of_each_task_alone_in_plain_peft(tmp_path: Path, budget: int) -> None:
    expected = reference(tmp_path)
    found = left_by_loop(STEP, mixed(), budget=budget)
    assert {"base_model.model.score_kind.weight", "base_model.model.score_mood.weight"} < set(expected) == set(found)
    assert relative_error(found, expected) < 1e-5


def test_the_loss_is_the_sum_of_each_task_alone() -> None:
    inputs, told = mixed(), list[Any]()
    made = looping(moved(fresh()), inputs)
    made.watch = lambda event, total_steps: told.append(event)
    made.step(LoopState(key="k"), Step(STEP, 0))
    means = {}
    for task in inputs.tasks:
        own = [inputs.example(row) for row in STEP if inputs.tasks[inputs.task_of(row)] is task]
        means[task.name] = float(task.method.loss_sum(moved(fresh()), own).detach()) / sum(map(task.method.count, own))
    assert told[0].metrics == pytest.approx({f"{name}.loss": mean for name, mean in means.items()}, rel=1e-5)
    assert told[0].loss == pytest.approx(sum(SHARES[name] * mean for name, mean in means.items()), rel=1e-5)


@pytest.mark.parametrize("other", ["mood", "reply"])
def test_beside_a_task_that_counts_nothing_a_head_learns_the_same_bits_as_alone(other: str) -> None:
    """Of a step that is half its rows it counts double, so that its share is 1."""
    alone, beside = fresh(), fresh()
    single = looping(alone, mixed(rows_of("kind")))
    double = looping(beside, mixed(rows_of("kind", weight=2.0), rows_of(other, weight=0.0)))
    one, two = LoopState(key="k"), LoopState(key="k")
    for start in (0, 3, 6, 1):
        rows = tuple(range(start, start + 3))
        one = single.step(one, Step(rows, 0))
        two = double.step(two, Step((*rows, *(10 + row % 6 for row in rows)), 0))
    assert one.history[-1].loss == two.history[-1].loss
    assert one.history[-1].metrics == {}
    other_head = f"base_model.model.score_{other}.weight"
    for name, tensor in tuned_state(alone).items():
        assert torch.equal(tensor, tuned_state(beside)[name]) or name == other_head
    assert bool(head_of(beside, "kind").weight.any())
    assert all(not bool(head.weight.any()) for task, head in heads_of(beside).items() if task != "kind")


def test_a_head_moves_only_in_steps_that_have_rows_of_its_task() -> None:
    """The optimizer's memory of earlier steps, and its decay, leave it alone meanwhile; of one process as of two."""
    for loss in ("static", "pcgrad", "uncertainty"):
        model = moved(fresh())
        made = looping(model, mixed(loss=loss))
        state = made.step(LoopState(key="k"), Step(STEP, 0))
        before = {task: head.weight.detach().clone() for task, head in heads_of(model).items()}
        made.step(state, Step((0, 1, 17), 0))
        assert not torch.equal(head_of(model, "kind").weight, before["kind"])
        assert torch.equal(head_of(model, "mood").weight, before["mood"])


def of_rank(ranks: Ranks, rows: tuple[int, ...], loss: str) -> dict[str, list[float]]:
    torch.use_deterministic_algorithms(True)
    return {name: gradient.flatten().tolist() for name, gradient in left_by_loop(rows, mixed(loss=loss)).items()}


@pytest.mark.parametrize("loss", ["static", "pcgrad"])
def test_two_ranks_leave_the_gradient_of_one_also_none(loss: str) -> None:
    rows = (0, 17, 3, 7, 19, 9)  # none of mood
    expected = left_by_loop(rows, mixed(loss=loss))
    assert "base_model.model.score_mood.weight" not in expected
    for found in together(2, of_rank, rows, loss):
        assert set(found) == set(expected)
        for name, gradient in expected.items():
            torch.testing.assert_close(torch.tensor(found[name]), gradient.flatten(), rtol=1e-4, atol=1e-6)


def test_conflicts_are_taken_out_of_what_tasks_share_and_a_head_keeps_its_own_gradient() -> None:
    inputs, each = mixed(loss="pcgrad"), {}
    tasks = tuple(
        replace(task, examples=LABELLED[:6] if task.name == "mood" else task.examples) for task in inputs.tasks
    )
    tasks[1].method.places = dict(zip(KIND, (0, 1, 0, 1), strict=True))
    inputs = replace(inputs, tasks=tasks)

    def model() -> Any:
        """Whose mood wants the opposite of what its kind wants, of the same texts."""
        made = moved(fresh())
        with torch.no_grad():
            head_of(made, "mood").weight.copy_(-head_of(made, "kind").weight[:2])
        return made

    for name in SHARES:  # a task alone, its weight so that its share is the same
        rows = tuple(row for row in STEP if inputs.tasks[inputs.task_of(row)].name == name)
        only = tuple(replace(task, weight=SHARES[task.name]) for task in inputs.tasks)
        each[name] = left_by_loop(rows, replace(inputs, tasks=only), model=model())
    found = left_by_loop(STEP, inputs, model=model())
    shared = [name for name in found if "score_" not in name]
    for task in ("kind", "mood"):
        head = f"base_model.model.score_{task}.weight"
        torch.testing.assert_close(found[head], each[task][head], rtol=1e-5, atol=1e-8)
    flat = [torch.cat([gradients[name].flatten() for name in shared]) for gradients in each.values()]
    expected = without_conflict(flat, seed=(SETTINGS.seed, 3, 0))
    assert not torch.allclose(expected, torch.stack(flat).sum(dim=0)), "they do conflict"
    together_ = torch.cat([found[name].flatten() for name in shared])
    torch.testing.assert_close(together_, expected, rtol=1e-4, atol=1e-7)


def test_heads_and_words_learn_the_same_from_kept_states(tmp_path: Path) -> None:
    first = 2
    model = tuned(family("Llama", vocab_size=384, max_position_embeddings=512), *range(first, LAYERS))
    for name, labels in (("kind", KIND), ("mood", MOOD)):
        put_head(model, len(labels), task=name, beside_words=True)
    moved(model)
    inputs = mixed()
    expected = left_by_loop(STEP, inputs, model=model)
    model.zero_grad(set_to_none=True)
    assert check_trunk(model) == first
    trunk = open_trunk(
        model, learned_rows(inputs, SETTINGS), folder=tmp_path, first=first, base_sha256="b", max_tokens=40,
        progress=lambda done, total: None, stop_asked=lambda: False,
    )  # fmt: skip
    assert relative_error(left_by_loop(STEP, on_trunk(inputs, trunk), model=model), expected) < 1e-5


# --- a run ------------------------------------------------------------------------------------------------------------


def settle(model: Any) -> dict[str, Any]:
    rows = {"kind": LABELLED * 2, "mood": FELT * 4}
    return {name: calibrate_head(model, contract_of(name), own) for name, own in rows.items()}


def run(out: Path, *, stop_after: int | None = None, values: tuple[float, ...] = (0.1, 0.2), **mix: Any) -> TrainResult:
    seen, rest = list[int](), iter(values)
    return loop.train(
        fresh(), mixed(**mix), settings=SETTINGS, method_name="classify, sft", out=out,
        validation=Validation(
            lambda model: {"score": next(rest), "loss": 1.0},
            (Judged("kind", "score", higher_is_better=True, tiebreak="loss"),), settle=settle, unjudged=2,
        ),
        watch=lambda event, total_steps: seen.append(event.step),
        stop_asked=lambda: stop_after is not None and bool(seen) and seen[-1] >= stop_after,
    )  # fmt: skip


@pytest.mark.parametrize("loss", ["static", "uncertainty", "pcgrad"])
def test_a_stopped_run_ends_with_the_same_bits_each_head_and_its_temperature_included(
    tmp_path: Path, loss: str
) -> None:
    whole = run(tmp_path / "whole", loss=loss)
    torch.seed()  # as every process begins
    with pytest.raises(Stopped):
        run(tmp_path / "cut", loss=loss, stop_after=4)
    resumed = run(tmp_path / "cut", loss=loss)
    assert resumed.resumed_from == (4,)
    assert (resumed.weights_sha256, resumed.calibrations) == (whole.weights_sha256, whole.calibrations)
    for file in ("adapter_model.safetensors", HEADS):
        one, other = (load_file(tuned_in(tmp_path / place) / file) for place in ("whole", "cut"))
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert whole.calibration is None
    assert set(whole.calibrations) == {"kind", "mood"}
    assert whole.calibrations["kind"].temperature != whole.calibrations["mood"].temperature != 1.0
    heads = load_file(tuned_in(tmp_path / "whole") / HEADS)
    assert {name: tuple(head.shape) for name, head in heads.items()} == {"kind.weight": (4, 32), "mood.weight": (2, 32)}
    # An ended run that is asked again calibrates what the checkpoint holds, not what was calibrated.
    again = run(tmp_path / "whole", loss=loss, values=())
    assert (again.weights_sha256, again.calibrations) == (whole.weights_sha256, whole.calibrations)


def test_each_head_has_the_temperature_of_its_own_rows() -> None:
    model = moved(fresh())
    before = {task: head.weight.detach().clone() for task, head in heads_of(model).items()}
    found = settle(model)
    for task, head in heads_of(model).items():
        torch.testing.assert_close(head.weight * found[task].temperature, before[task])
        assert found[task].log_loss_after < found[task].log_loss_before
    only = moved(fresh())
    partial(calibrate_head, only, contract_of("mood"))(FELT * 4)
    assert torch.equal(head_of(only, "kind").weight, before["kind"])


def learned_by(ranks: Ranks, out: Path, sharded: bool) -> None:
    torch.use_deterministic_algorithms(True)
    model = fresh()
    if sharded:
        shard(model, ranks)
    loop.train(
        model, mixed(), settings=SETTINGS, method_name="classify, sft", validation=None, out=out, watch=silent,
        stop_asked=lambda: False,
    )  # fmt: skip


@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp"])
def test_two_ranks_learn_the_heads_and_the_words_of_one(tmp_path: Path, sharded: bool) -> None:
    together(1, learned_by, tmp_path / "alone", False)
    together(2, learned_by, tmp_path / "two", sharded)
    for file in ("adapter_model.safetensors", HEADS):
        one, other = (load_file(tuned_in(tmp_path / place) / file) for place in ("alone", "two"))
        assert set(one) == set(other)
        for name, tensor in one.items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-4)
