"""A classification head beside every type of adapter, and beside whole weights: saved, opened again, in plain tools."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import samples
import torch
from classify_kit import EXAMPLES, LABELS, method
from peft import PeftModel
from safetensors.torch import load_file
from test_models_tuners import IDS, SHAPE, apart, base, every, logits, moved, of, saved
from test_train_loop import SETTINGS
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from luthier.engines.transformers import TransformersEngine, base_and_tuned
from luthier.errors import Stopped
from luthier.models.adapters import attach, bare, merge
from luthier.models.classifier import as_classifier, class_scores, head_of, put_head
from luthier.models.packing import Segment, lay_out
from luthier.models.trunk import check_trunk, lowest_learning
from luthier.models.tuned import can_switch_off, is_adapted, load_tuned
from luthier.plan.predict import learner_of
from luthier.spec.adapters.full import Full
from luthier.store.runs import tuned_in, weights_file
from luthier.train import loop
from rows_kit import inputs_of


def fresh(name: str, **changes: Any) -> Any:
    """As training begins."""
    return with_head(attach(base(name), of(name, **changes), base_name="tiny", seed=0))


def with_head(model: Any) -> Any:
    put_head(model, len(LABELS))
    return model


@torch.no_grad()
def scores(model: Any) -> torch.Tensor:
    """Of the last token, [1, C]."""
    return class_scores(bare(model), lay_out([Segment(IDS[0].tolist())]), torch.tensor([IDS.shape[1] - 1]))


@torch.no_grad()
def plain_logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


@dataclass(frozen=True)
class Kept:
    """A model with a head that learned, and what is on the disk."""

    model: Any
    base: Path
    tuned: Path


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Kept]:
    """Made once for each case."""

    @cache
    def make(name: str) -> Kept:
        place = tmp_path_factory.mktemp("kept")
        base(name).save_pretrained(place / "base")
        model = moved(fresh(name))
        return Kept(model, place / "base", saved(model, place / "train"))

    return make


@every
def test_what_is_saved_chooses_and_speaks_as_what_learned(
    name: str, kept: Callable[[str], Kept], tmp_path: Path
) -> None:
    one = kept(name)
    again = load_tuned(one.base, one.tuned)
    assert head_of(again) is not None
    assert apart(scores(again), scores(one.model)) < 1e-5
    assert apart(logits(again), logits(one.model)) < 1e-5
    assert apart(logits(again), logits(base(name))) > 1e-3
    assert weights_file(saved(again, tmp_path)).read_bytes() == weights_file(one.tuned).read_bytes()
    ids = IDS[0].tolist()
    untuned, tuned = base_and_tuned(one.base, one.tuned)
    assert abs(untuned.logits(ids) - TransformersEngine(base(name)).logits(ids)).max() == 0
    assert (untuned.model is tuned.model) == can_switch_off(tuned.whole)
    assert apart(torch.tensor(tuned.class_logits(ids))[None], scores(one.model)) < 1e-5


@every
def test_plain_tools_choose_the_same(name: str, kept: Callable[[str], Kept]) -> None:
    one = kept(name)
    if is_adapted(one.model):
        start = AutoModelForSequenceClassification.from_pretrained(one.base, num_labels=len(LABELS))
        opened = PeftModel.from_pretrained(start, one.tuned)
    else:
        opened = AutoModelForSequenceClassification.from_pretrained(one.tuned)
        assert apart(plain_logits(AutoModelForCausalLM.from_pretrained(one.tuned)), logits(one.model)) < 1e-5
    assert apart(plain_logits(opened), scores(one.model)) < 1e-5


@every
def test_merged_it_chooses_the_same(name: str, kept: Callable[[str], Kept]) -> None:
    one = kept(name)
    model = load_tuned(one.base, one.tuned)
    merged = as_classifier(merge(model) if is_adapted(model) else model, LABELS, pad_token_id=0)
    assert apart(plain_logits(merged), scores(one.model)) < 1e-5


# --- learning ---------------------------------------------------------------------------------------------------------

FLAT = SETTINGS.model_copy(update={"weight_decay": 0.0, "lr_scheduler_type": "constant"})


def run(out: Path, model: Any, *, stop_after: int | None = None, settings: Any = FLAT) -> Any:
    seen: list[int] = []
    return loop.train(
        model, inputs_of(EXAMPLES, method()), settings=settings, method_name="classify", validation=None, out=out,
        watch=lambda event, total_steps: seen.append(event.step),
        stop_asked=lambda: stop_after is not None and bool(seen) and seen[-1] >= stop_after,
    )  # fmt: skip


@pytest.fixture
def _deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("name", ["dora", "pissa", "olora", "embeddings too", "ia3", "loha", "vera", "oft", "full"])
def test_it_learns_and_a_run_that_was_stopped_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", fresh(name))
    losses = [event.loss for event in whole.history]
    assert losses[0] == pytest.approx(math.log(len(LABELS)), rel=1e-5)
    assert sum(losses[5:]) < sum(losses[:5])
    torch.seed()  # as every process begins
    with pytest.raises(Stopped):
        run(tmp_path / "cut", fresh(name), stop_after=4)
    torch.seed()
    resumed = run(tmp_path / "cut", fresh(name))
    assert resumed.resumed_from == (4,)
    assert resumed.weights_sha256 == whole.weights_sha256
    one, other = (load_file(weights_file(tuned_in(tmp_path / place))) for place in ("whole", "cut"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert any(key.endswith("score.weight") and bool(one[key].abs().sum()) for key in one)


@pytest.mark.usefixtures("_deterministic")
def test_of_all_weights_an_output_head_of_its_own_stays_as_it_is(tmp_path: Path) -> None:
    """It has no gradient, and must not decay either."""
    start = base(tie_word_embeddings=False)
    before, embeddings = (end.weight.detach().clone() for end in (start.lm_head, start.model.embed_tokens))
    number = sum(p.numel() for p in start.parameters())
    model = with_head(attach(start, Full(), base_name="tiny", seed=0))
    settings = FLAT.model_copy(update={"weight_decay": 0.5})
    result = run(tmp_path, model, settings=settings)
    kept = load_file(weights_file(tuned_in(tmp_path)))
    assert torch.equal(kept["lm_head.weight"], before)
    assert not torch.equal(kept["model.embed_tokens.weight"], embeddings)
    assert result.trainable_parameters == sum(p.numel() for p in model.parameters()) - before.numel()
    shape = SHAPE.model_copy(update={"tied_embeddings": False, "num_parameters": number})
    given = samples.resolved(method={"type": "classify"}, adapter={"type": "full"})
    assert learner_of(given, shape, num_labels=len(LABELS)).parameters == result.trainable_parameters


def test_a_head_above_upper_layers_that_learn_themselves_has_a_trunk_below() -> None:
    model = with_head(attach(base(num_hidden_layers=3), of("full", layers_to_transform=(2,)), base_name="", seed=0))
    assert check_trunk(model) == lowest_learning(model) == 2
    assert head_of(model).weight.requires_grad
