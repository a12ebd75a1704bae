"""Families of models: those that can be computed in packed rows are, exactly; the others are refused when they come."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig

from luthier.errors import ModelError
from luthier.models.forward import check_packing, forward_logits, is_noisy
from luthier.models.packing import lay_out_rows

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2, "pad_token_id": 2,
}  # fmt: skip
EXACT: dict[str, dict[str, Any]] = {
    "Llama": {"attention_bias": True, "mlp_bias": True},
    "Qwen2": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    "Qwen3": {"head_dim": 8},
    "Mistral": {"sliding_window": 16},
    "Gemma": {"head_dim": 8},
    "Gemma3Text": {"head_dim": 8, "sliding_window": 16},
    "GPTNeoX": {},
    "Granite": {"logits_scaling": 2.0},
}
REFUSED: dict[str, dict[str, Any]] = {
    "StableLm": {},
    "Bloom": {"n_layer": 2, "n_head": 4},
    "Falcon": {},
    "Lfm2": {"layer_types": ["conv", "full_attention"]},
    "Gemma2": {"head_dim": 8},
    "RecurrentGemma": {"lru_width": 32, "head_dim": 8, "attention_window_size": 16},
}


def model_of(name: str, more: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config: PretrainedConfig = getattr(transformers, f"{name}Config")(**(SIZES | more))
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


@pytest.mark.parametrize("name", EXACT)
def test_packed_rows_say_what_rows_alone_say(name: str) -> None:
    model = model_of(name, EXACT[name])
    start = torch.randint(3, 90, (20,)).tolist()
    ends = [torch.randint(3, 90, (count,)).tolist() for count in (5, 1, 25)]
    rows = [*(start + end for end in ends), [7], [8, 9, 10]]
    with torch.no_grad():
        alone = [model(input_ids=torch.tensor([row]), use_cache=False).logits[0] for row in rows]
        layout, places = lay_out_rows(rows)
        packed = forward_logits(model, layout, torch.arange(layout.input_ids.shape[1]))
    assert layout.input_ids.numel() < sum(map(len, rows))
    for place, expected in zip(places, alone, strict=True):
        torch.testing.assert_close(packed[place], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_packed_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=r"cannot be computed in packed rows|with softcap"):
        check_packing(model_of(name, REFUSED[name]))


def test_dropout_without_a_module_is_noticed() -> None:
    model = model_of("Llama", {"attention_dropout": 0.3})
    assert not is_noisy(model)
    assert is_noisy(model.train())
    other = model_of("GPTNeoX", {}).train()
    assert other.config.classifier_dropout > 0, "of a head that classifies, which this model does not have"
    assert not is_noisy(other)
