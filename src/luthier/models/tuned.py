"""What a training leaves, an adapter or whole weights: saved, and opened again, wherever a run's model is asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from luthier.models.adapters import adapter_state, bare, load_adapter, safetensors_disk_errors, save_adapter
from luthier.models.base import load_base
from luthier.models.classifier import heads_of, take_up_head, take_up_heads, unwarned
from luthier.models.converted import began_in_base
from luthier.models.head_files import apart, read_heads, write_heads
from luthier.models.quantised import dense
from luthier.models.vocabulary import new_rows
from luthier.store.runs import ADAPTER, WEIGHTS


def is_adapted(model: Any) -> bool:
    """Whether an adapter learns beside the base, rather than the base's own weights."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def kind_of(model: Any) -> str:
    """Name of the folder below train/ that holds what `model` has learned."""
    return ADAPTER if is_adapted(model) else WEIGHTS


def tuned_state(model: Any) -> dict[str, Tensor]:
    """All tensors that are to be saved, under the names of their file."""
    return adapter_state(model) if is_adapted(model) else dict(model.state_dict())


def save_tuned(model: Any, folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write what was learned into an existing, private folder; it opens in plain PEFT, or in plain transformers.

    Whole weights with a head open there as a causal language model and as a sequence classification; the heads of
    several tasks stand beside. `state` are the tensors, each whole, where the model itself holds them only in part.
    """
    if is_adapted(model):
        save_adapter(model, folder, state)
        return
    if (head := heads_of(model).get("")) is not None:
        model.config.num_labels = head.out_features
    tensors, heads = apart(state)
    with safetensors_disk_errors(folder):  # one file, so that one hash names the weights
        model.save_pretrained(folder, state_dict=tensors, safe_serialization=True, max_shard_size="1000TB")
        write_heads(folder, heads)


def load_tuned(base: Path, folder: Path, *, as_dense: bool = False) -> Any:
    """The trained model in evaluation mode: the base with the adapter of `folder`, or the weights that stand there.

    A base in four bits is loaded so, or with `as_dense` with the weights that these stand for.

    Raises:
        ModelError: it is neither, or does not fit the base.
    """
    if (folder / "config.json").is_file():
        with unwarned():  # of the head, which no causal language model has
            model = load_base(folder)
        take_up_head(model, folder / "model.safetensors")
        take_up_heads(model, read_heads(folder))
        return model
    loaded = load_base(base)
    return load_adapter(dense(loaded) if as_dense else loaded, folder)


def can_switch_off(model: Any) -> bool:
    """Whether the base is still there under what was learned: not where its own weights or biases learned, nor where
    the adapter's start is out of them, as it is until it has been saved and opened again, nor where tokens are new.
    """
    if not is_adapted(model) or began_in_base(model) or new_rows(bare(model)):
        return False
    return bool(getattr(model.peft_config["default"], "bias", "none") == "none")
