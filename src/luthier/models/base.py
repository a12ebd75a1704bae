"""Make a clean base folder (config, safetensors, tokenizer, chat template) from any source, once, and load it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import ModelError
from luthier.models.gguf_header import read_header
from luthier.models.source import ModelSource, weights_sha256
from luthier.store.files import write_atomic, write_atomic_dir
from luthier.store.home import home

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_IMPORT_VERSION = "1"  # raise when what import_base writes changes

BYTE_LEVEL_SPLITS = {
    # tokenizer.ggml.pre -> whether every digit is a token of its own (llama.cpp, src/llama-vocab.cpp).
    "smollm": True,
    "gpt-2": False,
}


def import_base(source: ModelSource) -> Path:
    """Folder from which transformers and tokenizers load the base model.

    A folder or hub model is used in place. A GGUF file is dequantised to float32 once and kept under `home()` by its
    hash; the pickle-free folder is complete or absent.

    Raises:
        ModelError: the tokenizer is of a kind whose conversion was never verified, or the folder lacks a tokenizer.
    """
    if source.path.is_dir():
        if not (source.path / "tokenizer.json").is_file():
            raise ModelError(
                f"model {source.name!r} has no tokenizer.json",
                way_out="save its fast tokenizer there with transformers' save_pretrained",
            )
        weights_sha256(source)
        return source.path
    folder = _imported_folder(source)
    if not is_imported(source):
        with write_atomic_dir(folder) as partial:
            _dequantise(source.path, partial)
            write_atomic(partial / "complete", _IMPORT_VERSION + "\n")
    return folder


def is_imported(source: ModelSource) -> bool:
    """Whether `import_base` has nothing left to do."""
    return source.path.is_dir() or (_imported_folder(source) / "complete").is_file()


def _imported_folder(source: ModelSource) -> Path:
    return home() / "models" / f"{weights_sha256(source)[:16]}-v{_IMPORT_VERSION}"


def _dequantise(file: Path, out: Path) -> None:
    digits = _needs_single_digits(file)  # refused before seconds are spent on weights
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": file.name, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
    tokenizer.save_pretrained(out)
    if digits:
        _split_digits(out / "tokenizer.json")
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **where)
    # The loaded model marks itself as quantised and refuses to be saved: build a clean one from config and state.
    facts = {
        key: value
        for key, value in loaded.config.to_dict().items()
        if key not in ("quantization_config", "_name_or_path", "_model_name_or_path")
    }
    config = AutoConfig.for_model(**facts)
    clean = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    clean.load_state_dict(loaded.state_dict(), strict=True)
    clean.generation_config = loaded.generation_config
    clean.save_pretrained(out, safe_serialization=True)


def _needs_single_digits(file: Path) -> bool:
    values = read_header(file).values
    model, pre = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre")
    if model == "llama":  # SentencePiece: the conversion carries its own splitting
        return False
    if model != "gpt2" or pre not in BYTE_LEVEL_SPLITS:
        raise ModelError(
            f"{file}: tokenizer {model!r} with pre-tokenizer {pre!r}: its conversion from GGUF was never verified here",
            way_out=f"use the safetensors folder of this model; verified: {', '.join(BYTE_LEVEL_SPLITS)}",
        )
    return BYTE_LEVEL_SPLITS[pre]


def _split_digits(path: Path) -> None:
    """Add the digit splitting that transformers (5.23) leaves out when it converts a GGUF tokenizer of this kind.

    Without it '40912' is one token here and five in llama.cpp and in the original tokenizer. Remove when transformers'
    GGUF conversion reads `tokenizer.ggml.pre`; tests/real/test_model_base.py compares with llama.cpp.
    """
    tree = json.loads(path.read_text(encoding="utf-8"))
    if tree["pre_tokenizer"]["type"] != "ByteLevel":
        raise ModelError(
            f"{path}: pre-tokenizer {tree['pre_tokenizer']['type']!r}, expected 'ByteLevel'",
            way_out="the installed transformers converts differently; use the safetensors folder",
        )
    tree["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, tree["pre_tokenizer"]],
    }
    write_atomic(path, json.dumps(tree, ensure_ascii=False))


def load_base(folder: Path) -> PreTrainedModel:
    """The base model in float32, frozen, in evaluation mode; what stands there in four bits stays so.

    Raises:
        ModelError: a file of weights is damaged, or rows cannot be packed for this family, see `check_packing`.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    from luthier.models.forward import check_packing
    from luthier.models.quantised import compute_as_trained
    from luthier.models.vocabulary import note_rows

    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            device_map={"": "cpu"},  # weights in four bits would else go to whatever accelerator there is
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
        )
    except SafetensorError as error:
        raise ModelError(
            f"{folder}: the weights are damaged: {error}",
            way_out="remove that folder, it is made anew" if folder.is_relative_to(home()) else "fetch the model again",
        ) from error
    model.requires_grad_(False)
    model.eval()
    compute_as_trained(model)
    note_rows(model, folder)
    check_packing(model)
    return model
