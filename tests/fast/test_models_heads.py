"""Heads of several tasks over one adapter or one set of weights: saved, opened again, merged, in plain tools."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_models_tuners import IDS, apart, base, every, logits, moved, of, saved
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from luthier.engines.transformers import TransformersEngine
from luthier.errors import ModelError
from luthier.models.adapters import adapter_state, attach, bare, merge
from luthier.models.classifier import (
    as_classifier,
    class_scores,
    head_of,
    heads_of,
    put_head,
    stored_head,
    take_off_heads,
)
from luthier.models.head_files import write_head_adapter
from luthier.models.packing import Segment, lay_out
from luthier.models.tuned import is_adapted, load_tuned
from luthier.spec.adapters.full import Full
from luthier.spec.recipe import DataEntry
from luthier.store.files import sha256_file
from luthier.store.runs import HEADS, weights_file, weights_sha256
from luthier.train.optim import rate_factors

HEADED = {"intent": 4, "mood": 2}


def with_heads(model: Any, *, beside_words: bool = True) -> Any:
    for task, labels in HEADED.items():
        put_head(model, labels, task=task, beside_words=beside_words)
    return model


@torch.no_grad()
def stirred(model: Any) -> Any:
    """`moved`, and the heads, which begin at zero."""
    moved(model)
    for number, head in enumerate(heads_of(model).values()):
        head.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(number))
    return model


@torch.no_grad()
def scores(model: Any, task: str) -> torch.Tensor:
    layout = lay_out([Segment(IDS[0].tolist())])
    return class_scores(bare(model), layout, torch.tensor([IDS.shape[1] - 1]), task)


@torch.no_grad()
def plain_logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


class Kept:
    """A model with two heads that learned, and what is on the disk."""

    def __init__(self, name: str, place: Path) -> None:
        base(name).save_pretrained(place / "base")
        self.model = stirred(with_heads(attach(base(name), of(name), base_name="tiny", seed=0)))
        self.base, self.tuned = place / "base", saved(self.model, place / "train")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Kept]:
    """Made once for each case."""
    return cache(lambda name: Kept(name, tmp_path_factory.mktemp("kept")))


@every
def test_what_is_saved_chooses_and_speaks_as_what_learned(
    name: str, kept: Callable[[str], Kept], tmp_path: Path
) -> None:
    one = kept(name)
    again = load_tuned(one.base, one.tuned)
    assert {task: head.out_features for task, head in heads_of(again).items()} == HEADED
    assert not any(head.weight.requires_grad for head in heads_of(again).values())
    for task in HEADED:
        assert apart(scores(again, task), scores(one.model, task)) < 1e-5
        found = TransformersEngine(again).class_logits(IDS[0].tolist(), task)
        assert apart(torch.tensor(found)[None], scores(one.model, task)) < 1e-5
    assert apart(logits(again), logits(one.model)) < 1e-5
    second = saved(again, tmp_path)
    assert weights_sha256(second) == weights_sha256(one.tuned)
    assert not any("score" in name for name in load_file(weights_file(one.tuned)))


@every
def test_plain_tools_open_a_language_model_and_each_head(
    name: str, kept: Callable[[str], Kept], tmp_path: Path
) -> None:
    one = kept(name)
    if not is_adapted(one.model):
        assert apart(plain_logits(AutoModelForCausalLM.from_pretrained(one.tuned)), logits(one.model)) < 1e-5
        return
    speaks = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(one.base), one.tuned)
    assert apart(plain_logits(speaks), logits(one.model)) < 1e-5
    for task, labels in HEADED.items():
        (tmp_path / task).mkdir()
        write_head_adapter(one.tuned, task, tmp_path / task)
        start = AutoModelForSequenceClassification.from_pretrained(one.base, num_labels=labels)
        chooses = PeftModel.from_pretrained(start, tmp_path / task)
        assert apart(plain_logits(chooses), scores(one.model, task)) < 1e-5


@every
def test_merged_each_head_chooses_the_same(name: str, kept: Callable[[str], Kept]) -> None:
    one = kept(name)
    model = load_tuned(one.base, one.tuned)
    merged = merge(model) if is_adapted(model) else model
    for task, labels in HEADED.items():
        made = as_classifier(merged, list("abcd")[:labels], pad_token_id=0, task=task)
        assert apart(plain_logits(made), scores(one.model, task)) < 1e-5
    take_off_heads(merged)
    assert not heads_of(merged)
    assert not any("score" in name for name in merged.state_dict())


def test_the_hash_of_the_weights_is_that_of_the_heads_too(kept: Callable[[str], Kept], tmp_path: Path) -> None:
    one = shutil.copytree(kept("lora").tuned, tmp_path / "adapter")
    before = weights_sha256(one)
    heads = load_file(one / HEADS)
    save_file({**heads, "mood.weight": heads["mood.weight"] * 2}, one / HEADS)
    assert weights_sha256(one) != before != sha256_file(weights_file(one))
    (one / HEADS).unlink()
    assert weights_sha256(one) == sha256_file(weights_file(one))


def test_heads_that_are_damaged_or_of_another_base_are_refused(kept: Callable[[str], Kept], tmp_path: Path) -> None:
    one = kept("lora")
    folder = shutil.copytree(one.tuned, tmp_path / "adapter")
    heads = load_file(folder / HEADS)
    save_file({**heads, "mood.weight": heads["mood.weight"][:, :-1].contiguous()}, folder / HEADS)
    with pytest.raises(ModelError, match="does not fit the base"):
        load_tuned(one.base, folder)
    (folder / HEADS).write_bytes(b"{}")
    with pytest.raises(ModelError, match="does not fit the base"):
        load_tuned(one.base, folder)


def test_a_task_without_a_head_is_told_whose_there_are(kept: Callable[[str], Kept]) -> None:
    with pytest.raises(ModelError, match="no classification head for task 'reply', only for intent, mood"):
        scores(kept("lora").model, "reply")


@pytest.mark.parametrize("beside_words", [True, False])
def test_an_output_head_of_its_own_learns_where_a_task_writes_words(beside_words: bool) -> None:
    model = attach(base(tie_word_embeddings=False), Full(), base_name="tiny", seed=0)
    assert with_heads(model, beside_words=beside_words).lm_head.weight.requires_grad == beside_words


@pytest.mark.parametrize(
    "task", ["type", "train", "items", "score", "lora_A", "lora_B", "lora_default", "modules_to_save"]
)
def test_a_task_may_be_called_what_a_module_or_peft_calls_something(task: str, tmp_path: Path) -> None:
    assert DataEntry(path="d.csv", name=task).name == task
    model = attach(base(), of("lora"), base_name="tiny", seed=0)
    put_head(model, 3, task=task)
    stirred(model)
    name = f"base_model.model.score_{task}.weight"
    assert stored_head(name) == task
    assert [one for one in adapter_state(model) if "score" in one] == [name]
    folder = saved(model, tmp_path)
    base().save_pretrained(tmp_path / "base")
    assert torch.equal(head_of(load_tuned(tmp_path / "base", folder), task).weight, head_of(model, task).weight)
    from test_train_loop import SETTINGS

    settings = SETTINGS.model_copy(update={"loraplus_lr_ratio": 8.0, "layer_lr_decay": 0.5})
    assert rate_factors(dict(model.named_parameters()), settings)[name] == 1.0
