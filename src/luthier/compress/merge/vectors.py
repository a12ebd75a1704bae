"""Task vectors: what a run did to each weight of its base, read from what it left, and merged weight by weight."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from luthier.compress.merge.arithmetic import Mix, combine
from luthier.compress.merge.lowrank import LowRank, cut, of_dense, stacked
from luthier.errors import ModelError
from luthier.models.adapters import merge as merge_adapter
from luthier.models.base import load_base
from luthier.models.classifier import NAME as HEAD
from luthier.models.classifier import STORED
from luthier.models.tuned import is_adapted, load_tuned
from luthier.spec.merge import why_no_rank

Change = Tensor | LowRank
TaskVector = Mapping[str, Change]
"""Name of a parameter of the transformers module -> what is added to it; left out where nothing is.

A classification head is a parameter that the base has not, and starts at zero: its change is itself.
"""

HEAD_WEIGHT = f"{HEAD}.weight"
PREFIX = "base_model.model."
_FACTOR_A, _FACTOR_B = ".lora_A.weight", ".lora_B.weight"


def read_low_rank(folder: Path) -> dict[str, Change]:
    """The task vector of a plain LoRA adapter, without its base.

    Raises:
        ModelError: it is not a plain LoRA, its files are damaged, or a value is not finite.
    """
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if why := why_no_rank(config):
        raise ModelError(f"{folder} is no change of low rank: {why}", way_out="set merge.into: weights")
    rank, alpha = int(config["r"]), float(config["lora_alpha"])
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    tensors, found = load_file(folder / "adapter_model.safetensors"), dict[str, Change]()
    turned = bool(config.get("fan_in_fan_out"))
    for name, tensor in tensors.items():
        _refuse_non_finite(folder, name, tensor)
        if name == STORED:
            found[HEAD_WEIGHT] = tensor.float()
        elif name.endswith(_FACTOR_A):
            module = name.removesuffix(_FACTOR_A)
            other = tensors.get(module + _FACTOR_B)
            if other is None:
                raise _strange(folder, name)
            found[f"{module.removeprefix(PREFIX)}.weight"] = LowRank(tensor.float(), scale * other.float(), turned)
        elif not name.endswith(_FACTOR_B):
            raise _strange(folder, name)
    return found


def _refuse_non_finite(folder: Path, name: str, tensor: Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise ModelError(
            f"{folder}: the tensor {name} holds values that are no numbers, and a merge would spread them",
            way_out="leave that run out of merge.runs, or train it again",
        )


def _strange(folder: Path, name: str) -> ModelError:
    return ModelError(
        f"{folder / 'adapter_model.safetensors'}: the tensor {name} has no place in a plain LoRA",
        way_out="train that run again",
    )


def read_dense(base: Path, folder: Path, before: Mapping[str, Tensor]) -> dict[str, Change]:
    """The task vector of anything that a training leaves: its weights, the adapter merged in, less those of the base.

    Args:
        base: folder of the base.
        folder: with what was learned.
        before: the base's parameters.

    Raises:
        ModelError: a value is not finite.
    """
    model = load_tuned(base, folder)
    tuned = merge_adapter(model) if is_adapted(model) else model
    found: dict[str, Change] = {}
    for name, parameter in tuned.named_parameters():
        value = parameter.detach()
        _refuse_non_finite(folder, name, value)
        if name not in before:
            found[name] = value.clone()
        elif not torch.equal(value, before[name]):
            found[name] = value - before[name]
    return found


def parameters_of(base: Path) -> dict[str, Tensor]:
    """Those of the base; weights that are tied stand there once."""
    return {name: parameter.detach() for name, parameter in load_base(base).named_parameters()}


@dataclass(frozen=True)
class Merged:
    """A task vector, and how much of the exact one it is."""

    vector: dict[str, Change]
    kept: float
    """Share of the sum of squares of the exact merge that the form holds: 1 where nothing is cut."""


def merge_dense(vectors: Sequence[TaskVector], mix: Mix, tick: Callable[[int, int], None]) -> Merged:
    """The exact merge, weight by weight."""
    names = _names(vectors)
    merged: dict[str, Change] = {}
    for done, name in enumerate(names):
        tick(done, len(names))
        merged[name] = combine([_dense(vector.get(name)) for vector in vectors], mix, name=name)
    return Merged(merged, 1.0)


def merge_low_rank(vectors: Sequence[TaskVector], mix: Mix, *, rank: int, tick: Callable[[int, int], None]) -> Merged:
    """The merge of plain LoRAs as one of this rank: exact for sums up to their ranks together, else the nearest.

    Raises:
        ModelError: runs stored one weight in two ways.
    """
    names, merged = _names(vectors), dict[str, Change]()
    whole, held = 0.0, 0.0
    for done, name in enumerate(names):
        tick(done, len(names))
        found = [vector.get(name) for vector in vectors]
        low = [change for change in found if isinstance(change, LowRank)]
        if not low:  # the head, which is whole
            merged[name] = combine([_dense(change) for change in found], mix, name=name)
            continue
        if len({change.turned for change in low}) > 1:
            raise ModelError(f"{name} stands turned in one of the runs", way_out="train them on the same base")
        if mix.method == "linear":
            weights = [weight for change, weight in zip(found, mix.weights, strict=True) if change is not None]
            exact = stacked(low, weights)
            change = cut(exact, rank)
            squares = exact.squares()
        else:
            matrix = combine([_dense(change) for change in found], mix, name=name)
            squares = float(matrix.double().square().sum())
            change = of_dense(matrix, rank, turned=low[0].turned)
        merged[name] = change
        whole, held = whole + squares, held + change.squares()
    return Merged(merged, min(1.0, max(0.0, held / whole)) if whole else 1.0)


def mean_of(vectors: Sequence[TaskVector]) -> dict[str, Change]:
    """Their mean, kept in factors where all are."""
    mix = Mix("linear", (1.0 / len(vectors),) * len(vectors))
    found: dict[str, Change] = {}
    for name in _names(vectors):
        changes = [vector.get(name) for vector in vectors]
        low = [change for change in changes if isinstance(change, LowRank)]
        if len(low) == sum(change is not None for change in changes):
            found[name] = stacked(low, [1.0 / len(vectors)] * len(low))
        else:
            found[name] = combine([_dense(change) for change in changes], mix, name=name)
    return found


def _names(vectors: Sequence[TaskVector]) -> list[str]:
    return sorted({name for vector in vectors for name in vector})


def _dense(change: Change | None) -> Tensor | None:
    return change.dense() if isinstance(change, LowRank) else change


def add_to(model: Any, before: Mapping[str, Tensor], vector: TaskVector) -> None:
    """Set the model's weights to those of the base plus a task vector.

    Raises:
        ModelError: the model has no such weight.
    """
    parameters = dict(model.named_parameters())
    if odd := sorted({*vector} - {*parameters}):
        raise ModelError(
            f"{type(model).__name__} has no weight {odd[0]}, which a run has changed",
            way_out="merge runs that were trained on this base",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            change = _dense(vector.get(name))
            parameter.copy_(before[name] if name in before else torch.zeros_like(parameter))
            if change is not None:
                parameter.add_(change.to(parameter))
