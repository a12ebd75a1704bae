"""Data sets of the hub: through its protocol, at a commit that is written down, with the license they state."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from fake_hub import COMMITS, Hub, serving
from store_servers import fetched

from command import Done, luthier, paper_model

TOKEN = "hf_" + "secretsecret12345"
CARD = b"---\nlicense: cc-by-4.0\nlanguage: [en]\n---\n# Parcels\n"


def parquet(first: int, rows: int) -> bytes:
    out = io.BytesIO()
    made = [{"text": f"where is parcel number {n} of mine", "kind": "ab"[n % 2]} for n in range(first, first + rows)]
    pq.write_table(pa.Table.from_pylist(made), out)
    return out.getvalue()


FILES = {
    "README.md": CARD,
    "data/train-00000-of-00002.parquet": parquet(0, 40),
    "data/train-00001-of-00002.parquet": parquet(40, 40),
    "extra/more.parquet": parquet(80, 5),
    ".gitattributes": b"*",
    "picture.png": b"\x89PNG",
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    both = {**FILES, "data/test-00000-of-00001.parquet": parquet(900, 7)}
    with serving(Hub("owner/parcels", {COMMITS["main"]: FILES, COMMITS["v1"]: both})) as running:
        yield running


def ask(hub: Hub, *arguments: str | Path, cwd: Path, **more: str) -> Done:
    settings = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "LUTHIER_OFFLINE": "0", "HF_HOME": str(cwd / "hf")}
    return luthier(*arguments, cwd=cwd, **{**settings, "LUTHIER_HOME": str(cwd / "home"), **more})


def test_a_data_set_a_folder_a_pattern_and_a_file(hub: Hub, tmp_path: Path) -> None:
    name = "hf://datasets/owner/parcels"
    asked = {
        name: 85,
        f"{name}/data": 80,
        f"{name}@v1/extra": 5,
        f"{name}@v1/data/train-*.parquet": 80,
        f"{name}@{COMMITS['v1']}/data/test-00000-of-00001.parquet": 7,
    }
    assert fetched(list(asked), cwd=tmp_path, HF_ENDPOINT=hub.url) == asked
    assert not [path for path in hub.asked if path.endswith(".png")], "only data is copied, and the card"
    for url in (name, f"{name}@v1/data/train-00000-of-00002.parquet"):
        seen = ask(hub, "data", "inspect", url, "--json", cwd=tmp_path).succeeds().document["profile"]
        assert (seen["path"], seen["license"]) == (url, "cc-by-4.0")


@pytest.mark.slow
def test_the_commit_is_pinned_and_written_down(hub: Hub, tmp_path: Path) -> None:
    url = "hf://datasets/owner/parcels/data"
    ask(hub, "init", url, cwd=tmp_path).succeeds()
    small = ["--set", f"model.name={paper_model(tmp_path / 'model')}", "--set", "data.privacy.profile=fast"]
    made = ask(hub, "check", "data.yaml", *small, "--json", cwd=tmp_path).succeeds().document
    assert made["recipe"]["data"]["train"][0]["path"] == url
    assert made["recipe"]["data"]["train"][0]["license"] == "cc-by-4.0"
    assert made["versions"] == {url: f"commit {COMMITS['main']}"}
    assert "stated by the data set" in made["reasons"]["data.train.0.license"]
    assert not [path for path in hub.asked if "/resolve/main/" in path], "only what is pinned is read"
    before = len([path for path in hub.asked if "/resolve/" in path])
    ask(hub, "check", "data.yaml", *small, "--json", cwd=tmp_path).succeeds()
    assert len([path for path in hub.asked if "/resolve/" in path]) == before, "a commit is copied once"
    report = ask(hub, "prepare", "data.yaml", *small, "--json", cwd=tmp_path).succeeds().document
    assert report["rows_in"] == 80
    resolved = next((tmp_path / "runs").rglob("recipe.resolved.json"))
    assert COMMITS["main"] in resolved.read_text()


def test_what_cannot_be_had_is_said(hub: Hub, tmp_path: Path) -> None:
    name = "hf://datasets/owner/parcels"
    asked = {
        "hf://datasets/owner/nosuch": ["cannot be fetched", "HF_TOKEN"],
        f"{name}@v9": ["cannot be fetched"],
        f"{name}/nosuch": ["cannot be fetched"],
        f"{name}@v1": ["several splits: test, train", f"{name}@v1/data/test-*"],
        "hf://owner/parcels": ["no data set of the hub", "hf://datasets/OWNER/NAME"],
    }
    said = fetched(list(asked), cwd=tmp_path, HF_ENDPOINT=hub.url)
    for url, words in asked.items():
        for word in [url, *words]:
            assert word in said[url]
    done = ask(hub, "data", "inspect", name, "--offline", cwd=tmp_path)
    done.fails(2, f"offline: {name} is on another machine", "--offline")


def test_a_token_is_taken_from_the_environment_and_never_shown(hub: Hub, tmp_path: Path) -> None:
    hub.token = TOKEN
    ask(hub, "data", "inspect", "hf://datasets/owner/parcels/data", cwd=tmp_path).fails(2, "HF_TOKEN")
    done = ask(hub, "data", "inspect", "hf://datasets/owner/parcels/data", cwd=tmp_path, HF_TOKEN=TOKEN).succeeds()
    assert TOKEN not in done.out + done.err
    for path in (tmp_path / "home").rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()


def test_a_clone_is_read_with_its_license(tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / "parcels" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "parcels" / name).write_bytes(content)
    done = luthier("data", "inspect", "parcels", cwd=tmp_path).succeeds()
    assert "85 rows" in done.out
    assert "license: cc-by-4.0" in done.out
    one = luthier("data", "inspect", "parcels/data/train-00000-of-00002.parquet", "--json", cwd=tmp_path)
    assert one.succeeds().document["profile"]["license"] == "cc-by-4.0"
    recipe = yaml.safe_load(one.document["recipe"])
    assert "license" not in recipe["data"]["train"][0], "what the data states needs no saying"


def test_what_datasets_saves_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "kind": datasets.ClassLabel(names=["a", "b"])})
    rows = {"text": [f"where is parcel {n}" for n in range(50)], "kind": [n % 2 for n in range(50)]}
    made = datasets.Dataset.from_dict(rows, features=features)
    made.info.license = "mit"
    made.save_to_disk(str(tmp_path / "saved"), num_shards=3)
    found = luthier("data", "inspect", "saved", "--json", cwd=tmp_path).succeeds().document["profile"]
    assert (found["num_rows"], found["labels"], found["license"]) == (50, {"a": 25, "b": 25}, "mit")
