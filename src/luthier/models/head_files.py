"""Classification heads of several tasks on disk.

They stand in one file beside the adapter or the weights that they share, which then open as a plain causal language
model, in tools too that refuse tensors they do not know. Of each head the adapter of a sequence classification can be
made, as of a head that was trained alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.models import classifier
from luthier.store.files import write_atomic
from luthier.store.runs import HEADS

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
"""PEFT's files of an adapter."""

_END = ".weight"


def apart(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a training leaves, without the heads of several tasks; and those, task -> weight [C, hidden]."""
    heads = {task: tensor for name, tensor in state.items() if (task := classifier.stored_head(name)) is not None}
    return {name: tensor for name, tensor in state.items() if classifier.stored_head(name) is None}, heads


def write_heads(folder: Path, heads: Mapping[str, Tensor]) -> None:
    """Write them into an existing, private folder; nothing where there are none."""
    if heads:
        held = {f"{task}{_END}": heads[task].detach().cpu().contiguous() for task in sorted(heads)}
        save_file(held, folder / HEADS, metadata={"format": "pt"})


def read_heads(folder: Path) -> dict[str, Tensor]:
    """Task -> weight [C, hidden], of the tasks whose heads stand in a folder.

    Raises:
        SafetensorError: the file is damaged.
    """
    path = folder / HEADS
    return {name.removesuffix(_END): tensor for name, tensor in load_file(path).items()} if path.is_file() else {}


def write_head_adapter(tuned: Path, task: str, out: Path) -> None:
    """From the adapter and the heads in `tuned` the adapter of one task's sequence classification, into `out`."""
    tensors = {**load_file(tuned / TENSORS), classifier.STORED: read_heads(tuned)[task]}
    save_file({name: tensors[name] for name in sorted(tensors)}, out / TENSORS, metadata={"format": "pt"})
    write_config(out, as_sequence_classification(json.loads((tuned / CONFIG).read_text(encoding="utf-8"))))


def as_sequence_classification(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of an adapter whose head learns whole beside it."""
    made = {**config, "task_type": "SEQ_CLS", "modules_to_save": [*(config["modules_to_save"] or ()), classifier.NAME]}
    if "ensure_weight_tying" in made:  # there the output head is gone, to which the embeddings may be tied here
        made["ensure_weight_tying"] = False
    return made


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """PEFT's config of an adapter, in one order."""
    readable = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    write_atomic(folder / CONFIG, json.dumps(readable, indent=2, sort_keys=True, default=str) + "\n")
