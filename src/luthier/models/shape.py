"""Facts of a base model from config.json or a GGUF header alone: no torch, no weights, under a second."""

from __future__ import annotations

import json
import re
import struct
from math import prod
from pathlib import Path

from luthier.errors import ModelError
from luthier.models.gguf_header import read_header
from luthier.models.source import ModelSource, weights_sha256
from luthier.records import ModelShape


def read_shape(source: ModelSource) -> ModelShape:
    """Shape, size, quantisation and license of the base model.

    Raises:
        ModelError: the config or header lacks what is needed, with the key that is missing.
    """
    return _from_gguf(source) if source.path.is_file() else _from_config(source)


def _from_gguf(source: ModelSource) -> ModelShape:
    header = read_header(source.path)
    values = header.values

    def need(key: str, default: int | None = None) -> int:
        if default is not None and key not in values:
            return default
        if not isinstance(values.get(key), int) or values[key] < 1:
            found = repr(values[key]) if key in values else "nothing"
            raise ModelError(
                f"{source.path}: the GGUF header has {found} as {key!r}, expected a whole number",
                way_out="use the safetensors folder of the model instead",
            )
        return int(values[key])

    family = str(values.get("general.architecture", ""))
    if not header.tensors:
        raise ModelError(f"{source.path} holds no weights", way_out="give a .gguf file with the model's tensors")
    heads, hidden = need(f"{family}.attention.head_count"), need(f"{family}.embedding_length")
    vocab = header.tensors.get("token_embd.weight", (0,))[-1]
    return ModelShape(
        name=source.name,
        kind=source.kind,
        path=str(source.path),
        sha256=weights_sha256(source),
        architecture=family,
        hidden_size=hidden,
        num_layers=need(f"{family}.block_count"),
        num_heads=heads,
        num_kv_heads=need(f"{family}.attention.head_count_kv", heads),
        head_dim=need(f"{family}.attention.key_length", hidden // heads),
        intermediate_size=need(f"{family}.feed_forward_length"),
        vocab_size=vocab,
        max_positions=need(f"{family}.context_length"),
        tied_embeddings="output.weight" not in header.tensors,
        num_parameters=header.num_parameters,
        num_bytes=source.path.stat().st_size,
        quantisation=_quantisation(header.types, header.tensors),
        license=source.license or _spdx(str(values.get("general.license", ""))),
        license_source="package metadata"
        if source.license
        else "GGUF header"
        if "general.license" in values
        else "nowhere",
    )


def _quantisation(types: dict[str, int], tensors: dict[str, tuple[int, ...]]) -> str:
    """Name of the type that most weights have; '' for float types."""
    from gguf import GGMLQuantizationType

    weights: dict[int, int] = {}
    for name, kind in types.items():
        weights[kind] = weights.get(kind, 0) + prod(tensors[name])
    name = GGMLQuantizationType(max(weights, key=lambda kind: weights[kind])).name
    return "" if name in ("F32", "F16", "BF16", "F64") else name


def _from_config(source: ModelSource) -> ModelShape:
    path = source.path / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}", way_out="fetch the model again") from error
    if not isinstance(config, dict) or not isinstance(config.get("text_config", {}), dict):
        raise ModelError(f"{path} is not a JSON object of settings", way_out="fetch the model again")
    if "auto_map" in config:
        raise ModelError(
            f"{path} asks to run code of the model's authors (auto_map)",
            way_out="use a model whose architecture transformers knows; remote code is never run",
        )
    if config.get("quantization_config"):
        raise ModelError(
            f"{path}: these weights are quantised already (quantization_config), and what was rounded away is gone",
            way_out="name the folder of the weights before that; model.load_in_4bit: true holds them in four bits",
        )
    text = config.get("text_config", config)

    def need(key: str) -> int:
        if not isinstance(text.get(key), int) or text[key] < 1:
            raise ModelError(
                f"{path}: {key!r} is {text.get(key)!r}, expected a whole number above 0",
                way_out="only decoder language models with the usual config keys are supported",
            )
        return int(text[key])

    heads, hidden = need("num_attention_heads"), need("hidden_size")
    shapes, num_bytes = _safetensors_shapes(source.path)
    tied = bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))
    heads_only = any(str(one).endswith("ForSequenceClassification") for one in config.get("architectures") or ())
    if heads_only and not tied and not any(name.endswith("lm_head.weight") for name in shapes):
        raise ModelError(  # transformers would draw one at random, another at every load
            f"{source.name} has a classification head in the place of the output head, so it writes nothing",
            way_out="name a model that writes: the base that it was tuned from, or the export of a run in words",
        )
    license_id, where = _folder_license(source.path)
    return ModelShape(
        name=source.name,
        kind=source.kind,
        path=str(source.path),
        sha256=weights_sha256(source),
        architecture=str(text.get("model_type", config.get("model_type", "unknown"))),
        hidden_size=hidden,
        num_layers=need("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=int(text.get("num_key_value_heads") or heads),
        head_dim=int(text.get("head_dim") or hidden // heads),
        intermediate_size=need("intermediate_size"),
        vocab_size=need("vocab_size"),
        max_positions=need("max_position_embeddings"),
        tied_embeddings=tied,
        num_parameters=sum(prod(shape) for shape in shapes.values()),
        num_bytes=num_bytes,
        quantisation="",
        license=license_id,
        license_source=where,
    )


def _safetensors_shapes(folder: Path) -> tuple[dict[str, tuple[int, ...]], int]:
    """Shapes from the files' headers (8 bytes of length, then JSON): https://github.com/huggingface/safetensors#format."""
    shapes: dict[str, tuple[int, ...]] = {}
    num_bytes = 0
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            try:
                (length,) = struct.unpack("<Q", stream.read(8))
                if length > file.stat().st_size:
                    raise ValueError(f"a header of {length} bytes passes the end of the file")
                header = json.loads(stream.read(length))
                tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
                end = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
                if end > file.stat().st_size:
                    raise ValueError(f"its weights end at byte {end}, the file at {file.stat().st_size}")
                shapes |= {name: tuple(entry["shape"]) for name, entry in tensors.items()}
            except (ValueError, struct.error, LookupError, TypeError, AttributeError, OverflowError) as error:
                raise ModelError(
                    f"{file} is not a whole safetensors file: {error}", way_out="fetch it again"
                ) from error
        num_bytes += file.stat().st_size
    return shapes, num_bytes


def _folder_license(folder: Path) -> tuple[str, str]:
    readme = folder / "README.md"
    if readme.is_file():
        found = re.search(
            r"^license:\s*['\"]?([\w.+-]+)", readme.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
        )
        if found:
            return _spdx(found[1]), "model card"
    return "unknown", "nowhere"


def _spdx(name: str) -> str:
    known = {"apache-2.0": "Apache-2.0", "mit": "MIT", "cc-by-4.0": "CC-BY-4.0", "": "unknown"}
    return known.get(name.lower(), name)
