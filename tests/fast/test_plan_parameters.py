from __future__ import annotations

from typing import Any

import pytest
import samples
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import RecipeError
from luthier.plan.make import make_plan
from luthier.plan.parameters import (
    adapted,
    counted_parameters,
    linear_parameters,
    linears,
    lowest_adapted,
    trainable_parameters,
)
from luthier.plan_records import Plan
from luthier.records import ModelShape
from luthier.spec.adapters.full import Full
from luthier.spec.adapters.lora import Lora
from luthier.spec.plugins import ADAPTERS
from luthier.spec.resolve import ResolvedRecipe


def lora_parameters(
    shape: ModelShape,
    r: int,
    target_modules: str | tuple[str, ...] = "all-linear",
    layers: tuple[int, ...] | None = None,
) -> int:
    return trainable_parameters(shape, Lora(r=r, target_modules=target_modules, layers_to_transform=layers))


def test_counts_of_smollm2_135m_are_those_of_the_published_model() -> None:
    assert counted_parameters(samples.shape()) == 134_515_008
    assert len(linears(samples.shape())) == 30 * 7
    assert linear_parameters(samples.shape()) == 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)


def test_adapter_counts_equal_a_hand_count() -> None:
    by_hand = (
        30
        * 16
        * (
            (576 + 576)  # q: 9 heads of 64
            + (576 + 192)  # k: 3 heads of 64
            + (576 + 192)  # v
            + (576 + 576)  # o
            + 3 * (576 + 1536)  # gate, up, down
        )
    )
    assert lora_parameters(samples.shape(), 16) == by_hand == 4_884_480
    assert lora_parameters(samples.shape(), 16, ("q_proj", "v_proj")) == 30 * 16 * (1152 + 768)
    assert lora_parameters(samples.shape(), 1, r".*\.[01]\..*down_proj") == 2 * 2112


@given(r=st.integers(1, 64), layers=st.integers(1, 8), heads=st.integers(1, 8), wide=st.integers(1, 300))
def test_adapter_grows_in_proportion_to_the_rank(r: int, layers: int, heads: int, wide: int) -> None:
    shape = samples.shape(num_layers=layers, num_heads=heads, num_kv_heads=1, intermediate_size=wide)
    assert lora_parameters(shape, r) == r * lora_parameters(shape, 1)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks transformers by the old name
@pytest.mark.parametrize(
    ("target_modules", "layers"),
    [
        ("all-linear", None),
        (("q_proj", "down_proj"), None),
        (("self_attn.o_proj",), None),
        (r".*\.1\.mlp\.\w+_proj", None),
        ("all-linear", (1,)),
        ("all-linear", (0, 2)),
        (("q_proj", "down_proj"), (1, 2)),
    ],
)
def test_adapter_counts_equal_those_of_peft(
    target_modules: str | tuple[str, ...], layers: tuple[int, ...] | None
) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from luthier.models.adapters import attach
    from luthier.models.trunk import lowest_learning

    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=False,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config)
    shape = samples.shape(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        tied_embeddings=False,
        num_parameters=model.num_parameters(),
    )
    assert counted_parameters(shape) == model.num_parameters()
    lora = Lora(type="lora", r=3, alpha=3, dropout=0.0, target_modules=target_modules, layers_to_transform=layers)
    tuned = attach(model, lora, base_name="tiny", seed=0)
    trainable, _ = tuned.get_nb_trainable_parameters()
    assert lora_parameters(shape, 3, target_modules, layers) == trainable
    assert lowest_adapted(shape, target_modules, layers) == lowest_learning(tuned)


@pytest.mark.parametrize(
    ("target_modules", "found"),
    [
        (("q_proj", "query"), "'query' matches no linear layer"),
        (("proj",), "'proj' matches no linear layer"),  # an end of a name, not of a word
        ("q_proj", "'q_proj' matches no linear layer"),  # a text is an expression over whole names
        ("*_proj", "is not a regular expression"),
    ],
)
def test_modules_that_do_not_exist_are_refused(target_modules: str | tuple[str, ...], found: str) -> None:
    with pytest.raises(RecipeError, match=r"adapter.target_modules") as error:
        adapted(samples.shape(), target_modules)
    assert found in error.value.what
    assert "all-linear" in error.value.way_out
    assert "q_proj, k_proj" in error.value.way_out


def test_of_whole_weights_all_count_or_those_of_layers() -> None:
    shape = samples.shape()
    assert trainable_parameters(shape, Full()) == shape.num_parameters
    upper = trainable_parameters(shape, Full(layers_to_transform=(28, 29)))
    assert upper == 2 * (linear_parameters(shape) // 30 + 2 * 576)


def adapter(**section: Any) -> ResolvedRecipe:
    return samples.resolved(adapter=section)


@pytest.mark.parametrize("name", ADAPTERS.names())
def test_a_plan_is_made_for_every_type(name: str) -> None:
    """More memory where more learns; no type is free."""

    def plan(**section: Any) -> Plan:
        return make_plan(adapter(**section), samples.profile(), samples.shape(), matmul_gflops=50)

    made, least = plan(type=name), plan(r=1)
    tuned = next(one for one in made.candidates if one.technique == f"{name} sft")
    assert tuned.trainable_parameters == trainable_parameters(samples.shape(), adapter(type=name).recipe.adapter) > 0
    if name == "full":
        whole = samples.shape().num_parameters
        assert tuned.trainable_parameters == whole
        # Gradient, two moments, their copy and the weight's for a checkpoint, the best so far: seven of each number.
        assert made.prediction.peak_memory_gib - least.prediction.peak_memory_gib > 6.5 * 4 * whole / 2**30
        upper = plan(type=name, layers_to_transform=[29])
        assert upper.prediction.peak_memory_gib < made.prediction.peak_memory_gib
        assert upper.prediction.train_seconds < made.prediction.train_seconds
        assert made.prediction.train_seconds > least.prediction.train_seconds
    if name in ("loha", "lokr"):  # the change of every layer, made anew and kept
        dense = linear_parameters(samples.shape()) * 4 / 2**30
        rank = getattr(adapter(type=name).recipe.adapter, "r", 0)
        assert made.prediction.peak_memory_gib > plan(r=rank).prediction.peak_memory_gib + 0.8 * dense
