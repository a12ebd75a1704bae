"""The head learns what the formulas say, whatever is computed together, and a run that was stopped is the same run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from classify_kit import EXAMPLES, LABELS, ROWS, contract, fresh, method, moved, plain
from test_models_trunk import LAYERS, family, tuned
from test_train_loop import SETTINGS, relative_error
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, cross_entropy

from luthier.data.shards import Example
from luthier.errors import RunError, Stopped
from luthier.models.adapters import bare
from luthier.models.classifier import head_of, put_head
from luthier.models.trunk import check_trunk, lowest_learning
from luthier.pipeline.heads import calibrate_head
from luthier.spec.methods.classify import Classify as Settings
from luthier.spec.methods.sft import Sft
from luthier.train import loop
from luthier.train.batches import micro_batches
from luthier.train.methods import load_method
from luthier.train.trunk import OnTrunk, open_trunk
from luthier.train.validation import Judged, Validation
from luthier.train_records import Calibration, TrainResult
from rows_kit import inputs_of

PLACES = torch.tensor([LABELS.index(one.answer) for one in EXAMPLES])
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.2},
    "focal": {"focal_gamma": 2.0},
    "adjusted": {"logit_adjustment": 1.0},
    "all": {"label_smoothing": 0.1, "focal_gamma": 0.5, "logit_adjustment": 1.5},
    "ordered": {"ordered": True},
    "all, ordered": {"ordered": True, "label_smoothing": 0.1, "focal_gamma": 0.5, "logit_adjustment": 1.5},
}


@pytest.fixture(autouse=True)
def _deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def reference(
    scores: Tensor, wanted: Tensor, *, label_smoothing=0.0, focal_gamma=0.0, logit_adjustment=0.0, ordered=False
) -> Tensor:
    """The papers' formulas in torch's own words; [K]."""
    shares = torch.tensor(ROWS, dtype=scores.dtype) / sum(ROWS)
    adjusted = scores + logit_adjustment * shares.log()
    p = adjusted.softmax(dim=-1).gather(1, wanted[:, None])[:, 0]
    if ordered:  # Cao et al., eq. 4, for each place between two labels
        held = adjusted.softmax(dim=-1).cumsum(dim=-1)[:, :-1]
        smooth = label_smoothing / 4 + (1 - label_smoothing) * torch.eye(4, dtype=scores.dtype)[wanted]
        losses = binary_cross_entropy(held, smooth.cumsum(dim=-1)[:, :-1], reduction="none").mean(dim=-1)
        return (1 - p) ** focal_gamma * losses
    return (1 - p) ** focal_gamma * cross_entropy(adjusted, wanted, reduction="none", label_smoothing=label_smoothing)


def peft_name(name: str) -> str:
    """Of ours in plain PEFT's sequence classification, where the head is a copy within PEFT's wrapper."""
    return name.replace("score.weight", "score.modules_to_save.default.weight")


def gradients(model: Any, learns: Any, examples: list[Example], budget: int, weights: Any = None) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    tokens = [learns.computed(one) for one in examples]
    for part in micro_batches(range(len(examples)), tokens, max_tokens=budget):
        own = None if weights is None else [weights[row] for row in part.rows]
        (learns.loss_sum(model, [examples[row] for row in part.rows], own) / len(examples)).backward()
    return {peft_name(name): p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("way", WAYS)
def test_loss_and_gradient_are_those_of_plain_peft_in_float64_whatever_the_micro_batch(
    tmp_path: Path, way: str
) -> None:
    weights = [0.5 + number % 3 for number in range(len(EXAMPLES))]
    theirs = plain(moved(), tmp_path).double()
    theirs.base_model.model.model.set_attn_implementation("eager")
    total = torch.zeros((), dtype=torch.float64)
    for one, place, weight in zip(EXAMPLES, PLACES, weights, strict=True):
        scores = theirs(input_ids=torch.tensor([one.prompt_ids])).logits
        total = total + weight * reference(scores, place[None], **WAYS[way])[0] / len(EXAMPLES)
    total.backward()
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    ours, learns = moved(), method(**WAYS[way])
    for budget in (1, 60, 10_000):  # a row each, some, all at once
        assert relative_error(gradients(ours, learns, EXAMPLES, budget, weights), expected) < 1e-5
    found = learns.loss_sum(ours, EXAMPLES, weights) / len(EXAMPLES)
    assert float(found.detach()) == pytest.approx(float(total.detach()), rel=1e-5)


def test_the_formulas_say_what_their_papers_say() -> None:
    scores = torch.tensor([[2.0, -1.0, 0.5, 0.0]], dtype=torch.float64)
    wanted = torch.tensor([1])
    p = scores.softmax(dim=-1)[0]

    def loss(**settings: float) -> float:
        return float(method(**settings).losses(scores, wanted)[0])

    assert loss() == pytest.approx(-math.log(p[1]))
    assert loss(focal_gamma=2.0) == pytest.approx(-((1 - p[1]) ** 2) * math.log(p[1]))  # Lin et al., eq. 4
    smoothed = [0.9 * (k == 1) + 0.1 / 4 for k in range(4)]  # Szegedy et al., section 7
    assert loss(label_smoothing=0.1) == pytest.approx(
        -sum(q * math.log(one) for q, one in zip(smoothed, p, strict=True))
    )
    shifted = [math.exp(z) * (n / sum(ROWS)) ** 1.5 for z, n in zip(scores[0].tolist(), ROWS, strict=True)]
    assert loss(logit_adjustment=1.5) == pytest.approx(-math.log(shifted[1] / sum(shifted)))  # Menon et al., eq. 10


def test_an_ordered_loss_grows_with_the_distance_and_is_the_usual_one_of_two_labels() -> None:
    sure = torch.tensor([[6.0, 0.0, 0.0, 0.0]], dtype=torch.float64).expand(4, 4)
    near = method(ordered=True).losses(sure, torch.arange(4))
    assert near.tolist() == sorted(near.tolist())
    assert float(near[3] - near[2]) > 1.0
    plainly = method().losses(sure, torch.arange(4))
    assert torch.allclose(plainly[1:], plainly[1])  # as far as the usual loss knows
    two = torch.tensor([[0.3, -1.2], [2.0, 0.5]], dtype=torch.float64)
    for wanted in (torch.tensor([0, 1]), torch.tensor([1, 0])):
        ours = method(ordered=True, label_smoothing=0.1).losses(two, wanted)
        torch.testing.assert_close(ours, cross_entropy(two, wanted, reduction="none", label_smoothing=0.1))


def test_an_ordered_loss_of_certain_rows_is_finite() -> None:
    scores = torch.tensor([[300.0, 0.0, 0.0, -300.0]] * 4, requires_grad=True)
    losses = method(ordered=True).losses(scores, torch.arange(4))
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0])
def test_a_row_that_is_right_to_the_last_digit_has_a_finite_gradient(gamma: float) -> None:
    scores = torch.tensor([[200.0, 0.0, 0.0, 0.0]], requires_grad=True)
    method(focal_gamma=gamma).losses(scores, torch.tensor([0])).sum().backward()
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()


def test_the_head_begins_at_zero_so_all_labels_are_alike() -> None:
    model = fresh()
    assert float(method().loss_sum(model, EXAMPLES).detach()) == pytest.approx(len(EXAMPLES) * math.log(4), rel=1e-6)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert "base_model.model.score.weight" in learning
    assert all("lora" in name or name.endswith("score.weight") for name in learning)


def test_what_is_computed_is_the_prompt_and_the_unit_is_the_row() -> None:
    learns = method()
    assert all(learns.computed(one) == [one.input_ids[: one.prompt_tokens]] for one in EXAMPLES)
    assert {learns.count(one) for one in EXAMPLES} == {1}
    # The words of the label are not read.
    other = [replace(one, input_ids=[*one.prompt_ids, 7, 7, 7]) for one in EXAMPLES]
    assert torch.equal(learns.loss_sum(moved(), other), learns.loss_sum(moved(), EXAMPLES))


def test_with_dropout_nothing_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.train import over_prompts

    laid_out: list[int] = []
    real = over_prompts.lay_out_rows

    def counted(rows: Any, **how: Any) -> Any:
        made = real(rows, **how)
        laid_out.append(made[0].input_ids.numel())
        return made

    monkeypatch.setattr(over_prompts, "lay_out_rows", counted)
    for dropout in (0.0, 0.3):
        method().loss_sum(fresh(dropout=dropout).train(), EXAMPLES)
    assert laid_out[0] < laid_out[1] == sum(len(one.prompt_ids) for one in EXAMPLES)


def test_a_head_is_above_the_trunk_and_learns_the_same_from_kept_states(tmp_path: Path) -> None:
    first = 2
    base = family("Llama", vocab_size=384, max_position_embeddings=512)
    model = tuned(base, *range(first, LAYERS))
    put_head(model, len(LABELS))
    head, learns = head_of(model), method(label_smoothing=0.1)
    assert head is not None
    torch.nn.init.normal_(head.weight, std=0.2, generator=torch.Generator().manual_seed(0))
    assert lowest_learning(model) == check_trunk(model) == first
    expected = gradients(model, learns, EXAMPLES, 10_000)
    rows = list(dict.fromkeys(tuple(one.prompt_ids) for one in EXAMPLES))
    trunk = open_trunk(
        model, rows, folder=tmp_path, first=first, base_sha256="b", max_tokens=40,
        progress=lambda done, total: None, stop_asked=lambda: False,
    )  # fmt: skip
    for budget in (1, 60, 10_000):
        assert relative_error(gradients(model, OnTrunk(learns, trunk), EXAMPLES, budget), expected) < 1e-5


# --- a run ---

INPUTS = inputs_of(EXAMPLES, method(focal_gamma=1.0))


def calibrating(values: list[float]) -> Validation:
    rest = iter(values)
    return Validation(
        lambda model: {"score": next(rest), "loss": 1.0},
        (Judged("task", "score", higher_is_better=True, tiebreak="loss"),),
        settle=lambda model: {"task": calibrate_head(model, contract(), EXAMPLES * 2)},
    )


def run(out: Path, *, stop_after: int | None = None, validation: Validation | None = None) -> TrainResult:
    seen: list[int] = []
    return loop.train(
        fresh(), INPUTS, settings=SETTINGS, method_name="classify", validation=validation,
        out=out, watch=lambda event, total_steps: seen.append(event.step),
        stop_asked=lambda: stop_after is not None and bool(seen) and seen[-1] >= stop_after,
    )  # fmt: skip


@pytest.mark.parametrize("stop", [1, 5, 9])
def test_a_stopped_run_ends_with_the_same_bits_head_and_temperature_included(tmp_path: Path, stop: int) -> None:
    whole = run(tmp_path / "whole", validation=calibrating([0.1, 0.2]))
    with pytest.raises(Stopped):
        run(tmp_path / "cut", stop_after=stop, validation=calibrating([0.1, 0.2]))
    resumed = run(tmp_path / "cut", validation=calibrating([0.1, 0.2] if stop < 5 else [0.2]))
    assert (resumed.weights_sha256, resumed.calibration) == (whole.weights_sha256, whole.calibration)
    assert whole.calibration is not None
    assert whole.calibration.temperature != 1.0
    assert [event.supervised_tokens for event in whole.history if event.kind == "step"][:5] == [4, 4, 4, 4, 2]
    # An ended run that is asked again calibrates what the checkpoint holds, not what was calibrated.
    again = run(tmp_path / "whole", validation=calibrating([]))
    assert (again.weights_sha256, again.calibration) == (whole.weights_sha256, whole.calibration)


def test_a_temperature_makes_validation_rows_likelier_and_changes_no_label(tmp_path: Path) -> None:
    model = moved()
    head = head_of(model)
    assert head is not None
    before = head.weight.clone()
    found = calibrate_head(model, contract(), EXAMPLES * 2)
    assert isinstance(found, Calibration)
    assert found.num_items == 36
    assert found.log_loss_after < found.log_loss_before
    torch.testing.assert_close(head.weight * found.temperature, before)
    assert calibrate_head(moved(), contract(), EXAMPLES) is None  # 18 rows are too few


def test_a_contract_that_was_made_for_words_is_refused() -> None:
    for made in (
        contract().model_copy(update={"answered_by": "words"}),
        contract().model_copy(update={"label_rows": ()}),
    ):
        with pytest.raises(RunError, match="not made for a head of this kind") as caught:
            load_method(Settings(), made)
        assert "luthier prepare" in caught.value.way_out
    assert load_method(Settings(), contract()).count(EXAMPLES[0]) == 1
    assert load_method(Sft(), contract()).count(EXAMPLES[0]) == 2


def test_the_language_model_under_the_head_is_the_language_model() -> None:
    ids = torch.tensor([EXAMPLES[1].input_ids])
    with torch.no_grad():
        assert torch.equal(bare(moved()).lm_head.weight, bare(fresh()).lm_head.weight)
        assert moved()(input_ids=ids).logits.shape[-1] == 384
