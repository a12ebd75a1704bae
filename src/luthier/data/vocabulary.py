"""A tokenizer with words of its own: each new token stands for one whole word, and old ids stay as they are.

A byte-level BPE tokenizer divides a text into words (pre-tokens, most with the blank before them) and each word into
pieces by its merges. With `ignore_merges` a word that stands in the vocabulary as a whole is that token, and its merges
are not asked (as in Llama 3's tokenizer). So a new word is an entry of the vocabulary without a merge: no other word
can ever become it, or be cut in another way for it. What follows, and is looked at whenever a tokenizer is made:

- a text without new words has the ids that it had;
- with the pieces in the place of each new token the ids are those of the base's tokenizer, whatever the text;
- so decoding gives what it gave.

Added tokens of the library would not do: they are cut out of a text before it is divided into words, so the blank
before one becomes a token of its own, or is eaten. Nor would merges at the end of the list: they apply within other
words too.

Why a domain's words are worth tokens: Gee et al. 2022, Fast Vocabulary Transfer (EMNLP industry track, section 2).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers

from luthier.data.contract import open_tokenizer
from luthier.errors import ModelError
from luthier.store.files import write_atomic

TOKENIZER = "tokenizer"
"""Folder below a task's data/ with the tokenizer that was made, laid out as that of a base model."""
FILE = "vocabulary.json"

_BESIDE = ("chat_template.jinja", "special_tokens_map.json", "generation_config.json")
_WAY_OUT = "leave model.new_tokens out, or take a base with a byte-level BPE tokenizer (SmolLM2, Llama 3, Qwen, GPT-2)"
_AT_ONCE = 1024
"""Texts whose tokens are held at once."""
_TO_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_FROM_BYTES = decoders.ByteLevel()


class Words:
    """Words as a byte-level tokenizer has them: 'Ġviolin' is ' violin'.

    Attributes:
        first: the first id that is free.
    """

    def __init__(self, tokenizer: Tokenizer, *, name: str) -> None:
        """Look at the tokenizer of `name`.

        Raises:
            ModelError: it is of a kind whose vocabulary cannot grow so that nothing else changes.
        """
        tree = json.loads(tokenizer.to_str())
        if why := _unfit(tree, tokenizer):
            raise ModelError(f"{name}: model.new_tokens: {why}", way_out=_WAY_OUT)
        self._tokenizer, self._tree = tokenizer, tree
        self._known: Mapping[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        self.first = max(self._known.values()) + 1

    def of(self, text: str) -> list[str]:
        """The words of a text, in order, as the vocabulary writes them."""
        normalizer = self._tokenizer.normalizer
        plain = text if normalizer is None else normalizer.normalize_str(text)
        return [word for word, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(plain)]

    def forms(self, term: str) -> list[str]:
        """How a term stands in texts, behind a blank and without one; [] where it is not one word to the tokenizer."""
        normalizer = self._tokenizer.normalizer
        plain = term if normalizer is None else normalizer.normalize_str(term)
        behind, alone = _written(f" {plain}"), _written(plain)
        found = [behind] if self.of(f"a {plain}")[1:] == [behind] else []
        return [*found, alone] if self.of(plain) == [alone] else found

    def pieces(self, word: str) -> tuple[int, ...]:
        """The base's ids for a word."""
        known = self._known.get(word)
        if known is not None and self._tree["model"].get("ignore_merges"):
            return (known,)
        return tuple(token.id for token in self._tokenizer.model.tokenize(word))

    def grown(self, words: Sequence[str]) -> Tokenizer:
        """The tokenizer with these words, whose ids follow on the base's in this order.

        Raises:
            ModelError: some old id would change its meaning.
        """
        tree = json.loads(json.dumps(self._tree))
        vocabulary: dict[str, int] = tree["model"]["vocab"]
        for added in tree["added_tokens"]:  # else the library counts their ids on from the vocabulary's new end
            vocabulary.setdefault(added["content"], added["id"])
        vocabulary |= {word: self.first + number for number, word in enumerate(words)}
        tree["model"]["ignore_merges"] = True
        made = Tokenizer.from_str(json.dumps(tree))
        now = made.get_vocab(with_added_tokens=True)
        assert all(now.get(word) == number for word, number in self._known.items()), "an old id has changed"
        assert len(now) == len(self._known) + len(words), "a new word was known"
        return made


def plain(word: str) -> str:
    """A word as it stands in a text: ' violin' of 'Ġviolin'."""
    return str(_FROM_BYTES.decode([word]))


def _written(text: str) -> str:
    return str(_TO_BYTES.pre_tokenize_str(text)[0][0])


def _unfit(tree: Mapping[str, Any], tokenizer: Tokenizer) -> str:
    """Why a vocabulary cannot grow without changing anything else; '' where it can."""
    model, before = tree["model"], tree.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    if model.get("type") != "BPE" or not steps or steps[-1].get("type") != "ByteLevel":
        last = steps[-1].get("type") if steps else None
        return f"its tokenizer is {model.get('type')!r} over {last!r} words, and only byte-level BPE is built"
    odd = [key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    if odd:
        return f"its tokenizer has {odd[0]} {model[odd[0]]!r}, under which a word may be cut in other ways"
    if len(tokenizer.pre_tokenizer.pre_tokenize_str("one two")) < 2:
        return "its tokenizer does not divide a text into words"
    if model.get("ignore_merges"):
        return ""
    alone = {token["content"] for token in tree["added_tokens"] if not token["single_word"]}
    for word, number in tokenizer.get_vocab(with_added_tokens=False).items():
        if word not in alone and [token.id for token in tokenizer.model.tokenize(word)] != [number]:
            return f"its tokenizer never cuts {word!r} into that one token, which it then would"
    return ""


def write_tokenizer(made: Tokenizer, base: Path, out: Path) -> Path:
    """Write the tokenizer with all that the base's folder says of it; tokenizer.json is read as it stands.

    Args:
        made: see `Words.grown`.
        base: folder of the base's tokenizer.
        out: an existing folder.

    Returns:
        The tokenizer.json.
    """
    for name in _BESIDE:
        if (base / name).is_file():
            shutil.copyfile(base / name, out / name)
    path = base / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    # Of a family's own class transformers 5 builds the tokenizer anew from vocabulary and merges, without our words.
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_atomic(out / path.name, json.dumps(config, ensure_ascii=False, indent=2) + "\n")
    write_atomic(out / "tokenizer.json", made.to_str())
    return out / "tokenizer.json"


def in_pieces(ids: Iterable[int], pieces: Mapping[int, Sequence[int]]) -> list[int]:
    """The base's ids of the same text."""
    return [old for number in ids for old in pieces.get(number, (number,))]


def refuse_other_ids(
    texts: Sequence[str], base: Path, made: Path, pieces: Mapping[int, Sequence[int]]
) -> list[tuple[int, int]]:
    """Cut each text with both tokenizers, and see that they differ in the new words and in nothing else.

    Returns:
        Of each text its tokens before and after.

    Raises:
        ModelError: they differ elsewhere.
    """
    both, counts = [open_tokenizer(path) for path in (base, made)], list[tuple[int, int]]()
    for start in range(0, len(texts), _AT_ONCE):
        part = list(texts[start : start + _AT_ONCE])
        cut = [tokenizer.encode_batch_fast(part, add_special_tokens=False) for tokenizer in both]
        for before, after in zip(*cut, strict=True):
            if in_pieces(after.ids, pieces) != before.ids:
                raise ModelError(
                    f"{base}: with model.new_tokens a text is cut differently where no new word stands",
                    way_out="leave model.new_tokens out, and report this tokenizer",
                )
            counts.append((len(before.ids), len(after.ids)))
    return counts
