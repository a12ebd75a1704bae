"""The tokenizer that is written for the bundled model is the one of the file that it came from, entry for entry."""

from __future__ import annotations

import pytest
from gguf import GGUFReader

from luthier.models.base import import_base
from luthier.models.gguf_tokenizer import read_tokenizer
from luthier.models.source import ModelSource

pytestmark = pytest.mark.real


def test_the_tokenizer_that_is_written_is_the_one_that_was_read(bundled: ModelSource) -> None:
    fields = GGUFReader(bundled.path).fields
    given = {name.removeprefix("tokenizer.ggml."): field.contents() for name, field in fields.items()}
    found = read_tokenizer(import_base(bundled), vocab_size=given["llama.vocab_size"])
    assert found.pre == given["pre"]
    assert list(found.tokens) == given["tokens"]
    assert list(found.types) == given["token_type"]
    assert list(found.merges) == given["merges"]
    ids = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}
    assert found.special == {name: given[key] for name, key in ids.items()}
    assert found.adds_bos == given["add_bos_token"]
