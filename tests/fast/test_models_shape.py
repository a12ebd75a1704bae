"""Facts of a base model from its config or header alone: right, quick, and with a clear word where they are missing."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gguf_kit import write_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.errors import ModelError
from luthier.models.gguf_header import read_header
from luthier.models.shape import read_shape
from luthier.models.source import ModelSource
from luthier.records import ModelShape
from tiny import llama


@pytest.fixture(scope="module", autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def tiny_gguf(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_model, license="apache-2.0")


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import write_model

    return write_model(tmp_path_factory.mktemp("model"))


def shape_of(path: Path) -> ModelShape:
    return read_shape(ModelSource("m", "gguf" if path.is_file() else "folder", path))


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        shape_of(path)
    assert caught.value.way_out
    assert str(path) in str(caught.value)
    return str(caught.value)


def changed(folder: Path, out: Path, **changes: Any) -> Path:
    """A copy of the model with other settings; None takes one away."""
    shutil.copytree(folder, out, dirs_exist_ok=True)
    config = json.loads((out / "config.json").read_text()) | changes
    kept = {key: value for key, value in config.items() if value is not None}
    (out / "config.json").write_text(json.dumps(kept))
    return out


def test_a_folder_and_its_gguf_tell_the_same(tiny_model: Path, tiny_gguf: Path) -> None:
    from_folder, from_header = shape_of(tiny_model), shape_of(tiny_gguf)
    own = {"kind", "path", "sha256", "num_bytes", "license_source"}
    assert from_folder.model_dump(exclude=own) == from_header.model_dump(exclude=own)
    assert (from_folder.license, from_folder.license_source, from_header.license_source) == (
        "Apache-2.0", "model card", "GGUF header")  # fmt: skip
    assert from_header.num_bytes == tiny_gguf.stat().st_size
    assert (from_folder.hidden_size, from_folder.num_kv_heads, from_folder.head_dim) == (32, 2, 8)


VARIANTS: list[dict[str, Any]] = [
    {}, {"tie_word_embeddings": False}, {"num_hidden_layers": 3}, {"attention_bias": True}, {"head_dim": 16},
]  # fmt: skip


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_parameters_are_those_that_torch_counts(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = llama(**changes)
    model.save_pretrained(tmp_path, safe_serialization=True)
    shape = shape_of(tmp_path)
    assert shape.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.tied_embeddings == model.config.tie_word_embeddings
    assert (shape.num_layers, shape.head_dim) == (model.config.num_hidden_layers, model.config.head_dim)
    assert (shape.license, shape.license_source) == ("unknown", "nowhere")


@pytest.mark.parametrize("what", ["folder", "gguf"])
def test_it_takes_less_than_a_second_and_no_torch(tiny_model: Path, tiny_gguf: Path, what: str) -> None:
    path = tiny_model if what == "folder" else tiny_gguf
    check = (
        "import sys, time; from pathlib import Path; from luthier.models.shape import read_shape;"
        "from luthier.models.source import ModelSource; began = time.process_time();"
        f"read_shape(ModelSource('m', '{what}', Path({str(path)!r}))); took = time.process_time() - began;"
        "bad = {'torch', 'transformers', 'peft'} & set(sys.modules); sys.exit(repr(bad) if bad else int(took >= 1))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"auto_map": {"AutoModel": "x.Y"}}, "asks to run code of the model's authors (auto_map)"),
        ({"quantization_config": {"quant_method": "fp8"}}, "these weights are quantised already"),
        ({"hidden_size": None}, "'hidden_size' is None, expected a whole number above 0"),
        ({"hidden_size": "32"}, "'hidden_size' is '32', expected a whole number above 0"),
        ({"num_attention_heads": 0}, "'num_attention_heads' is 0, expected a whole number above 0"),
        ({"text_config": 3}, "config.json is not a JSON object of settings"),
    ],
    ids=str,
)
def test_configs_that_cannot_be_used(tiny_model: Path, tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    assert what in refusal(changed(tiny_model, tmp_path / "m", **changes))


def test_files_of_a_folder_that_are_damaged(tiny_model: Path, tmp_path: Path) -> None:
    folder = changed(tiny_model, tmp_path / "m")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for content in (
        b"",
        b"abc",
        whole[:200],
        whole[:-100],
        struct.pack("<Q", 4) + b"[{}]",
        struct.pack("<Q", 2**60) + whole[8:],
    ):
        weights.write_bytes(content)
        assert "is not a whole safetensors file: " in refusal(folder)
    for content in (b"{", b"[]", b"\xff"):
        (folder / "config.json").write_bytes(content)
        assert "config.json" in refusal(folder)
    (folder / "config.json").unlink()
    assert "config.json cannot be read" in refusal(folder)


def test_a_text_model_inside_another_config_and_a_license_in_words(tiny_model: Path, tmp_path: Path) -> None:
    inner = json.loads((tiny_model / "config.json").read_text())
    folder = changed(tiny_model, tmp_path / "m")
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": inner}))
    (folder / "README.md").write_text("---\nlicense: 'gemma'\n---\n")
    assert (shape_of(folder).hidden_size, shape_of(folder).license) == (32, "gemma")


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"llama.block_count": None}, "the GGUF header has nothing as 'llama.block_count'"),
        (
            {"llama.attention.head_count": 0},
            "the GGUF header has 0 as 'llama.attention.head_count', expected a whole number",
        ),
    ],
    ids=str,
)
def test_headers_that_lack_what_is_needed(tiny_model: Path, tmp_path: Path, values: dict[str, Any], what: str) -> None:
    assert what in refusal(write_gguf(tmp_path / "bad.gguf", tiny_model, **values))


def test_a_file_cut_anywhere_is_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    whole, cut = tiny_gguf.read_bytes(), tmp_path / "cut.gguf"
    start = read_header(tiny_gguf).data_start
    for length in (
        0,
        3,
        4,
        8,
        23,
        24,
        60,
        500,
        start // 2,
        start - 1,
        start,
        start + 5,
        len(whole) // 2,
        len(whole) - 1,
    ):
        cut.write_bytes(whole[:length])
        assert "is not a readable GGUF file: " in refusal(cut)
    cut.write_bytes(whole[:-1])
    assert f"end at byte {len(whole)}, the file at {len(whole) - 1}" in refusal(cut)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"PK\x03\x04" + b"\0" * 40, "begins with b'PK\\x03\\x04', not b'GGUF'"),
        (b"GGUF" + struct.pack("<I", 1) + b"\0" * 40, "version 1, readable are 2 and 3"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**63), "passes the end of the file"),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 4, 2**62),
            "passes the end of the file",
        ),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 77), "is not a readable GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "holds no weights"),
    ],
    ids=["zip", "version", "string", "array", "kind", "nothing"],
)
def test_other_files_and_lies_about_lengths(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    assert what in refusal(tmp_path / "m.gguf")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_header_is_read_or_refused(tiny_gguf: Path, tmp_path: Path, places: list[tuple[float, int]]) -> None:
    content, start = bytearray(tiny_gguf.read_bytes()), read_header(tiny_gguf).data_start
    for share, byte in places:
        content[int(share * start)] = byte
    (tmp_path / "damaged.gguf").write_bytes(content)
    try:
        shape_of(tmp_path / "damaged.gguf")
    except ModelError as error:
        said = str(error)
    else:
        said = ""
    assert not said or "\n  -> " in said


def test_a_model_that_has_a_head_in_the_place_of_its_output_head_is_no_base(tmp_path: Path) -> None:
    """transformers would draw an output head at random, another at every load; a tied one is in the embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    sizes = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    for number, (kind, tied, refused) in enumerate(
        [
            (LlamaForSequenceClassification, False, True),
            (LlamaForSequenceClassification, True, False),
            (LlamaForCausalLM, False, False),
        ]
    ):
        folder = tmp_path / str(number)
        config = LlamaConfig(
            **sizes, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=tied, pad_token_id=0
        )
        kind(config).save_pretrained(folder)  # type: ignore[operator]
        source = ModelSource("m", "folder", folder)
        if refused:
            with pytest.raises(ModelError, match="classification head in the place of the output head"):
                read_shape(source)
        else:
            assert read_shape(source).tied_embeddings is tied
