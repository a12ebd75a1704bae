"""A fused LoRA layer says what PEFT's says, forward and backward, and leaves to PEFT what it does not know."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from luthier.models.fused import FusedLoraLinear, fuse
from tiny import llama


def tuned(**settings: Any) -> Any:
    torch.manual_seed(0)
    model = get_peft_model(llama(), LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", **settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def gradients(model: Any) -> dict[str, Tensor]:
    model.zero_grad()
    ids = torch.arange(3, 40).view(1, -1)
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed")  # on layers without a bias it cannot be merged
@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True}, {"use_dora": True}, {"bias": "all"}, {"lora_bias": True}]
)
def test_loss_and_gradients_are_those_of_peft(settings: dict[str, Any]) -> None:
    plain, fused = tuned(**settings), tuned(**settings)
    fuse(fused)
    assert any(isinstance(module, FusedLoraLinear) for module in fused.modules())
    expected, found = gradients(plain), gradients(fused)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm()) < 1e-5 * float(gradient.norm())


def test_switching_the_adapter_off_and_merging_are_as_before() -> None:
    plain, fused = tuned(), tuned()
    fuse(fused)
    ids = torch.arange(3, 40).view(1, -1)
    with torch.no_grad():
        with plain.disable_adapter(), fused.disable_adapter():
            assert torch.equal(plain(input_ids=ids).logits, fused(input_ids=ids).logits)
        assert plain.state_dict().keys() == fused.state_dict().keys()
        merged = fused.merge_and_unload()(input_ids=ids).logits
        torch.testing.assert_close(merged, plain.merge_and_unload()(input_ids=ids).logits)


def test_dropout_is_left_to_peft() -> None:
    plain, fused = tuned(lora_dropout=0.5).train(), tuned(lora_dropout=0.5).train()
    fuse(fused)
    torch.manual_seed(1)
    expected = gradients(plain)
    torch.manual_seed(1)
    found = gradients(fused)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
