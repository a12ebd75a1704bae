"""The tokenizer that is imported from the bundled GGUF file is llama.cpp's, on every kind of text."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from luthier.models.base import import_base
from luthier.models.shape import read_shape
from luthier.models.source import ModelSource
from luthier.recipes import find, general_text

sys.path.append(str(Path(__file__).parents[1] / "fast"))

pytestmark = pytest.mark.real


def test_the_imported_tokenizer_is_that_of_llama_cpp(bundled: ModelSource) -> None:
    from llama_cpp import TEXTS, tokenizer

    ours = Tokenizer.from_file(str(import_base(bundled) / "tokenizer.json"))
    rng = random.Random(0)
    letters = "0123456789  \n\tabcXYZ.,;:!?'\"-_/()[]{}<>=+*&%$#@éßøЖд中文字عद👍🎻½²"
    drawn = ["".join(rng.choices(letters, k=rng.randint(1, 60))) for _ in range(300)]
    messages = (find("support-intents").parent / "support.csv").read_text(encoding="utf-8").splitlines()[:300]
    code = Path(__file__).read_text(encoding="utf-8")
    with tokenizer(bundled.path) as theirs:
        for text in [*TEXTS, *drawn, *messages, *general_text().split("\n\n"), code]:
            assert ours.encode(text, add_special_tokens=False).ids == theirs(text), text


def test_the_bundled_model_is_what_it_is_said_to_be(bundled: ModelSource) -> None:
    shape = read_shape(bundled)
    assert (shape.num_parameters, shape.quantisation, shape.license) == (134_515_008, "Q4_1", "Apache-2.0")
