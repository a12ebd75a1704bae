"""The model that learns, as the recipe asks for it: precision, and activations that are computed again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import samples
import test_train_loop
import torch
from torch import Tensor

from luthier.errors import ModelError, RunError
from luthier.models.adapters import bare
from luthier.models.half import BFloat16Linear
from luthier.pipeline import start
from luthier.pipeline.context import set_up_device
from luthier.pipeline.training import with_adapter
from luthier.train.methods.sft import Sft
from tiny import llama

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft, by the old name


def model_of(**train: Any) -> Any:
    recipe = samples.resolved(train=train, adapter={"r": 4, "target_modules": "all-linear"}).recipe
    model = with_adapter(llama(), recipe, base_name="b").train()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def kept_and_gradients(model: Any) -> tuple[int, dict[str, Tensor]]:
    """Bytes that are alive between forward and backward, and the gradient of a micro-batch that shares."""
    alive: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        alive[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = Sft().loss_sum(model, test_train_loop.EXAMPLES[:6])
    loss.backward()
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return sum(size for place, size in alive.items() if place not in own), gradients


@pytest.mark.parametrize("others", [{}, {"bf16": True}])
def test_computing_again_keeps_less_and_changes_no_bit(others: dict[str, Any]) -> None:
    kept, expected = kept_and_gradients(model_of(gradient_checkpointing=False, **others))
    fewer, found = kept_and_gradients(model_of(gradient_checkpointing=True, **others))
    assert fewer < 0.5 * kept
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_dropout_is_the_same_again() -> None:
    def gradients(again: bool) -> dict[str, Tensor]:
        recipe = samples.resolved(train={"gradient_checkpointing": again}, adapter={"dropout": 0.5}).recipe
        model = with_adapter(llama(), recipe, base_name="b").train()
        torch.manual_seed(3)
        return kept_and_gradients(model)[1]

    expected, found = gradients(False), gradients(True)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_bf16_halves_what_is_frozen() -> None:
    assert any(isinstance(part, BFloat16Linear) for part in model_of(bf16=True).modules())
    assert not any(isinstance(part, BFloat16Linear) for part in model_of(bf16=False).modules())


def test_a_family_that_cannot_compute_again_is_refused() -> None:
    base = llama()
    type(bare(base)).supports_gradient_checkpointing, before = False, type(base).supports_gradient_checkpointing
    try:
        with pytest.raises(ModelError, match=r"gradient_checkpointing is on, and LlamaForCausalLM cannot"):
            with_adapter(base, samples.resolved(train={"gradient_checkpointing": True}).recipe, base_name="b")
    finally:
        type(base).supports_gradient_checkpointing = before


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_device_that_is_not_there_is_said() -> None:
    with pytest.raises(RunError, match=r"train\.device is 'cuda', and torch .* sees no such device"):
        set_up_device(samples.resolved(train={"device": "cuda"}).recipe.train)
    assert set_up_device(samples.resolved(train={}).recipe.train) == "cpu"


@pytest.mark.parametrize(
    ("build", "driver", "seen"), [("2.13.0", True, "cuda"), ("2.13.0+cpu", True, None), ("2.13.0", False, None)]
)
def test_an_accelerator_is_seen_without_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: str, driver: bool, seen: str | None
) -> None:
    monkeypatch.setattr(start, "version", lambda _: build)
    if driver:
        (tmp_path / "driver").touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert start.usable_accelerator(driver=tmp_path / "driver") == seen
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert start.usable_accelerator(driver=tmp_path / "driver") is None
