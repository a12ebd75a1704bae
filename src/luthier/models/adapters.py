"""Adapters through PEFT: attach, save, load, merge. What is written opens in plain PEFT."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from luthier.errors import ModelError
from luthier.models import classifier, head_files
from luthier.models.tuners import load_tuner
from luthier.models.wrap import tied_ends
from luthier.spec.adapter_section import Adapter

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def attach(model: PreTrainedModel, adapter: Adapter, *, base_name: str, seed: int) -> Any:
    """Let what the recipe's section says learn: an adapter beside the frozen base, or the base's own weights.

    Args:
        model: the base; changed in place.
        adapter: a resolved section.
        base_name: written into adapter_config.json.
        seed: of what is drawn at the start.

    Raises:
        ModelError: a target module or layer does not exist in the base.
    """
    return load_tuner(adapter.type).attach(model, adapter, base_name=base_name, seed=seed)


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The base with the adapter saved in `folder`, in evaluation mode. Every tensor is accounted for.

    Raises:
        ModelError: the folder is no adapter, or its tensors do not fit the base.
    """
    from peft import PeftConfig, PeftModel, TaskType
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from luthier.models.new_rows import fuse_rows

    weights = folder / "adapter_model.safetensors"
    if not weights.is_file() or not (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder} holds no PEFT adapter",
            way_out="give a folder with adapter_config.json and adapter_model.safetensors",
        )
    way_out = "use the base model that the adapter was trained on, and both of its files"
    try:
        tensors, heads = load_file(weights), head_files.read_heads(folder)
        found, config = set(tensors) | set(map(classifier.stored_as, heads)), PeftConfig.from_pretrained(str(folder))
        classifier.take_up_heads(model, heads)
        if classifier.STORED in found:  # beside the adapter, not within it, as it was trained
            classifier.put_head(model, len(tensors[classifier.STORED])).requires_grad_(False)
            whole = [name for name in config.modules_to_save or () if name != classifier.NAME]
            config.task_type, config.modules_to_save = TaskType.CAUSAL_LM, whole or None
            if hasattr(config, "ensure_weight_tying"):
                config.ensure_weight_tying = tied_ends(model, whole)
        with warnings.catch_warnings():  # what is missing is an error below, not a warning
            warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)
            tuned = PeftModel.from_pretrained(model, str(folder), is_trainable=False, config=config)
    except (RuntimeError, ValueError, TypeError, LookupError, SafetensorError) as error:  # as PEFT and torch say it
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"the adapter in {folder} does not fit the base: {first}", way_out=way_out) from error
    expected = set(adapter_state(tuned))
    if expected != found:
        odd = sorted(expected ^ found)[:3]
        raise ModelError(
            f"{weights}: {len(expected ^ found)} tensors do not fit the base, e.g. {', '.join(odd)}", way_out=way_out
        )
    fuse_rows(tuned)
    tuned.eval()
    return tuned


def adapter_state(model: PeftModel) -> dict[str, torch.Tensor]:
    """The adapter's tensors, and those of classification heads, under PEFT's names of tensors, in sorted order."""
    from peft import get_peft_model_state_dict

    state: dict[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    state, _ = head_files.apart(state)  # a task may be called what PEFT looks for
    state |= {classifier.stored_as(task): head.weight for task, head in classifier.heads_of(model).items()}
    return {name: state[name] for name in sorted(state)}


def bare(model: Any) -> Any:
    """The transformers module to call: adapters live inside its layers, PEFT's wrapper only adds bookkeeping."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextmanager
def safetensors_disk_errors(path: Path) -> Iterator[None]:
    """A full disk met by safetensors' writer, which has an error class of its own, as the OSError that it is."""
    try:
        yield
    except SafetensorError as error:
        for code in (errno.ENOSPC, errno.EDQUOT):
            if f"(os error {code})" in str(error):
                raise OSError(code, os.strerror(code), str(path)) from error
        raise


def save_adapter(model: PeftModel, folder: Path, state: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write adapter_config.json and adapter_model.safetensors into `folder` (an existing, private folder), and the
    heads of several tasks beside them.

    `state` are the adapter's tensors where the model itself holds them only in part.
    """
    from safetensors.torch import save_file

    from luthier.models.converted import for_plain_base

    whole, adapted = for_plain_base(model, adapter_state(model) if state is None else state)
    tensors, heads = head_files.apart(whole)
    held = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    with safetensors_disk_errors(folder):
        save_file(held, folder / head_files.TENSORS, metadata={"format": "pt"})
        head_files.write_heads(folder, heads)
    config: dict[str, Any] = {**adapted.to_dict(), "inference_mode": True}
    with_head = classifier.STORED in tensors
    head_files.write_config(folder, head_files.as_sequence_classification(config) if with_head else config)


def merge(model: PeftModel) -> PreTrainedModel:
    """The base with the adapter added into its weights, e.g. W + (alpha / r) B A. The adapter is gone afterwards."""
    merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    merged.eval()
    return merged
