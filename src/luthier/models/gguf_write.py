"""Write a language model as one GGUF file: weights, shape, tokenizer and chat template.

Sources: the GGUF specification (ggml, docs/gguf.md); the names of tensors are those of the package `gguf`; the order of
rows of queries and keys and the frequencies of Llama 3 are those of llama.cpp's convert_hf_to_gguf.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gguf import (
    GGML_QUANT_SIZES,
    GGML_QUANT_VERSION,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    get_tensor_name_map,
    quantize,
)
from numpy.typing import NDArray

from luthier.errors import ModelError
from luthier.models.gguf_tokenizer import GGUFTokenizer

FloatType = Literal["f32", "f16", "q8_0"]
"""Of weight matrices; vectors (norms, biases) are always float32, as llama.cpp computes with them."""

BLOCK = 32
"""Weights of a row that share a scale in q8_0."""


@dataclass(frozen=True)
class Family:
    """A model type of transformers that llama.cpp computes alike."""

    architecture: str
    """In GGUF's words."""
    neighbors: bool = False
    """Whether llama.cpp rotates the neighbors (2i, 2i + 1) of a head; transformers rotates the halves (i, i + d/2)."""


FAMILIES = {"llama": Family("llama", neighbors=True), "qwen2": Family("qwen2"), "qwen3": Family("qwen3")}
"""model_type of transformers -> what it is in GGUF; `luthier.spec.plugins.LLAMA_CPP_MODELS`."""


def refuse_unfit_config(config: Mapping[str, Any], where: str) -> None:
    """Raises ModelError where llama.cpp would compute another model than the config says; see `FAMILIES`."""
    kind = config.get("model_type")
    rope = rope_of(config)
    problem = ""
    if kind not in FAMILIES:
        problem = f"its model_type is {kind!r}, written are {', '.join(FAMILIES)}"
    elif config.get("hidden_act", "silu") != "silu":
        problem = f"its hidden_act is {config['hidden_act']!r}, expected 'silu'"
    elif config.get("use_sliding_window"):
        problem = "its attention has a sliding window"
    elif rope["rope_type"] not in ("default", "llama3"):
        problem = f"its rope_type is {rope['rope_type']!r}, expected 'default' or 'llama3'"
    elif rope["rope_type"] == "llama3" and kind != "llama":
        problem = f"it is a {kind} with the rope_type of Llama 3"
    elif rope.get("partial_rotary_factor", 1.0) != 1.0:
        problem = f"its partial_rotary_factor is {rope['partial_rotary_factor']}"
    if problem:
        raise ModelError(f"{where} cannot be written as GGUF: {problem}", way_out="leave gguf out of export")


def rope_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the rotary embedding, in the words of transformers 5; older configs have two keys for it."""
    old = {"rope_theta": config.get("rope_theta", 10000.0), **(config.get("rope_scaling") or {})}
    found = {**old, **(config.get("rope_parameters") or {})}
    return {**found, "rope_type": found.get("rope_type") or found.get("type") or "default"}


def write_gguf(
    path: Path,
    model: Any,
    *,
    tokenizer: GGUFTokenizer,
    chat_template: str,
    float_type: FloatType,
    end_of_turn_id: int | None = None,
    adds_bos: bool = False,
) -> None:
    """Write a causal language model of transformers to `path`.

    Args:
        path: the new file.
        model: with weights in float32; heads are no part of it.
        tokenizer: of the model.
        chat_template: Jinja source; '' for none.
        float_type: of weight matrices.
        end_of_turn_id: the token that ends an answer; None where that is the end of sequence.
        adds_bos: whether llama.cpp puts the BOS token before what it is asked.

    Raises:
        ModelError: the model cannot be written so, see `refuse_unfit_config`; a weight is too large for float16.
    """
    config = model.config.to_dict()
    refuse_unfit_config(config, "this model")
    writer = GGUFWriter(path, FAMILIES[config["model_type"]].architecture)
    _add_shape(writer, config, float_type)
    _add_tokenizer(writer, tokenizer, chat_template, end_of_turn_id, adds_bos=adds_bos)
    for name, value in _tensors(model, config):
        kind = _type_of(name, value, float_type)
        writer.add_tensor_info(name, value.shape, value.dtype, _num_bytes(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, value in _tensors(model, config):  # one at a time, so that no second copy of the model is held
        writer.write_tensor_data(_stored(value, _type_of(name, value, float_type)))
    writer.close()


def _add_shape(writer: Any, config: Mapping[str, Any], float_type: FloatType) -> None:
    kinds = {"f32": LlamaFileType.ALL_F32, "f16": LlamaFileType.MOSTLY_F16, "q8_0": LlamaFileType.MOSTLY_Q8_0}
    heads, head_dim = config["num_attention_heads"], _head_dim(config)
    writer.add_type("model")
    writer.add_file_type(kinds[float_type])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(rope_of(config)["rope_theta"]))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(
    writer: Any, tokenizer: GGUFTokenizer, chat_template: str, end_of_turn_id: int | None, *, adds_bos: bool
) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(list(tokenizer.tokens))
    writer.add_token_types(list(tokenizer.types))
    writer.add_token_merges(list(tokenizer.merges))
    add = {
        "bos": writer.add_bos_token_id, "eos": writer.add_eos_token_id,
        "unk": writer.add_unk_token_id, "pad": writer.add_pad_token_id,
    }  # fmt: skip
    for name, number in tokenizer.special.items():
        add[name](number)
    if end_of_turn_id is not None:
        writer.add_eot_token_id(end_of_turn_id)
    writer.add_add_space_prefix(False)
    writer.add_add_bos_token(adds_bos)
    writer.add_add_eos_token(False)
    if chat_template:
        writer.add_chat_template(chat_template)


def _head_dim(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _tensors(model: Any, config: Mapping[str, Any]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """GGUF's name and value of every tensor, one at a time.

    Raises:
        ModelError: a tensor has no name there.
    """
    family = FAMILIES[config["model_type"]]
    architecture = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == family.architecture)
    names = get_tensor_name_map(architecture, config["num_hidden_layers"])
    heads = {"attn_q": config["num_attention_heads"]}
    heads["attn_k"] = config.get("num_key_value_heads") or heads["attn_q"]
    if rope_of(config)["rope_type"] == "llama3":
        yield "rope_freqs.weight", _llama3_factors(rope_of(config), _head_dim(config))
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for name, value in model.state_dict().items():
        module, _, part = name.rpartition(".")
        if tied and module == "lm_head":
            continue
        found = names.get_name(module)
        if found is None:
            raise ModelError(
                f"the tensor {name!r} has no name in GGUF's {family.architecture}", way_out="leave gguf out of export"
            )
        array: NDArray[np.float32] = value.detach().float().cpu().numpy()
        count = heads.get(found.rpartition(".")[2], 0) if family.neighbors else 0
        yield f"{found}.{part}", neighbors(array, count) if count else array


def neighbors(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of queries or keys, [heads x d, ...], from the order of halves to that of neighbors within each head."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))


def _llama3_factors(rope: Mapping[str, Any], head_dim: int) -> NDArray[np.float32]:
    """What each frequency is divided by, [head_dim / 2] (transformers, `_compute_llama3_parameters`)."""
    length, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for place in range(0, head_dim, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (place / head_dim)
        smooth = min(1.0, max(0.0, (length / wavelength - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


def _type_of(name: str, value: NDArray[np.float32], float_type: FloatType) -> GGMLQuantizationType:
    """How the file holds a tensor.

    Raises:
        ModelError: a number is too large for that, or a row is no whole number of blocks.
    """
    if value.ndim == 1 or float_type == "f32":
        return GGMLQuantizationType.F32
    largest, most = float(np.abs(value).max()), float(np.finfo(np.float16).max)
    if largest > most * (127 if float_type == "q8_0" else 1):  # its scales are float16: the largest weight over 127
        raise ModelError(
            f"a weight of {name!r} is {largest:.3g}, more than {float_type} holds",
            way_out="export gguf_f32 instead",
        )
    if float_type == "f16":
        return GGMLQuantizationType.F16
    if value.shape[-1] % BLOCK:
        raise ModelError(
            f"the rows of {name!r} have {value.shape[-1]} weights, and {BLOCK} share a scale in q8_0",
            way_out="export gguf instead",
        )
    return GGMLQuantizationType.Q8_0


def _num_bytes(value: NDArray[np.float32], kind: GGMLQuantizationType) -> int:
    block, block_bytes = GGML_QUANT_SIZES[kind]
    return int(value.size // block * block_bytes)


def _stored(value: NDArray[np.float32], kind: GGMLQuantizationType) -> NDArray[Any]:
    """A tensor as the file holds it."""
    return value if kind is GGMLQuantizationType.F32 else quantize(value, kind)
