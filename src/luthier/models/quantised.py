"""A base whose linear layers are held in four bits while an adapter learns beside them: QLoRA.

Each block of 64 weights is its largest absolute value and 64 of sixteen steps, which for `nf4` are the quantiles of a
normal distribution (Dettmers et al. 2023, arXiv 2305.14314, section 3; the library is bitsandbytes). Products are made
with the weights that the steps stand for, in float32 as anywhere else here: what is learned is the gradient of a model
whose weights are these. Embeddings, norms and the output head stay as they are.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

from luthier.errors import MissingExtra, ModelError
from luthier.models.source import ModelSource, weights_sha256
from luthier.spec.base import Model
from luthier.store.files import write_atomic, write_atomic_dir
from luthier.store.home import home

_VERSION = "1"  # raise when what is written changes
_OF_WEIGHTS = ("config.json", "generation_config.json")  # written anew


def refuse_missing_library(model: Model) -> None:
    """What holds weights in four bits is an extra.

    Raises:
        MissingExtra: the recipe asks for it, and it is not installed.
    """
    if model.load_in_4bit and importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtra("bitsandbytes", extra="quantise", purpose="model.load_in_4bit")


def leave_out_unless_needed(model: Model) -> None:
    """Keep other libraries of this process from importing bitsandbytes where nothing is held in four bits.

    PEFT imports it wherever it is installed, which a process of any other run would pay a second for.
    """
    if not model.load_in_4bit:
        sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]  # as absent, see importlib.import_module


def quantised_folder(source: ModelSource, model: Model) -> Path:
    """Where the quantised base stands, made or not."""
    return home() / "models" / "-".join([weights_sha256(source)[:16], *model.held, f"v{_VERSION}"])


def is_quantised(source: ModelSource, model: Model) -> bool:
    """Whether `quantise_base` has nothing left to do."""
    return (quantised_folder(source, model) / "complete").is_file()


def quantise_base(source: ModelSource, folder: Path, model: Model) -> Path:
    """Folder from which transformers loads the base in four bits, its tokenizer beside it; made once.

    Args:
        source: what `folder` was made from.
        folder: the base as it is, see `luthier.models.base.import_base`.
        model: how it is to be held.

    Raises:
        MissingExtra: see `refuse_missing_library`.
        ModelError: few of its weights would be in four bits.
    """
    refuse_missing_library(model)
    made = quantised_folder(source, model)
    if not is_quantised(source, model):
        with write_atomic_dir(made) as partial:
            for path in folder.iterdir():
                if path.suffix in (".json", ".jinja", ".txt", ".model") and path.name not in _OF_WEIGHTS:
                    shutil.copyfile(path, partial / path.name)
            (partial / "model.safetensors.index.json").unlink(missing_ok=True)
            _write(folder, partial, model)
            write_atomic(partial / "complete", _VERSION + "\n")
    return made


def _write(folder: Path, out: Path, model: Model) -> None:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=model.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=model.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=torch.float32,
    )
    loaded = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        quantization_config=settings,
        device_map={"": "cpu"},
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
    )
    _refuse_mostly_whole(loaded, folder)
    loaded.save_pretrained(out, safe_serialization=True)


def _refuse_mostly_whole(model: Any, folder: Path) -> None:
    """Of a mixture of experts the library holds little: their weights are no linear layers to it.

    Raises:
        ModelError: most weights beside the embeddings are as they were.
    """
    ends = {id(one.weight) for one in (model.get_input_embeddings(), model.get_output_embeddings()) if one is not None}
    four = {
        id(module.weight): module.weight.quant_state.shape.numel()
        for module in model.modules()
        if holds_four_bits(module)
    }
    whole = sum(one.numel() for one in model.parameters() if id(one) not in ends and id(one) not in four)
    if whole > sum(four.values()):
        raise ModelError(
            f"{folder}: model.load_in_4bit would hold {sum(four.values()):,} of {whole + sum(four.values()):,} weights "
            "in four bits: the others stand in no linear layer (experts)",
            way_out="leave model.load_in_4bit out, or choose a base without experts",
        )


def holds_four_bits(module: Any) -> bool:
    """Whether a layer holds its weight so."""
    return hasattr(getattr(module, "weight", None), "quant_state")


def compute_as_trained(model: Any) -> None:
    """Let layers in four bits compute alike whether something learns or not.

    The library would else round what is asked without gradients to bfloat16 on processors that have it.
    """
    for module in model.modules():
        if holds_four_bits(module):
            module.support_avx512bf16_for_cpu = False


def dense(model: Any) -> Any:
    """The same model with the weights that the steps stand for, in float32; unchanged where none is in four bits.

    An adapter is added into these, and the sum is what was trained; added into four bits it would be rounded away.
    """
    if not any(holds_four_bits(module) for module in model.modules()):
        return model
    found = model.dequantize()
    found.is_loaded_in_4bit = False  # transformers leaves it, and PEFT asks
    found.requires_grad_(False)
    return found.eval()
