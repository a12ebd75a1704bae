"""The frozen layers below the lowest one that learns: what they say of a token is the same in every epoch.

Either part of the layers is computed through the model's own decoder: for the time of a call, modules that hand on or
hold states stand in the places of the others. Every layer keeps its number, by which families choose its window and its
rotation, and what comes before and after the layers (scaled embeddings, norms, the head) stays the family's own. Names:
T tokens in the packed row, `first` the lowest layer that learns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.models.adapters import bare
from luthier.models.classifier import heads_of
from luthier.models.forward import draws, drops_out_by_config, hidden_states, in_evaluation
from luthier.models.packing import Layout, lay_out_rows

_OF_A_FAMILY = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError)
"""How the code of a family may say that it needs the layers that are left out."""

_WAY_OUT = "leave train.cache_trunk out: all layers are then computed in every epoch, which changes no result"


class HandOn(nn.Module):
    """In the place of a layer that is not computed."""

    def forward(self, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return states


class Hold(nn.Module):
    """In the place of the last layer that is not computed: what it would have said."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states  # [T, hidden]

    def forward(self, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        assert states.shape[1:] == self.states.shape, "the states are of another packed row"
        return self.states[None].to(states.device, states.dtype)


class _Keep(nn.Module):
    """In the place of the first layer that is not computed: keeps what would have entered it."""

    def __init__(self) -> None:
        super().__init__()
        self.states: Tensor | None = None

    def forward(self, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.states = states[0]
        return states


def states_below(model: Any, layout: Layout, first: int) -> Tensor:
    """What enters layer `first` for each token of the packed row, without gradient and dropout; [T, hidden]."""
    model = bare(model)
    kept, layers = _Keep(), model.get_decoder().layers
    with in_evaluation(model), layers_in_place(model, [*layers[:first], kept, *[HandOn()] * (len(layers) - first - 1)]):
        hidden_states(model, layout)
    assert kept.states is not None, "the decoder left out a layer"
    return kept.states


@contextmanager
def starting_at(model: Any, first: int, states: Tensor) -> Iterator[None]:
    """Within, the model computes its layers from `first` on, which `states` [T, hidden] enter, and none below."""
    model = bare(model)
    with layers_in_place(model, [*[HandOn()] * (first - 1), Hold(states), *model.get_decoder().layers[first:]]):
        yield


@contextmanager
def layers_in_place(model: Any, layers: Sequence[nn.Module]) -> Iterator[None]:
    """Within, these stand in the places of the model's own layers, every one of which keeps its number."""
    decoder = model.get_decoder()
    own = decoder.layers
    assert len(layers) == len(own), "every layer keeps its number"
    decoder.layers = nn.ModuleList(layers)
    try:
        yield
    finally:
        decoder.layers = own


def lowest_learning(model: Any) -> int:
    """Number of the lowest layer that learns; 0 where none does, or where something outside the layers learns too.

    Classification heads are above all of them.
    """
    layers = getattr(bare(model).get_decoder(), "layers", ())
    learning = [{id(p) for p in layer.parameters() if p.requires_grad} for layer in layers]
    above = {id(p) for head in heads_of(model).values() for p in head.parameters()}
    outside = {id(p) for p in bare(model).parameters() if p.requires_grad}.difference(above, *learning)
    return 0 if outside else next((number for number, found in enumerate(learning) if found), 0)


def check_trunk(model: Any) -> int:
    """See that the model says the same when it starts above its frozen layers.

    As with packing (`check_packing`), no list keeps up with the families: some hand more than states from layer to
    layer (keys and values, embeddings of a layer's own), which would be lost.

    Returns:
        The lowest layer that learns.

    Raises:
        ModelError: nothing is frozen below it, what is frozen has dropout, or the model says something else.
    """
    first = lowest_learning(model)
    if first == 0:
        raise _unfit(model, "its lowest layer learns, or it has no list of layers")
    upper = {id(part) for layer in bare(model).get_decoder().layers[first:] for part in layer.modules()}
    drops = (part for part in model.modules() if draws(part))
    if drops_out_by_config(model) or any(id(part) not in upper for part in drops):
        raise _unfit(model, "it has dropout or noise of its own, so they say something else each time")
    layout, _ = lay_out_rows([[3, 5, 7, 4, 6, 8, 3, 9, 5, 4, 6, 7], [3, 5, 7, 4, 6, 8, 3, 9, 5, 4, 8], [9, 3, 8]])
    try:
        with in_evaluation(bare(model)):
            states = states_below(model, layout, first)
            whole = hidden_states(bare(model), layout)  # in between, so that what it leaves behind helps nobody
            with starting_at(model, first, states):
                found = hidden_states(bare(model), layout)
    except _OF_A_FAMILY as error:
        raise _unfit(model, f"{type(error).__name__}: {error}") from error
    scale, apart = float(whole.abs().max()), float((found - whole).abs().max())
    if apart > (1e-5 if whole.dtype == torch.float32 else 1e-2) * scale:
        raise _unfit(model, f"above them it then says something else, by {apart:.2g}")
    return first


def _unfit(model: Any, why: str) -> ModelError:
    name = type(bare(model)).__name__
    return ModelError(f"the frozen layers of {name} cannot be kept ({why})", way_out=_WAY_OUT)
