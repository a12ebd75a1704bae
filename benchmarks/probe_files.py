"""The files that engine_probe.py asks: an adapter, the merged folder, and both as GGUF in f32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
from numpy.typing import NDArray
from safetensors.numpy import load_file

from luthier.models.adapters import attach, load_adapter, merge, save_adapter
from luthier.models.base import import_base, load_base
from luthier.models.source import locate
from luthier.spec.adapters.lora import Lora

HEADS, KV_HEADS = 9, 3
LORA = Lora(type="lora", r=8, alpha=16, dropout=0, target_modules="all-linear")

BLOCK_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TOP_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


@dataclass(frozen=True)
class Files:
    base: Path
    adapter: Path
    merged: Path
    bundled_gguf: Path
    base_gguf: Path
    merged_gguf: Path
    lora_gguf: Path


def make_files(out: Path) -> Files:
    """Everything that is asked, from the bundled model and seed 0."""
    source = locate("smollm2-135m-instruct", folder=out, revision=None, offline=True, say=print)
    base, bundled = import_base(source), source.path
    tuned = attach(load_base(base), LORA, base_name="smollm2-135m-instruct", seed=0)
    noise = torch.Generator().manual_seed(0)
    for name, weight in tuned.named_parameters():
        if ".lora_B." in name:
            weight.data.normal_(std=0.02, generator=noise)
    files = Files(
        base,
        out / "adapter",
        out / "merged",
        bundled,
        base_gguf=out / "base.gguf",
        merged_gguf=out / "merged.gguf",
        lora_gguf=out / "lora.gguf",
    )
    files.adapter.mkdir()
    save_adapter(tuned, files.adapter)
    merge(load_adapter(load_base(base), files.adapter)).save_pretrained(files.merged)
    write_model_gguf(base, like=bundled, out=files.base_gguf)
    write_model_gguf(files.merged, like=bundled, out=files.merged_gguf)
    write_lora_gguf(files.adapter, out=files.lora_gguf)
    return files


def gguf_name(module: str) -> str:
    """'model.layers.3.mlp.up_proj' -> 'blk.3.ffn_up'."""
    if module in TOP_NAMES:
        return TOP_NAMES[module]
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{BLOCK_NAMES[rest]}"


def rope_order(module: str, weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of q and k in llama.cpp's order: it rotates neighbors (2i, 2i+1), transformers halves (i, i + d/2)."""
    heads = HEADS if module.endswith("q_proj") else KV_HEADS if module.endswith("k_proj") else 0
    if not heads:
        return weight
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))


def write_model_gguf(folder: Path, *, like: Path, out: Path) -> None:
    """The weights of a transformers folder in f32, with the keys (shape, tokenizer, template) of the file `like`."""
    writer = GGUFWriter(out, "llama")
    own = ("general.architecture", "general.file_type", "general.quantization_version")
    for key, entry in GGUFReader(like).fields.items():
        if key.startswith("GGUF.") or key in own:
            continue
        kind = entry.types[0]
        writer.add_key_value(key, entry.contents(), kind, entry.types[-1] if kind == GGUFValueType.ARRAY else None)
    writer.add_file_type(LlamaFileType.ALL_F32)
    for name, weight in load_file(folder / "model.safetensors").items():
        module = name.removesuffix(".weight")
        writer.add_tensor(f"{gguf_name(module)}.weight", rope_order(module, weight))
    finish(writer)


def write_lora_gguf(folder: Path, *, out: Path) -> None:
    """An adapter of PEFT: A as it is, the rows of B in the order of the base's rows."""
    writer = GGUFWriter(out, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(LORA.alpha or 0))
    for name, weight in load_file(folder / "adapter_model.safetensors").items():
        module, part = name.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".", 1)
        ordered = rope_order(module, weight) if part == "lora_B" else weight
        writer.add_tensor(f"{gguf_name(module)}.weight.{part.lower()}", ordered)
    finish(writer)


def finish(writer: GGUFWriter) -> None:
    """Header, keys and tensors, in the order that the format wants."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
