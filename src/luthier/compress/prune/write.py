"""A plain, smaller model: what stays of the weights, and a config that describes it, as transformers opens them.

Every weight is accounted for by its name: it is cut along the dimension of what goes, or stays whole. A name that does
not stand in the tables here is an error.
"""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from luthier.errors import ModelError
from luthier.models.adapters import safetensors_disk_errors
from luthier.models.base import load_base
from luthier.spec.prune import FAMILIES

_Cut = tuple[Literal["queries", "groups", "channels"], int] | None
"""What a weight is cut by, along which dimension; None for a weight that stays whole."""

_IN_LAYER: dict[str, _Cut] = {
    "self_attn.q_proj.weight": ("queries", 0),
    "self_attn.q_proj.bias": ("queries", 0),
    "self_attn.k_proj.weight": ("groups", 0),
    "self_attn.k_proj.bias": ("groups", 0),
    "self_attn.v_proj.weight": ("groups", 0),
    "self_attn.v_proj.bias": ("groups", 0),
    "self_attn.o_proj.weight": ("queries", 1),
    "self_attn.o_proj.bias": None,
    "self_attn.q_norm.weight": None,  # of the size of a head, one for all heads
    "self_attn.k_norm.weight": None,
    "mlp.gate_proj.weight": ("channels", 0),
    "mlp.gate_proj.bias": ("channels", 0),
    "mlp.up_proj.weight": ("channels", 0),
    "mlp.up_proj.bias": ("channels", 0),
    "mlp.down_proj.weight": ("channels", 1),
    "mlp.down_proj.bias": None,
    "input_layernorm.weight": None,
    "post_attention_layernorm.weight": None,
    "pre_feedforward_layernorm.weight": None,
    "post_feedforward_layernorm.weight": None,
}
_OUTSIDE = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_LISTS = ("layer_types",)
"""Of a config, what has an entry for every layer."""

_TOKENIZER = (".json", ".jinja", ".txt", ".model", ".md")
_OF_WEIGHTS = ("config.json", "generation_config.json", "model.safetensors.index.json")


@dataclass(frozen=True)
class Kept:
    """What stays."""

    layers: Sequence[int]
    """Ascending numbers of the model's layers."""
    channels: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """Layer -> its channels, ascending; all of them where it is empty."""
    groups: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """Layer -> its key-value heads, ascending; all of them where it is empty."""


def refuse_family(model: Any) -> None:
    """Before anything is measured.

    Raises:
        ModelError: which weights belong together is not known of the family, or a name is not in the tables.
    """
    kind = model.config.model_type
    if kind not in FAMILIES:
        raise ModelError(
            f"{type(model).__name__} ({kind}) cannot be pruned: which of its weights belong together is not known here",
            way_out=f"known families: {', '.join(FAMILIES)}; leave prune out for any other",
        )
    for name in model.state_dict():
        _place_of(name)


def _place_of(name: str) -> tuple[int | None, _Cut]:
    """Layer that a weight stands in, and what it is cut by."""
    match = _LAYER.fullmatch(name)
    if match is not None and match[2] in _IN_LAYER:
        return int(match[1]), _IN_LAYER[match[2]]
    if match is None and name in _OUTSIDE:
        return None, None
    raise ModelError(
        f"{name} is no weight that pruning knows, so what belongs to it would be lost",
        way_out="leave prune out for this model",
    )


def smaller_state(model: Any, kept: Kept) -> dict[str, Tensor]:
    """The weights that stay, under the names that they have in the smaller model; those that are tied once.

    Raises:
        ModelError: see `refuse_family`.
    """
    config = model.config.get_text_config()
    places = {layer: place for place, layer in enumerate(kept.layers)}
    queries = config.num_attention_heads // config.num_key_value_heads
    width = model.get_decoder().layers[0].self_attn.head_dim
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        layer, cut = _place_of(name)
        if layer is None:
            if name != "lm_head.weight" or tensor.data_ptr() != model.get_input_embeddings().weight.data_ptr():
                state[name] = tensor.detach().clone()
            continue
        if layer not in places:
            continue
        wanted = None
        if cut is not None and cut[0] == "channels" and kept.channels:
            wanted = torch.tensor(kept.channels[layer])
        elif cut is not None and cut[0] != "channels" and kept.groups:
            wanted = _spread(kept.groups[layer], width * (queries if cut[0] == "queries" else 1))
        if cut is not None and wanted is not None:
            tensor = tensor.index_select(cut[1], wanted.to(tensor.device))
        state[_LAYER.sub(rf"model.layers.{places[layer]}.\2", name)] = tensor.detach().clone().contiguous()
    return {name: state[name].cpu() for name in sorted(state)}


def _spread(units: Sequence[int], width: int) -> Tensor:
    """Indices of all values of some units that take `width` each."""
    return (torch.tensor(units)[:, None] * width + torch.arange(width)).flatten()


def smaller_config(model: Any, kept: Kept) -> Any:
    """A config that describes what stays.

    Raises:
        ModelError: it has a list with an entry for every layer that is not known.
    """
    old = model.config
    config = copy.deepcopy(old)
    depth, layers = old.num_hidden_layers, list(kept.layers)
    strange = [
        key
        for key, value in old.to_dict().items()
        if isinstance(value, list | tuple) and len(value) == depth > 1 and key not in (*_LISTS, "architectures")
    ]
    if strange and len(layers) < depth and not _is_of_tokens(strange[0]):
        raise ModelError(
            f"config.{strange[0]} has an entry for each of the {depth} layers, and what becomes of it is not known",
            way_out="leave prune.layers out for this model",
        )
    for key in _LISTS:
        if (value := getattr(old, key, None)) is not None:
            setattr(config, key, [value[layer] for layer in layers])
    if getattr(old, "max_window_layers", None) is not None:  # those below it see everything
        config.max_window_layers = sum(layer < old.max_window_layers for layer in layers)
    config.num_hidden_layers = len(layers)
    if kept.channels:
        config.intermediate_size = len(kept.channels[layers[0]])
    if kept.groups:
        groups = len(kept.groups[layers[0]])
        config.head_dim = model.get_decoder().layers[0].self_attn.head_dim  # no longer hidden size over heads
        config.num_attention_heads = old.num_attention_heads // old.num_key_value_heads * groups
        config.num_key_value_heads = groups
    return config


def _is_of_tokens(key: str) -> bool:
    """Lists of ids may happen to be as long as there are layers."""
    return key.endswith("token_id")


def write_smaller(model: Any, kept: Kept, *, base: Path, out: Path) -> Any:
    """Write what stays as a folder that transformers opens, with the tokenizer of `base`; returns it opened again.

    Args:
        model: the whole model.
        kept: what stays of it.
        base: the folder that it was loaded from.
        out: an existing, private folder.

    Raises:
        ModelError: see `smaller_state` and `smaller_config`.
    """
    config, state = smaller_config(model, kept), smaller_state(model, kept)
    for path in base.iterdir():
        if path.suffix in _TOKENIZER and path.name not in _OF_WEIGHTS:
            shutil.copyfile(path, out / path.name)
    config.save_pretrained(out)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(out)
    with safetensors_disk_errors(out):
        save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    opened = load_base(out)
    if wrong := _unlike(opened, config, state):
        raise ModelError(
            f"{wrong} of the pruned model is not what transformers reads from {out}",
            way_out="leave prune out for this model, and report this",
        )
    return opened


def _unlike(opened: Any, config: Any, state: Mapping[str, Tensor]) -> str:
    """The first setting or weight that was not read as it was written; '' where all were."""
    for key in ("num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads", *_LISTS):
        if getattr(opened.config, key, None) != getattr(config, key, None):
            return f"config.{key}"
    found = dict(opened.state_dict())
    if "lm_head.weight" not in state:  # tied to the embeddings
        found.pop("lm_head.weight", None)
    odd = sorted(set(found) ^ set(state)) or [
        name for name, tensor in state.items() if not torch.equal(found[name].cpu(), tensor)
    ]
    return odd[0] if odd else ""
