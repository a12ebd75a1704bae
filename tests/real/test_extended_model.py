"""New tokens in the real tokenizer of the 135M model, on real texts: nothing else changes, every text comes back."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from luthier.data.contract import open_tokenizer
from luthier.data.vocabulary import Words, plain, refuse_other_ids, write_tokenizer
from luthier.models.base import import_base
from luthier.models.source import ModelSource

pytestmark = pytest.mark.real


def texts(path: Path) -> Iterator[str]:
    whole = path.read_bytes()
    lines = gzip.decompress(whole) if path.suffix == ".gz" else whole
    yield from (json.loads(line)["text"] for line in lines.splitlines())


def test_words_of_handbooks_change_no_other_token_of_any_text(
    bundled: ModelSource, shared_data: Path, tmp_path: Path
) -> None:
    base = import_base(bundled)
    old: Tokenizer = open_tokenizer(base / "tokenizer.json")
    words = Words(old, name="smollm2-135m-instruct")
    handbooks = list(texts(shared_data / "enterprise_docs" / "train.jsonl.gz"))
    times = Counter(word for text in handbooks for word in words.of(text))
    fresh = [word for word, count in times.items() if count >= 10 and len(words.pieces(word)) > 1]
    best = sorted(fresh, key=lambda word: (-times[word] * (len(words.pieces(word)) - 1), word))[:500]
    assert len(best) > 100
    made = write_tokenizer(words.grown(best), base, tmp_path)
    pieces = {words.first + number: words.pieces(word) for number, word in enumerate(best)}
    held_out = [
        *texts(shared_data / "enterprise_docs" / "test.jsonl"),
        *texts(shared_data / "wikitext2" / "test.jsonl.gz"),
    ]
    counts = refuse_other_ids([*handbooks, *held_out], base / "tokenizer.json", made, pieces)
    assert sum(after for _, after in counts) < sum(before for before, _ in counts)
    new = open_tokenizer(made)
    for text in held_out:
        assert new.decode(new.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text
    assert all(
        new.encode(plain(word), add_special_tokens=False).ids == [words.first + n] for n, word in enumerate(best)
    )
