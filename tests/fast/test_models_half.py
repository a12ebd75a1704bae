"""Frozen products in bfloat16: which layers, how far from float32, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import Linear

from luthier.models.fused import fuse
from luthier.models.half import BFloat16Linear, halve, product, product_back
from tiny import llama


def tuned(**settings: Any) -> Any:
    torch.manual_seed(0)
    model = get_peft_model(llama(), LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "up_proj"], **settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    fuse(model)
    return model


def loss_and_gradients(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    ids = torch.arange(3, 40).view(1, -1)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_every_frozen_layer_is_halved_and_nothing_that_learns() -> None:
    model = tuned(bias="lora_only")
    before = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
    halved = halve(model)
    layers = [module for module in model.modules() if isinstance(module, Linear)]
    assert halved == sum(isinstance(module, BFloat16Linear) for module in layers) > 0
    for module in layers:
        learns = any(own.requires_grad for own in module.parameters(recurse=False))
        assert (module.weight.dtype == torch.float32) == learns == (not isinstance(module, BFloat16Linear))
    assert {name: p.dtype for name, p in model.named_parameters() if p.requires_grad} == before
    assert set(before.values()) == {torch.float32}
    assert model.get_input_embeddings().weight.dtype == torch.float32


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_loss_and_gradients_are_those_of_float32_within_bfloat16(dropout: float) -> None:
    plain, half = tuned(lora_dropout=dropout), tuned(lora_dropout=dropout)
    halve(half)
    torch.manual_seed(1)
    loss, expected = loss_and_gradients(plain)
    torch.manual_seed(1)
    near, found = loss_and_gradients(half)
    assert near.dtype == torch.float32
    assert 0.0 < abs(float(near - loss)) < 0.01 * float(loss)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        assert found[name].dtype == torch.float32
        assert float((found[name] - gradient).norm()) < 0.03 * float(gradient.norm()), name  # 2^-8 a product, added up


def test_products_round_what_goes_in_and_out_and_nothing_between() -> None:
    torch.manual_seed(0)
    rows, bias = torch.randn(7, 64), torch.randn(16)
    weight = torch.randn(16, 64).to(torch.bfloat16)
    exact = rows.to(torch.bfloat16).double() @ weight.double().T
    assert torch.equal(product(rows, weight), exact.to(torch.bfloat16).float())
    assert torch.equal(product(rows, weight, bias), exact.to(torch.bfloat16).float() + bias)
    back = torch.randn(7, 16)
    exact = back.to(torch.bfloat16).double() @ weight.double()
    assert torch.equal(product_back(back, weight), exact.to(torch.bfloat16).float())
    assert torch.equal(product(rows, weight.float()), torch.nn.functional.linear(rows, weight.float()))
