"""What docs/gguf.md says is what there is; its recipe is that of tests/invariants/test_gguf.py, on another model."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest

from luthier.compress.export.gguf import file_of
from luthier.models.gguf_tokenizer import RULES
from luthier.spec.load import load_recipe
from luthier.spec.plugins import EXPORTS, LLAMA_CPP_MODELS, METHODS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "gguf.md").read_text(encoding="utf-8")
TYPES: dict[str, Any] = {"gguf": "f16", "gguf_q8_0": "q8_0", "gguf_f32": "f32"}


def test_the_recipe_shown_is_read(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1], encoding="utf-8")
    assert load_recipe(tmp_path / "r.yaml").recipe.export == ("adapter", "gguf", "gguf_q8_0")


def test_every_form_is_told_with_its_file_and_bound() -> None:
    rows = re.findall(r"^\| `(gguf\w*)` \| .*? \| `(.*?)` \| (.*?) \|$", PAGE, re.MULTILINE)
    assert {name for name, _, _ in rows} == {name for name, one in EXPORTS.entries().items() if one.in_llama_cpp}
    for name, file, held in rows:
        facts = EXPORTS.get(name)
        assert file == file_of(Path(), TYPES[name]).name
        assert float(re.search(r"0\.0\d+", held)[0]) == facts.bound
        assert ("KL" in held) == (facts.measure == "kl")


def test_what_can_be_written_is_told() -> None:
    part = PAGE.partition("## What can be written")[2].partition("## ")[0]
    assert re.findall(r"`(\w+)` \(SmolLM2|, `(\w+)` and `(\w+)`, without", part) == [
        (LLAMA_CPP_MODELS[0], "", ""), ("", *LLAMA_CPP_MODELS[1:]),
    ]  # fmt: skip
    assert re.findall(r"`([\w-]+)`", re.search(r"llama.cpp's (.*?) do,", part, re.DOTALL)[1]) == list(RULES)
    heads = {name for name, facts in METHODS.entries().items() if facts.has_head}
    assert {"classify", "multi_label", "regression"} <= heads


def test_the_numbers_shown_are_those_that_were_measured() -> None:
    with (ROOT / "benchmarks" / "results" / "gguf.csv").open(encoding="utf-8", newline="") as file:
        measured = {row["float_type"]: row for row in csv.DictReader(file)}
    shown = re.findall(r"^\| `(gguf\w*)` \| ([\d.]+) MiB \| (\S+) \| (\S+) \| (\d) of 6 \|$", PAGE, re.MULTILINE)
    assert {name for name, *_ in shown} == set(TYPES)
    for name, size, largest, own, equal in shown:
        row = measured[TYPES[name]]
        assert float(size) == pytest.approx(float(row["mib"]), abs=0.05)
        assert float(largest) == float(row["kl"])
        assert float(own) == float(row["kl_of_weights"])
        assert equal == row["greedy_equal"]
        facts = EXPORTS.get(name)
        assert float(row["kl" if facts.measure == "kl" else "log_probability_error"]) < facts.bound / 3
