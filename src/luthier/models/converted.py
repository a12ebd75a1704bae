"""LoRA that began as a part of the base's weights, as a LoRA for the unchanged base.

W = W' + s B0 A0 is taken apart at the start, and B A is learned beside W'. For W the change is

    s B A - s B0 A0 = s [B, -B0] [A; A0],

a LoRA of twice the rank and the same scale (Meng et al. 2024, arXiv 2404.02948, appendix C; PEFT's
`subtract_mutated_init`). What the base does without the adapter is then what it did before.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

if TYPE_CHECKING:
    from peft import PeftModel

_starts: WeakKeyDictionary[Any, dict[str, Tensor]] = WeakKeyDictionary()


def remember_start(model: PeftModel) -> None:
    """Keep A0 and B0 of a fresh adapter; they follow from the base alone, so a resumed run finds the same."""
    from luthier.models.adapters import adapter_state

    _starts[model] = {name: t.detach().clone() for name, t in adapter_state(model).items() if _factor(name)}


def began_in_base(model: Any) -> bool:
    """Whether the weights under the adapter are not the base's own, since its start was taken out of them."""
    return model in _starts


def for_plain_base(model: PeftModel, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
    """Tensors and config of the adapter as they are to be saved; unchanged where it began beside the whole base."""
    config, start = model.peft_config["default"], _starts.get(model)
    if start is None:
        return dict(state), config
    config = copy.deepcopy(config)
    config.lora_alpha *= math.sqrt(2) if config.use_rslora else 2
    config.r *= 2
    config.init_lora_weights = True
    made = dict(state)
    for name, first in start.items():
        before, held = first.to(state[name]), state[name]
        made[name] = torch.cat([held, before], 0) if _factor(name) == "A" else torch.cat([held, -before], 1)
    return made, config


def _factor(name: str) -> str:
    return next((letter for letter in "AB" if f"lora_{letter}." in name), "")
