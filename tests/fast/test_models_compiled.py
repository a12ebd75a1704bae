"""Compiled layers say what the others say. The compiler's last part needs an accelerator; what it is given is tried."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.backends.registry import lookup_backend
from torch.nn.attention import flex_attention as torchs
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.models import flex, forward
from luthier.models.adapters import attach, bare
from luthier.models.compiled import compile_layers
from luthier.models.packing import Layout, lay_out_rows
from luthier.spec.adapters.lora import Lora

BATCHES = [[[*range(3, 3 + length), 7, 8, 9, last] for last in (1, 1, 4, 5)] for length in (70, 40, 55)]


def model_of() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    adapter = Lora(type="lora", r=4, alpha=8, target_modules="all-linear", dropout=0.0)
    model = attach(LlamaForCausalLM(config), adapter, base_name="base", seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model.train()


def states_and_gradients(model: Any, told_first: Callable[[], None] = lambda: None) -> list[torch.Tensor]:
    """Of each batch in turn; rows differ in length, so the layers meet several shapes."""
    found = []
    for rows in BATCHES:
        model.zero_grad()
        states = forward.hidden_states(bare(model), lay_out_rows(rows)[0])
        states.square().sum().backward()
        if not found:
            told_first()
        found += [states.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch, traced, warns of torch
def test_layers_are_one_program_for_all_lengths_and_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    given = forward._given
    compiles, told, programs, met = nn.Module.compile, list[Any](), list[Any](), list[int]()

    def on_an_accelerator(model: Any, layout: Layout) -> dict[str, Any]:
        looks = flex.looks_of(layout, window=None, dtype=None, device=torch.device("cpu"))
        return {**given(model, layout), "looks": looks}

    def without_kernels(module: nn.Module, **settings: Any) -> None:
        told.append(settings)
        compiles(module, backend=counted, **settings)

    def counted(graph: Any, inputs: Any) -> Any:
        programs.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setattr(forward, "_given", on_an_accelerator)
    monkeypatch.setattr(torchs, "_validate_device", lambda *tensors: None)  # it refuses gradients on a processor
    monkeypatch.setattr(nn.Module, "compile", without_kernels)
    expected = states_and_gradients(model_of())
    torch._dynamo.reset()
    model = model_of()
    assert compile_layers(model) == 3
    found = states_and_gradients(model, told_first=lambda: met.append(len(programs)))
    assert met[0] == len(programs), "a length that is met later makes no other program"
    assert told == [{"dynamic": True, "fullgraph": True}] * 3
    assert 0 < len(programs) < 3, "one for all layers; the tracer may begin anew once it has met a number"
    for one, other in zip(found, expected, strict=True):
        scale = float(other.abs().max())
        assert float((one - other).abs().max()) <= 1e-5 * scale
