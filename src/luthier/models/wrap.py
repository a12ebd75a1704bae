"""What all adapters that PEFT computes have in common: which modules, which layers, and the seed of their start."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from luthier.errors import ModelError
from luthier.models.quantised import holds_four_bits
from luthier.spec.adapter_section import PeftAdapter

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel


def common(model: PreTrainedModel, adapter: PeftAdapter) -> dict[str, Any]:
    """Settings of every PEFT config, from a resolved section.

    Raises:
        ModelError: modules_to_save names a module that the base does not have, or that it holds in four bits.
    """
    from peft import TaskType

    targets, layers = adapter.target_modules, adapter.layers_to_transform
    if layers is not None and targets == "all-linear":
        targets = linears_of_layers(model)  # PEFT chooses layers among names only
    _refuse_odd(model, adapter.whole_modules)
    settings: dict[str, Any] = {
        "task_type": TaskType.CAUSAL_LM,
        "target_modules": targets if isinstance(targets, str) else list(targets or ()),
        "modules_to_save": list(adapter.whole_modules) or None,
    }
    return settings if layers is None else {**settings, "layers_to_transform": list(layers)}


def linears_of_layers(model: PreTrainedModel) -> tuple[str, ...]:
    """Last names of the linear modules within numbered layers, as PEFT's 'all-linear' means them: without the head."""
    from transformers.pytorch_utils import Conv1D

    kinds = (torch.nn.Linear, Conv1D)
    found = {name for name, module in model.named_modules() if isinstance(module, kinds)}
    return tuple(sorted({name.rpartition(".")[2] for name in found if re.search(r"\.\d+\.", name)}))


def tied_ends(model: PreTrainedModel, names: Sequence[str]) -> bool:
    """Whether one of `names` is an end of the model, embeddings or head, whose weight the other end shares."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    named = {end for name, module in model.named_modules() if (end := _end(name, names)) and module in ends}
    return bool(named) and len({id(end.weight) for end in ends if end is not None}) == 1


def wrap(model: PreTrainedModel, config: PeftConfig, adapter: PeftAdapter, *, base_name: str, seed: int) -> PeftModel:
    """The base with a fresh adapter.

    Raises:
        ModelError: a target module does not exist in the base, or the type cannot be computed with it.
    """
    from peft import get_peft_model

    if adapter.type != "lora" and tied_ends(model, adapter.whole_modules):
        raise ModelError(
            f"adapter.modules_to_save {list(adapter.whole_modules)}: embeddings and output head of this base are one "
            f"weight, which PEFT keeps as one with adapter.type lora only, not with {adapter.type}",
            way_out="leave embed_tokens and lm_head out, or take adapter.type lora or full",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            tuned: PeftModel = get_peft_model(model, config)
        except ValueError as error:
            raise ModelError(
                f"adapter.target_modules {adapter.target_modules!r}: {error}",
                way_out="use 'all-linear' or names of modules of this base",
            ) from error
    tuned.peft_config["default"].base_model_name_or_path = base_name
    return tuned


def _end(name: str, ends: Sequence[str]) -> str | None:
    return next((end for end in ends if name == end or name.endswith(f".{end}")), None)


def _refuse_odd(model: PreTrainedModel, names: Sequence[str]) -> None:
    modules = [name for name, _ in model.named_modules()]
    for wanted in names:
        if not any(_end(name, [wanted]) for name in modules):
            ends = sorted({name.rpartition(".")[2] for name in modules} - {""})
            known = [end for end in ends if not end.isdecimal()]
            raise ModelError(
                f"adapter.modules_to_save: {wanted!r} is no module of {type(model).__name__}",
                way_out=f"its modules: {', '.join(known)}",
            )
    for name, module in model.named_modules():
        within = [wanted for wanted in names if f".{wanted}." in f".{name}."]
        if within and holds_four_bits(module):
            raise ModelError(
                f"adapter.modules_to_save: {within[0]!r} is held in four bits (model.load_in_4bit), and cannot learn",
                way_out="leave it out: the adapter stands beside it; norms, embed_tokens and lm_head can be named",
            )
