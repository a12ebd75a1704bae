"""The frozen layers alone and the others above them: together they say what the model says, in every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_models_families import EXACT, model_of
from torch import Tensor

from luthier.errors import ModelError
from luthier.models.adapters import attach, bare
from luthier.models.forward import check_packing, hidden_states
from luthier.models.packing import lay_out_rows
from luthier.models.trunk import check_trunk, lowest_learning, starting_at, states_below
from luthier.spec.adapters.lora import Lora

ROWS = [[*range(3, 30), 40, 41], [*range(3, 30), 50], [7, 8, 9]]
LAYERS = 4


def family(name: str, **more: Any) -> Any:
    return model_of(name, EXACT[name] | {"num_hidden_layers": LAYERS} | more).requires_grad_(False)


def tuned(base: Any, *layers: int, dropout: float = 0.0) -> Any:
    """With an adapter on these layers that does something."""
    lora = Lora(
        type="lora", r=2, alpha=4.0, dropout=dropout, target_modules="all-linear", layers_to_transform=layers or None
    )
    model = attach(base, lora, base_name="tiny", seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=generator)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("first", [1, 3])
@pytest.mark.parametrize("name", EXACT)
def test_both_parts_together_are_the_whole(name: str, first: int) -> None:
    model = tuned(family(name), *range(first, LAYERS))
    layout, _ = lay_out_rows(ROWS)
    check_packing(bare(model))
    whole = hidden_states(bare(model), layout)
    states = states_below(model, layout, first)
    assert not states.requires_grad
    with starting_at(model, first, states):
        assert torch.equal(hidden_states(bare(model), layout), whole)
    with starting_at(model, first, states + 1):
        assert not torch.allclose(hidden_states(bare(model), layout), whole)
    assert check_trunk(model) == first
    assert torch.equal(hidden_states(bare(model), layout), whole), "its layers are its own again"


def test_layers_that_are_not_asked_are_not_computed() -> None:
    model = tuned(family("Llama"), 2)
    layout, _ = lay_out_rows(ROWS)
    computed: list[int] = []
    for number, layer in enumerate(bare(model).get_decoder().layers):
        layer.register_forward_hook(lambda module, given, out, number=number: computed.append(number))
    check_packing(bare(model))
    computed.clear()
    states = states_below(model, layout, 2)
    assert computed == [0, 1]
    computed.clear()
    with starting_at(model, 2, states):
        hidden_states(bare(model), layout)
    assert computed == [2, 3]


def test_the_layers_come_back_after_an_error() -> None:
    model = tuned(family("Llama"), 2)
    own = bare(model).get_decoder().layers
    with pytest.raises(AssertionError, match="another packed row"), starting_at(model, 2, torch.zeros(3, 32)):
        hidden_states(bare(model), lay_out_rows(ROWS)[0])
    assert bare(model).get_decoder().layers is own


def test_the_lowest_layer_that_learns() -> None:
    assert lowest_learning(tuned(family("Llama"), 3, 2)) == 2
    assert lowest_learning(tuned(family("Llama"))) == 0
    assert lowest_learning(family("Llama")) == 0, "nothing learns"
    more = tuned(family("Llama"), 3)
    more.get_base_model().get_input_embeddings().weight.requires_grad_(True)
    assert lowest_learning(more) == 0, "what the layers are given learns too"


def test_dropout_counts_where_it_is_frozen() -> None:
    assert check_trunk(tuned(family("Llama"), 2, dropout=0.3).train()) == 2
    for name, more in (("Llama", {"attention_dropout": 0.1}), ("GPTNeoX", {"hidden_dropout": 0.1})):
        with pytest.raises(ModelError, match=r"cannot be kept .*has dropout or noise of its own"):
            check_trunk(tuned(family(name, **more), 2))


def test_what_the_lowest_layer_learns_cannot_be_kept() -> None:
    with pytest.raises(ModelError, match="its lowest layer learns") as caught:
        check_trunk(tuned(family("Llama")))
    assert "leave train.cache_trunk out" in caught.value.way_out


@pytest.mark.parametrize("otherwise", ["fails", "goes on"])
def test_a_family_that_hands_more_than_states_upwards_is_refused(otherwise: str) -> None:
    model, handed = tuned(family("Llama"), 2), dict[str, Tensor]()
    layers = bare(model).get_decoder().layers

    def hand(module: Any, given: Any, out: Tensor) -> None:
        handed["from 0"] = out

    def take(module: Any, given: tuple[Tensor, ...], more: dict[str, Any]) -> Any:
        found = handed.pop("from 0") if otherwise == "fails" else handed.pop("from 0", 0.0)
        return (given[0] + found, *given[1:]), more

    layers[0].register_forward_hook(hand)
    layers[3].register_forward_pre_hook(take, with_kwargs=True)
    what = "KeyError" if otherwise == "fails" else "says something else, by"
    with pytest.raises(ModelError, match=rf"the frozen layers of LlamaForCausalLM cannot be kept .*{what}"):
        check_trunk(model)
