"""What is imported from a GGUF file says the same as what the file was made from, token by token and logit by logit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from gguf_kit import write_gguf
from llama_cpp import TEXTS, tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from luthier.errors import ModelError
from luthier.models import base
from luthier.models.base import BYTE_LEVEL_SPLITS, import_base, is_imported, load_base
from luthier.models.source import ModelSource
from luthier.store.home import home
from tiny import CHATML, SPECIAL, llama


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose tokenizer knows numbers of several digits, so that it shows where they are split."""
    place = tmp_path_factory.mktemp("numbers")
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([*TEXTS * 5, "2024 40912 1000 000 22 34 99 **2 ??? :// -- the order is late"] * 9, trainer)
    made.save(str(place / "tokenizer.json"))
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL[0], "eos_token": SPECIAL[2]}
    (place / "tokenizer_config.json").write_text(json.dumps(facts))
    (place / "chat_template.jinja").write_text(CHATML)
    llama(vocab_size=made.get_vocab_size()).save_pretrained(place)
    return place


def source(path: Path) -> ModelSource:
    return ModelSource("m", "gguf" if path.is_file() else "folder", path)


@pytest.mark.parametrize("pre", BYTE_LEVEL_SPLITS)
def test_an_imported_tokenizer_is_that_of_llama_cpp(folder: Path, tmp_path: Path, pre: str) -> None:
    file = write_gguf(tmp_path / "m.gguf", folder, pre=pre)
    ours = Tokenizer.from_file(str(import_base(source(file)) / "tokenizer.json"))
    with tokenizer(file) as theirs:
        for text in TEXTS:
            assert ours.encode(text, add_special_tokens=False).ids == theirs(text), text


def test_an_imported_model_is_the_one_that_was_written(folder: Path, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", folder)
    assert not is_imported(source(file))
    place = import_base(source(file))
    assert is_imported(source(file))
    assert {path.suffix for path in place.iterdir()} <= {".json", ".jinja", ".safetensors", ""}
    ids = torch.tensor([[5, 9, 20, 300, 7]])
    with torch.no_grad():
        ours, theirs = (load_base(one)(input_ids=ids).logits for one in (place, folder))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (place / "chat_template.jinja").read_text().strip() == CHATML.strip()
    model = load_base(place)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.dtype == torch.float32
    made = (place / "complete").stat().st_mtime_ns
    assert import_base(source(file)) == place
    assert (place / "complete").stat().st_mtime_ns == made


def test_what_was_imported_by_another_version_is_made_anew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "m.gguf", folder)
    place = import_base(source(file))
    (place / "complete").unlink()  # as after a kill
    assert not is_imported(source(file))
    assert import_base(source(file)) == place
    assert (place / "complete").is_file()
    monkeypatch.setattr(base, "_IMPORT_VERSION", "next")
    assert not is_imported(source(file))


@pytest.mark.parametrize("pre", ["llama-bpe", "default", "qwen2", None])
def test_tokenizers_whose_conversion_was_never_verified_are_refused(
    folder: Path, tmp_path: Path, pre: str | None
) -> None:
    file = write_gguf(tmp_path / "m.gguf", folder, pre=pre)
    with pytest.raises(
        ModelError, match=rf"tokenizer 'gpt2' with pre-tokenizer {pre!r}: its conversion .* never verified"
    ) as caught:
        import_base(source(file))
    assert caught.value.way_out == "use the safetensors folder of this model; verified: smollm, gpt-2"
    assert not list((tmp_path / "home" / "models").glob("*"))


def test_a_folder_is_used_in_place_and_needs_a_tokenizer(folder: Path, tmp_path: Path) -> None:
    assert import_base(source(folder)) == folder
    assert is_imported(source(folder))
    (tmp_path / "m").mkdir()
    with pytest.raises(ModelError, match=r"model 'm' has no tokenizer.json\n  -> save its fast tokenizer there"):
        import_base(source(tmp_path / "m"))
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"has no \.safetensors weights"):
        import_base(source(tmp_path / "m"))


def test_damaged_weights_name_their_folder_and_what_to_do(tiny_model: Path, tmp_path: Path) -> None:
    for folder, way_out in ((tmp_path / "mine", "fetch the model again"), (home() / "models" / "m", "is made anew")):
        shutil.copytree(tiny_model, folder)
        (folder / "model.safetensors").write_bytes(b"")
        with pytest.raises(ModelError, match="the weights are damaged") as said:
            load_base(folder)
        assert str(folder) in said.value.what
        assert way_out in said.value.way_out
