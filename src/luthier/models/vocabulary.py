"""A base whose vocabulary has grown: rows of its embeddings and of its output head for tokens that it did not have.

A new row is the mean of the rows of the base's pieces of that word (Hewitt 2021, "Initializing new word embeddings for
pretrained language models"; Gee et al. 2022, Fast Vocabulary Transfer, EMNLP industry track, equation 1). All other
rows, and all other weights, keep their bits. Made once, kept beside other bases under `home()`; everything that asks or
trains sees a base with another tokenizer.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from luthier.errors import ModelError
from luthier.models.source import ModelSource, weights_sha256
from luthier.store.files import sha256_file, write_atomic, write_atomic_dir
from luthier.store.home import home

_VERSION = "1"  # raise when what is written changes
ROWS = "new_tokens.json"
"""In the folder of such a base: the first id that is new, and how many there are."""

_rows: WeakKeyDictionary[Any, range] = WeakKeyDictionary()


def grown_folder(source: ModelSource, tokenizer: Path) -> Path:
    """Where the base with this tokenizer stands, made or not; `tokenizer` is the folder of a tokenizer.json."""
    return (
        home()
        / "models"
        / f"{weights_sha256(source)[:16]}-{sha256_file(tokenizer / 'tokenizer.json')[:16]}-v{_VERSION}"
    )


def is_grown(source: ModelSource, tokenizer: Path) -> bool:
    """Whether `grow_base` has nothing left to do."""
    return (grown_folder(source, tokenizer) / "complete").is_file()


def grow_base(source: ModelSource, folder: Path, tokenizer: Path, pieces: Mapping[int, Sequence[int]]) -> Path:
    """Folder from which transformers loads the base with its new tokens; made once.

    Args:
        source: what `folder` was made from.
        folder: the base as it is, see `luthier.models.base.import_base`.
        tokenizer: folder of the tokenizer with the new tokens.
        pieces: new id -> the base's ids in its place; ids follow on one another.

    Raises:
        ModelError: its output head has a bias, for which there are no rows in PEFT's adapters.
    """
    made = grown_folder(source, tokenizer)
    if not is_grown(source, tokenizer):
        with write_atomic_dir(made) as partial:
            _write(folder, partial, pieces)
            for path in tokenizer.iterdir():
                shutil.copyfile(path, partial / path.name)
            write_atomic(partial / ROWS, json.dumps({"first": min(pieces), "count": len(pieces)}))
            write_atomic(partial / "complete", _VERSION + "\n")
    return made


def _write(folder: Path, out: Path, pieces: Mapping[int, Sequence[int]]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        device_map={"": "cpu"},
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
    )
    grow_rows(model, pieces)
    model.save_pretrained(out, safe_serialization=True)


def grow_rows(model: Any, pieces: Mapping[int, Sequence[int]]) -> None:
    """Give a loaded model the rows; changed in place.

    A base may have more rows than its tokenizer has tokens: the new ones then stand in rows that were never used.

    Raises:
        ModelError: see `grow_base`.
    """
    import torch

    head = model.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        raise ModelError(
            f"{type(model).__name__} has {'no output head' if head is None else 'a bias in its output head'}: its "
            "vocabulary cannot grow here",
            way_out="leave model.new_tokens out, or choose another base (Llama, Qwen, Mistral, Gemma)",
        )
    have = model.get_input_embeddings().weight.shape[0]
    if max(pieces) >= have:
        model.resize_token_embeddings(max(pieces) + 1, mean_resizing=False)
    ends = {id(end.weight): end.weight for end in (model.get_input_embeddings(), model.get_output_embeddings())}
    with torch.no_grad():
        for weight in ends.values():
            for number, old in pieces.items():
                weight[number] = weight[list(old)].mean(dim=0)


def note_rows(model: Any, folder: Path) -> None:
    """Remember which rows of a model that was loaded from `folder` are new."""
    if (folder / ROWS).is_file():
        said = json.loads((folder / ROWS).read_text(encoding="utf-8"))
        _rows[model] = range(said["first"], said["first"] + said["count"])


def new_rows(model: Any) -> range:
    """Ids of the tokens that were added to a base; empty where there are none."""
    return _rows.get(model, range(0))


def learning_rows(model: Any) -> dict[str, Any]:
    """Of a LoraConfig: that the new rows learn, at both ends of the model; nothing where there are none."""
    rows = list(new_rows(model))
    if not rows:
        return {}
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    names = [name for name, module in model.named_modules() if any(module is end for end in ends)]
    if ends[0].weight is ends[1].weight:  # then PEFT ties the rows as well
        names = names[:1]
    return {"trainable_token_indices": {name.rpartition(".")[2]: rows for name in names}}
