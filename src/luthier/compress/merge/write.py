"""Write a merged task vector: as a PEFT adapter that opens in plain PEFT, or as a folder that transformers opens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from luthier.compress.merge.lowrank import LowRank, padded
from luthier.compress.merge.vectors import HEAD_WEIGHT, PREFIX, TaskVector, add_to
from luthier.models import head_files
from luthier.models.adapters import safetensors_disk_errors
from luthier.models.base import load_base
from luthier.models.classifier import STORED, put_head
from luthier.models.tuned import save_tuned
from luthier.store.files import write_atomic_dir


def write_adapter(vector: TaskVector, folder: Path, *, rank: int, configs: Sequence[Mapping[str, Any]]) -> int:
    """Write the adapter of a vector whose changes are of low rank, but for a head.

    Its scale is 1: alpha is r, whatever scaling the runs had.

    Args:
        vector: what is added.
        folder: replaced in one step.
        rank: of all layers; those that have less get zeros.
        configs: adapter_config.json of the runs.

    Returns:
        Number of its parameters.
    """
    tensors: dict[str, Tensor] = {}
    for name, change in vector.items():
        if not isinstance(change, LowRank):
            assert name == HEAD_WEIGHT, f"{name} is not of low rank"
            tensors[STORED] = change
            continue
        module, whole = PREFIX + name.removesuffix(".weight"), padded(change, rank)
        tensors |= {f"{module}.lora_A.weight": whole.a, f"{module}.lora_B.weight": whole.b}
    config = {
        **configs[0],
        **_targets(configs, vector),
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
        "task_type": "CAUSAL_LM",
    }
    with write_atomic_dir(folder) as fresh:
        with safetensors_disk_errors(fresh):
            held = {name: tensors[name].contiguous() for name in sorted(tensors)}
            save_file(held, fresh / head_files.TENSORS, metadata={"format": "pt"})
        with_head = HEAD_WEIGHT in vector
        head_files.write_config(fresh, head_files.as_sequence_classification(config) if with_head else config)
    return sum(tensor.numel() for tensor in tensors.values())


def _targets(configs: Sequence[Mapping[str, Any]], vector: TaskVector) -> dict[str, Any]:
    """Which modules are adapted: as the runs say where all say the same, else each by its whole name."""
    said = [(_plain(one.get("target_modules")), _plain(one.get("layers_to_transform"))) for one in configs]
    if all(one == said[0] for one in said):
        return {}
    names = [name.removesuffix(".weight") for name, change in vector.items() if isinstance(change, LowRank)]
    return {"target_modules": sorted(names), "layers_to_transform": None, "layers_pattern": None}


def _plain(value: Any) -> Any:
    return sorted(value, key=str) if isinstance(value, list) else value


def write_weights(vector: TaskVector, base: Path, before: Mapping[str, Tensor], folder: Path) -> int:
    """Write the base's weights with a vector added; returns the number of weights that it changes."""
    model: Any = load_base(base)
    if HEAD_WEIGHT in vector:
        head = vector[HEAD_WEIGHT]
        assert isinstance(head, Tensor)
        put_head(model, len(head)).requires_grad_(False)
    add_to(model, before, vector)
    with write_atomic_dir(folder) as fresh:
        save_tuned(model, fresh, dict(model.state_dict()))
    parameters = dict(model.named_parameters())
    return sum(parameters[name].numel() for name in vector)
