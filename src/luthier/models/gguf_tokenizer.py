"""The tokenizer of a transformers folder in GGUF's words; refused where llama.cpp would split texts in another way.

llama.cpp does not read the splitting rules of a tokenizer.json: it has its own, each under a name
(`tokenizer.ggml.pre`; src/llama-vocab.cpp). A name is written only where the rules of the file are those of the name,
to the letter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import ModelError

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class _Rules:
    """How a text is cut into pieces before merges are made."""

    pieces: tuple[tuple[str, ...], ...]
    ignore_merges: bool = False
    """Whether a piece that is a token as it stands is taken whole."""
    normalizer: str | None = None


RULES = {
    "gpt-2": _Rules((("ByteLevel", "regex"),)),
    "smollm": _Rules((("Digits", "individual"), ("ByteLevel", "regex"))),
    "llama-bpe": _Rules((("Split", _WORDS + r"\p{N}{1,3}" + _REST, "Isolated"), ("ByteLevel", "")), ignore_merges=True),
    "qwen2": _Rules((("Split", _WORDS + r"\p{N}" + _REST, "Isolated"), ("ByteLevel", "")), normalizer="NFC"),
}
"""`tokenizer.ggml.pre` -> the rules that it stands for."""

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # gguf.TokenType


@dataclass(frozen=True)
class GGUFTokenizer:
    """What a GGUF file holds of a tokenizer."""

    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    special: Mapping[str, int]
    """'bos', 'eos', 'unk', 'pad' -> id, those that there are."""
    adds_bos: bool
    """Whether a text that is encoded begins with the BOS token though it does not stand there."""


def read_tokenizer(folder: Path, *, vocab_size: int) -> GGUFTokenizer:
    """The tokenizer in `folder`, its vocabulary filled up to the rows of the embedding.

    Raises:
        ModelError: llama.cpp has no such tokenizer, or it is larger than the embedding.
    """
    path = folder / "tokenizer.json"
    tree = read_json(path)
    pre = pre_tokenizer_of(tree, path)
    vocabulary = {number: token for token, number in tree["model"]["vocab"].items()}
    types = dict.fromkeys(vocabulary, NORMAL)
    for added in tree.get("added_tokens", []):
        number = int(added["id"])
        vocabulary[number] = added["content"]
        types[number] = CONTROL if added["special"] else USER_DEFINED
    if max(vocabulary) >= vocab_size:
        raise ModelError(
            f"{path} has a token {max(vocabulary)}, and the model has {vocab_size} rows of embeddings",
            way_out="use the tokenizer that the model was saved with",
        )
    merges = tree["model"]["merges"]
    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    special = _special_ids(config, {token: number for number, token in vocabulary.items()})
    return GGUFTokenizer(
        pre=pre,
        tokens=tuple(vocabulary.get(number, f"[PAD{number}]") for number in range(vocab_size)),
        types=tuple(types.get(number, UNUSED) for number in range(vocab_size)),
        merges=tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in merges),
        special=special,
        adds_bos=_adds(path, special.get("bos")),
    )


def refuse_unfit_tokenizer(folder: Path) -> None:
    """Raises ModelError where `read_tokenizer` would, as far as that is known without the weights."""
    pre_tokenizer_of(read_json(folder / "tokenizer.json"), folder / "tokenizer.json")


def refuse_unfit_pre(model: object, pre: object, file: Path) -> None:
    """The same of a base that is a GGUF file, by its header.

    Raises:
        ModelError: its tokenizer is not among those that can be written.
    """
    if model != "gpt2" or pre not in RULES:
        raise ModelError(
            f"{file}: tokenizer {model!r} with pre-tokenizer {pre!r} cannot be written into a GGUF file",
            way_out=f"leave gguf out of export; written are byte-level tokenizers that split as {', '.join(RULES)}",
        )


def pre_tokenizer_of(tree: Mapping[str, Any], path: Path) -> str:
    """llama.cpp's name of how the tokenizer of a tokenizer.json splits.

    Raises:
        ModelError: it has none.
    """
    problem = _odd_model(tree["model"]) or _odd_tokens(tree.get("added_tokens", []))
    if not problem:
        normalizer = (tree.get("normalizer") or {}).get("type")
        found = _Rules(_pieces(tree.get("pre_tokenizer")), bool(tree["model"].get("ignore_merges")), normalizer)
        for name, rules in RULES.items():
            if found == rules:
                return name
        problem = f"it splits by {_short(found)}, which is none of the ways that are known to be llama.cpp's"
    raise ModelError(
        f"{path} cannot go into a GGUF file: {problem}",
        way_out=f"leave gguf out of export; tokenizers that can: those that split as {', '.join(RULES)} do",
    )


def _odd_model(model: Mapping[str, Any]) -> str:
    """What of a BPE model llama.cpp's byte-level tokenizer does not do; '' for nothing."""
    if model.get("type") != "BPE":
        return f"its model is {model.get('type')!r}, expected a byte-level BPE"
    for key in ("byte_fallback", "dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            return f"its model has {key} {model[key]!r}"
    return ""


def _odd_tokens(added: list[Mapping[str, Any]]) -> str:
    for token in added:
        for key in ("lstrip", "rstrip", "single_word"):
            if token.get(key):
                return f"its token {token['content']!r} is {key}"
    return ""


def _pieces(tree: Mapping[str, Any] | None) -> tuple[tuple[str, ...], ...]:
    """The steps of a pre-tokenizer, one after the other, as `RULES` writes them."""
    if tree is None:
        return ()
    kind = str(tree.get("type"))
    if kind == "Sequence":
        return tuple(piece for one in tree["pretokenizers"] for piece in _pieces(one))
    if kind == "ByteLevel":
        prefix = ("prefix_space",) if tree.get("add_prefix_space", True) else ()
        return ((kind, "regex" if tree.get("use_regex", True) else "", *prefix),)
    if kind == "Digits":
        return ((kind, "individual" if tree.get("individual_digits") else "runs"),)
    if kind == "Split":
        pattern = tree["pattern"]
        inverted = ("inverted",) if tree.get("invert") else ()
        return ((kind, str(pattern.get("Regex", pattern)), str(tree["behavior"]), *inverted),)
    return ((kind, json.dumps({key: value for key, value in tree.items() if key != "type"}, sort_keys=True)),)


def _short(rules: _Rules) -> str:
    said = " then ".join(" ".join(filter(None, piece)) for piece in rules.pieces) or "nothing"
    more = [f"after {rules.normalizer}"] if rules.normalizer else []
    return ", ".join([said, *more, *(["taking tokens whole"] if rules.ignore_merges else [])])


def _special_ids(config: Mapping[str, Any], numbers: Mapping[str, int]) -> dict[str, int]:
    found = {}
    for name in ("bos", "eos", "unk", "pad"):
        value = config.get(f"{name}_token")
        token = value.get("content") if isinstance(value, dict) else value
        if isinstance(token, str) and token in numbers:
            found[name] = numbers[token]
    return found


def _adds(path: Path, bos: int | None) -> bool:
    from tokenizers import Tokenizer

    return bos is not None and Tokenizer.from_file(str(path)).encode("a").ids[:1] == [bos]


def read_json(path: Path) -> dict[str, Any]:
    """An object in a file.

    Raises:
        ModelError: it is none.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}", way_out="fetch the model again") from error
    if not isinstance(tree, dict):
        raise ModelError(f"{path} is not a JSON object", way_out="fetch the model again")
    return tree
