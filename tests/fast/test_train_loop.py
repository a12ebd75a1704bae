"""The loop is exact: against a plain reference, whatever the cut into micro-batches, and after any interruption."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import classify_kit
import pytest
import torch

from luthier.data.shards import Example
from luthier.errors import NonFinite, RunError, Stopped
from luthier.models.adapters import attach
from luthier.records import Scale
from luthier.spec.adapters.lora import Lora
from luthier.spec.plugins import METHODS
from luthier.spec.recipe import Train
from luthier.train import loop
from luthier.train import rows as learned
from luthier.train.batches import micro_batches
from luthier.train.methods import load_method
from luthier.train.methods.sft import Sft
from luthier.train.optim import learning_rate
from luthier.train.validation import Judged, Validation
from luthier.train_records import StepEvent, TrainResult
from rows_kit import inputs_of, with_method
from tiny import llama

SETTINGS = Train(
    learning_rate=0.01,
    num_train_epochs=2,
    max_length=64,
    batch_size=4,
    micro_batch_tokens=40,
    lr_scheduler_type="linear",
    warmup_ratio=0.1,
    weight_decay=0.01,
    max_grad_norm=1.0,
    validations=2,
    patience=3,
    save_steps=3,
    save_total_limit=2,
    seed=0,
    threads=1,
)


@pytest.fixture(autouse=True)
def _deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def example(number: int, *, length: int = 0) -> Example:
    rng = torch.Generator().manual_seed(number)
    body = torch.randint(3, 380, (length or 4 + number % 7,), generator=rng).tolist()
    prompt, answer = [1, 9, 9, *body], [50 + number % 3, 2]
    return Example(
        number + 2, f"g{number}", "text", "a", len(prompt), prompt + answer, [False] * len(prompt) + [True, True]
    )


EXAMPLES = [example(number) for number in range(18)]
INPUTS = inputs_of(EXAMPLES)


def fresh(**changes: Any) -> Any:
    adapter = Lora(type="lora", r=4, alpha=8.0, dropout=0.0, target_modules="all-linear")
    return attach(llama(), adapter.model_copy(update=changes), base_name="tiny", seed=0)


def silent(event: StepEvent, *, total_steps: int) -> None:
    pass


def run(out: Path, *, settings: Train = SETTINGS, stop_after: int | None = None, **changes: Any) -> TrainResult:
    seen: list[int] = []

    def watch(event: StepEvent, *, total_steps: int) -> None:
        seen.append(event.step)

    given: dict[str, Any] = {"validation": None} | changes
    inputs = given.pop("inputs", INPUTS)
    if (method := given.pop("method", None)) is not None:
        inputs = with_method(inputs, method)
    return loop.train(
        given.pop("model", None) or fresh(),
        inputs,
        settings=settings,
        method_name="sft",
        out=out,
        watch=given.pop("watch", watch),
        stop_asked=lambda: stop_after is not None and bool(seen) and seen[-1] >= stop_after,
        **given,
    )


def gradients(examples: list[Example], budget: int, **changes: Any) -> dict[str, torch.Tensor]:
    model = fresh(**changes)
    with torch.no_grad():
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    count = sum(map(Sft().count, examples))
    tokens = [Sft().computed(one) for one in examples]
    for part in micro_batches(range(len(examples)), tokens, max_tokens=budget):
        (Sft().loss_sum(model, [examples[row] for row in part.rows]) / count).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def reference_gradients(examples: list[Example]) -> dict[str, torch.Tensor]:
    """Plain transformers and its own label masking, one row at a time, in float64."""
    model = fresh().double()
    with torch.no_grad():
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.empty(parameter.shape, dtype=torch.float32).normal_(std=0.05))
    total = sum(map(Sft().count, examples))
    for one in examples:
        labels = [token if on else -100 for token, on in zip(one.input_ids, one.supervised, strict=True)]
        loss = model(input_ids=torch.tensor([one.input_ids]), labels=torch.tensor([labels])).loss
        (loss * Sft().count(one) / total).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def relative_error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    difference = sum(float(((found[name].double() - expected[name].double()) ** 2).sum()) for name in expected)
    return math.sqrt(difference / sum(float((g.double() ** 2).sum()) for g in expected.values()))


@pytest.mark.parametrize("budget", [1, 20, 40, 10_000], ids=["a row each", "few", "some", "all at once"])
def test_the_gradient_is_that_of_a_float64_reference_whatever_the_micro_batch(budget: int) -> None:
    assert relative_error(gradients(EXAMPLES[:8], budget), reference_gradients(EXAMPLES[:8])) < 1e-5


def test_rows_without_a_common_start_and_identical_rows_give_the_reference_gradient() -> None:
    other = [Example(9, "", "", "", 2, [7, 8, 60, 2], [False, False, True, True])]
    for rows in (EXAMPLES[:3] + other, [EXAMPLES[0]] * 3, [EXAMPLES[0]]):
        assert relative_error(gradients(rows, 10_000), reference_gradients(rows)) < 1e-5


def test_with_dropout_nothing_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    laid_out = []
    real = learned.lay_out_rows
    monkeypatch.setattr(learned, "lay_out_rows", lambda rows, **how: laid_out.append(real(rows, **how)) or laid_out[-1])
    start = list(range(3, 20))
    rows = [Example(n, "", "", "", 20, [*start, n, 2], [False] * 18 + [True]) for n in range(30, 34)]
    for dropout in (0.0, 0.3):
        Sft().loss_sum(fresh(dropout=dropout).train(), rows)
    assert [layout.input_ids.numel() for layout, _ in laid_out] == [17 + 4, 4 * 18]


def test_events_tell_what_was_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted where it is laid out, with sharing and without, and whatever the micro-batch."""
    laid_out: list[int] = []
    real = learned.lay_out_rows

    def counted(rows: Any, **how: Any) -> Any:
        made = real(rows, **how)
        laid_out.append(made[0].input_ids.numel())
        return made

    monkeypatch.setattr(learned, "lay_out_rows", counted)
    start = list(range(3, 20))
    rows = [Example(n, "", "", "", 20, [*start, n, 2], [False] * 17 + [True] * 2) for n in range(30, 36)]
    given = inputs_of(rows)
    for name, dropout, budget in (("tree", 0.0, 400), ("cut", 0.0, 20), ("noisy", 0.3, 400)):
        laid_out.clear()
        settings = SETTINGS.model_copy(update={"micro_batch_tokens": budget, "num_train_epochs": 1, "batch_size": 6})
        (event,) = run(tmp_path / name, model=fresh(dropout=dropout), inputs=given, settings=settings).history
        assert event.computed_tokens == sum(laid_out)
        assert event.num_tokens == 6 * 19
        assert event.useful_share == 12 / event.computed_tokens
        # Six answers of one token that is read, after a start of seventeen: once, once a micro-batch, once a row.
        assert event.computed_tokens == {"tree": 17 + 6, "cut": 17 * len(laid_out) + 6, "noisy": 6 * 18}[name]
        assert (len(laid_out) > 1) == (name == "cut")


def test_the_useful_share_of_equal_rows_can_exceed_one(tmp_path: Path) -> None:
    """Their answers are computed once, and learned once for each row."""
    equal = Example(9, "", "", "", 2, [7, 8, *range(20, 29), 2], [False] * 2 + [True] * 10)
    given = inputs_of([equal] * 6)
    settings = SETTINGS.model_copy(update={"micro_batch_tokens": 400, "num_train_epochs": 1, "batch_size": 6})
    (event,) = run(tmp_path, inputs=given, settings=settings).history
    assert (event.supervised_tokens, event.computed_tokens) == (60, 11)
    assert event.useful_share == 60 / 11


def test_training_learns_and_the_base_stays_as_it_was(tmp_path: Path) -> None:
    model, before = fresh(), {name: p.clone() for name, p in llama().named_parameters()}
    result = run(tmp_path, model=model, settings=SETTINGS.model_copy(update={"num_train_epochs": 12}))
    losses = [event.loss for event in result.history]
    assert sum(losses[-3:]) < 0.75 * sum(losses[:3])
    assert result.trained_tokens == 12 * sum(len(one.input_ids) for one in EXAMPLES)
    assert result.supervised_tokens == 12 * 2 * len(EXAMPLES)
    for name, parameter in model.get_base_model().named_parameters():
        if "lora" not in name:
            assert torch.equal(parameter, before[name.replace(".base_layer", "")]), name


@pytest.mark.parametrize("stop", range(1, 10))
def test_a_run_stopped_after_any_step_and_taken_up_again_ends_with_the_same_bits(tmp_path: Path, stop: int) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(Stopped, match=f"after step {stop} of 10"):
        run(tmp_path / "cut", stop_after=stop)
    resumed = run(tmp_path / "cut")
    assert resumed.weights_sha256 == whole.weights_sha256
    assert resumed.resumed_from == (stop,)
    assert [event.loss for event in resumed.history] == [event.loss for event in whole.history]


def test_dropout_too_repeats_after_a_stop(tmp_path: Path) -> None:
    def go(out: Path, **more: Any) -> TrainResult:
        torch.seed()  # as every process begins: with a state of its own
        return run(out, model=fresh(dropout=0.2), **more)

    whole = go(tmp_path / "whole")
    with pytest.raises(Stopped):
        go(tmp_path / "cut", stop_after=4)
    assert go(tmp_path / "cut").weights_sha256 == whole.weights_sha256
    assert go(tmp_path / "again").weights_sha256 == whole.weights_sha256
    other = SETTINGS.model_copy(update={"seed": 1})
    assert go(tmp_path / "other", settings=other).weights_sha256 != whole.weights_sha256
    assert whole.weights_sha256 != run(tmp_path / "none").weights_sha256


def scripted(values: list[float]) -> Validation:
    rest = iter(values)
    judged = Judged("task", "score", higher_is_better=True, tiebreak="loss")
    return Validation(lambda model: {"score": next(rest), "loss": 1.0}, (judged,))


def test_the_best_checkpoint_is_kept_not_the_last(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"validations": 5, "patience": 9})
    result = run(tmp_path / "a", settings=settings, validation=scripted([0.1, 0.9, 0.3, 0.9, 0.2]))
    assert (result.best_step, result.best_value, result.steps, result.stopped_early) == (4, 0.9, 10, False)
    shorter = run(tmp_path / "b", settings=settings, validation=scripted([0.1, 0.2, 0.1, 0.1, 0.1]))
    assert shorter.weights_sha256 == result.weights_sha256
    last = run(tmp_path / "c", settings=settings, validation=scripted([0.1, 0.2, 0.3, 0.4, 0.5]))
    assert last.best_step == 10
    assert last.weights_sha256 != result.weights_sha256


def test_training_stops_when_the_metric_has_not_improved_for_so_many_validations(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"validations": 5, "patience": 2})
    result = run(tmp_path, settings=settings, validation=scripted([0.5, 0.4, 0.3, 0.9, 0.9]))
    assert (result.steps, result.stopped_early, result.best_step) == (6, True, 2)
    again = run(tmp_path, settings=settings, validation=scripted([]))
    assert again.steps == 6


def test_a_kill_between_checkpoints_goes_back_to_the_last_one_and_repeats(tmp_path: Path) -> None:
    class Killed(RuntimeError):
        pass

    def kill(event: StepEvent, *, total_steps: int) -> None:
        if event.step == 8:
            raise Killed

    settings = SETTINGS.model_copy(update={"validations": 5})
    values = [0.1, 0.2, 0.3, 0.4, 0.5]
    whole = run(tmp_path / "whole", settings=settings, validation=scripted(values))
    with pytest.raises(Killed):
        run(tmp_path / "cut", settings=settings, validation=scripted(values), watch=kill)
    resumed = run(tmp_path / "cut", settings=settings, validation=scripted(values[3:]))
    assert resumed.resumed_from == (6,)
    assert resumed.weights_sha256 == whole.weights_sha256


def test_only_two_checkpoints_are_kept_and_half_written_ones_are_not_seen(tmp_path: Path) -> None:
    run(tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000009", "step-000010"]
    assert {path.suffix for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()} == {
        ".safetensors",
        ".json",
    }


def test_the_adapter_follows_from_the_newest_checkpoint_alone(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"validations": 5, "patience": 9})
    whole = run(tmp_path, settings=settings, validation=scripted([0.1, 0.9, 0.3, 0.9, 0.2]))
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-4] + b"\0\0\0\0")
    again = run(tmp_path, settings=settings, validation=scripted([]))
    assert (weights.read_bytes(), again.weights_sha256) == (kept, whole.weights_sha256)
    assert (again.best_step, again.best_value) == (4, 0.9)


def test_a_metric_that_is_never_a_number_keeps_the_last_weights(tmp_path: Path) -> None:
    result = run(tmp_path / "nan", validation=scripted([math.nan, math.nan]))
    assert result.weights_sha256 == run(tmp_path / "none").weights_sha256
    assert result.best_step == 0


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    run(tmp_path)
    tensors = tmp_path / "checkpoints" / "step-000010" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    with pytest.raises(RunError, match=r"step-000010 is damaged") as caught:
        run(tmp_path)
    assert "remove that folder" in caught.value.way_out
    shutil.rmtree(tensors.parent)
    assert run(tmp_path).resumed_from == (9,)


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    other = inputs_of(EXAMPLES, data_sha256="other")
    with pytest.raises(RunError, match="another recipe, data or base"):
        run(tmp_path, inputs=other)


def test_a_loss_that_is_not_finite_stops_before_the_optimizer_and_names_the_rows(tmp_path: Path) -> None:
    model = fresh()
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_A" in n).fill_(float("nan"))
    before = {n: p.clone() for n, p in model.named_parameters() if "lora_B" in n}
    with pytest.raises(NonFinite, match=r"step 1: loss nan.*lines \d+, \d+, \d+, \d+") as caught:
        run(tmp_path, model=model)
    assert "train.learning_rate" in caught.value.way_out
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if "lora_B" in n)


def test_a_token_limit_below_one_step_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"train.max_tokens 5 is less than the first step"):
        run(tmp_path, settings=SETTINGS.model_copy(update={"max_tokens": 5}))


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.02},
        {"num_train_epochs": 1},
        {"max_tokens": 90},
        {"batch_size": 6},
        {"lr_scheduler_type": "cosine"},
        {"lr_scheduler_type": "constant"},
        {"warmup_ratio": 0.5},
        {"weight_decay": 0.5},
        {"max_grad_norm": 0.01},
        {"seed": 7},
    ],
    ids=lambda change: "-".join(map(str, *change.items())),
)
def test_every_setting_of_train_changes_the_weights(tmp_path: Path, change: dict[str, Any]) -> None:
    assert (
        run(tmp_path / "b", settings=SETTINGS.model_copy(update=change)).weights_sha256
        != run(tmp_path / "a").weights_sha256
    )


def test_micro_batch_tokens_and_save_steps_change_no_more_than_rounding(tmp_path: Path) -> None:
    one, other = (
        run(tmp_path / "a"),
        run(tmp_path / "b", settings=SETTINGS.model_copy(update={"micro_batch_tokens": 500})),
    )
    assert [e.loss for e in one.history] == pytest.approx([e.loss for e in other.history], rel=1e-4)
    often = run(tmp_path / "c", settings=SETTINGS.model_copy(update={"save_steps": 1}))
    assert often.weights_sha256 == one.weights_sha256


def test_the_rate_warms_up_and_decays_as_written() -> None:
    rates = [
        learning_rate(step, total=10, settings=SETTINGS.model_copy(update={"warmup_ratio": 0.2})) for step in range(10)
    ]
    assert rates == pytest.approx([0.005, 0.01, *(0.01 * (1 - k / 8) for k in range(8))])
    cosine = SETTINGS.model_copy(update={"lr_scheduler_type": "cosine", "warmup_ratio": 0.0})
    assert learning_rate(5, total=10, settings=cosine) == pytest.approx(0.005)


def test_every_method_of_the_table_has_its_section() -> None:
    for name, facts in METHODS.entries().items():
        settings = facts.section(**({"teacher": "t"} if facts.is_taught else {}))
        assert settings.type == name
        rewards: tuple[dict[str, Any], ...] = ({"type": "exact"},) if facts.by_rewards else ()
        more: dict[str, Any] = {
            "multi_label": {"labels": (), "tags": classify_kit.LABELS},
            "regression": {"labels": (), "scale": Scale(mean=0.0, spread=1.0)},
            "reward": {"labels": (), "task": "preference"},
        }.get(name, {})
        made = classify_kit.contract(rewards=rewards).model_copy(update=more)
        assert load_method(settings, made).count(EXAMPLES[0]) > 0
