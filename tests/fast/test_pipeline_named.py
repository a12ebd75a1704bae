"""Commands take what recipes take: files, folders, URLs and databases; what they write never holds a password."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import fsspec
import pytest
import yaml
from echo_engine import asker
from fsspec.implementations.memory import MemoryFile

from command import call
from luthier.errors import DataError
from luthier.pipeline.answers import predict
from luthier.pipeline.named import Named, opened

SECRET = "hunter2-secret"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))
    store = fsspec.filesystem("memory")
    monkeypatch.setattr(store, "store", {})
    lines = "".join(json.dumps({"text": f"parcel number {n}", "kind": "ab"[n % 2]}) + "\n" for n in range(60))
    store.store["/bucket/parts/a.jsonl"] = MemoryFile(store, "/bucket/parts/a.jsonl", lines.encode() + b"[broken\n")
    store.store["/bucket/parts/b.jsonl"] = MemoryFile(store, "/bucket/parts/b.jsonl", lines.encode())


def database(path: Path) -> str:
    made = sqlite3.connect(path)
    made.execute("CREATE TABLE messages (text, kind)")
    made.executemany("INSERT INTO messages VALUES (?, ?)", [(f"parcel number {n}", "ab"[n % 2]) for n in range(60)])
    made.commit()
    made.close()
    return f"sqlite:///{path}"


@pytest.mark.parametrize(
    "url", ["memory://bucket/parts", "memory://bucket/parts/*.jsonl", "memory://bucket/parts/b.jsonl"]
)
def test_init_writes_a_recipe_for_a_url_here(tmp_path: Path, url: str) -> None:
    made = call("init", url, "--json", cwd=tmp_path).succeeds().document
    assert Path(made["recipe"]).name == made["recipe"]
    recipe = yaml.safe_load((tmp_path / made["recipe"]).read_text())
    assert recipe["data"]["train"][0]["path"] == made["profile"]["path"] == url
    seen = call("data", "inspect", url, "--json", cwd=tmp_path).succeeds().document
    assert yaml.safe_load(seen["recipe"]) == recipe


def test_faults_are_told_under_the_name_that_the_user_gave(tmp_path: Path) -> None:
    done = call("data", "inspect", "memory://bucket/parts", cwd=tmp_path).succeeds()
    assert "1 invalid_json in lines a.jsonl:61" in done.out
    done = call("data", "inspect", "memory://bucket/parts/a.jsonl", "--sheet", "x", cwd=tmp_path)
    assert str(tmp_path) not in done.fails(2, "memory://bucket/parts/a.jsonl is jsonl").err
    call("data", "inspect", "memory://bucket/nosuch", cwd=tmp_path).fails(2, "memory://bucket/nosuch cannot be fetched")
    call("data", "inspect", "memory://bucket/parts/*.csv", cwd=tmp_path).fails(2, "holds no data files")


def test_a_database_is_looked_at_and_gets_a_recipe(tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy")
    url, query = database(tmp_path / f"{SECRET}.db"), "SELECT text, kind FROM messages"
    for named in ("${DB_URL}", "sqlite:///${DB_FILE}"):
        more = {"DB_URL": url, "DB_FILE": url.removeprefix("sqlite:///")}
        done = call("init", named, "--query", query, "-o", "r.yaml", "--json", cwd=tmp_path, **more).succeeds()
        entry = yaml.safe_load((tmp_path / "r.yaml").read_text())["data"]["train"][0]
        assert (entry["path"], entry["query"], entry["label"]) == (named, query, "kind")
        assert SECRET not in done.out + done.err + (tmp_path / "r.yaml").read_text()
        (tmp_path / "r.yaml").unlink()
        done = call("data", "inspect", named, "--query", query, cwd=tmp_path, **more).succeeds()
        assert "60 rows" in done.out
        assert SECRET not in done.out + done.err
        call("data", "inspect", named, cwd=tmp_path, **more).fails(
            2, f"{named} is a database: it takes a query", "--query"
        )


def test_a_password_on_the_command_line_is_refused_and_not_repeated(tmp_path: Path) -> None:
    for url in (
        f"postgresql://u:{SECRET}@h/d",
        f"https://h/x.csv?X-Amz-Signature={SECRET}",
        f"s3://b/x?token={SECRET}",
    ):
        for verb in (["init"], ["data", "inspect"]):
            done = call(*verb, url, "--query", "SELECT 1", cwd=tmp_path).fails(
                2, "a password stands in the URL", "${NAME}"
            )
            assert SECRET not in done.err


def test_options_that_were_needed_to_read_it_are_in_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "odd.dat").write_text("text,kind\n" + "".join(f"parcel number {n},{'ab'[n % 2]}\n" for n in range(60)))
    call("init", "odd.dat", "--format", "csv", "-o", "r.yaml", cwd=tmp_path).succeeds()
    assert yaml.safe_load((tmp_path / "r.yaml").read_text())["data"]["train"][0]["format"] == "csv"


@pytest.mark.parametrize(
    ("text", "name", "folder"),
    [
        ("data/a.csv", "a.csv", "data"),
        ("s3://b/k/a.csv.gz", "a.csv.gz", "."),
        ("hf://datasets/owner/name@v1", "name", "."),
        ("hf://datasets/owner/name@v1/data/a.parquet", "a.parquet", "."),
        ("https://h/a.csv?x=1", "a.csv", "."),
        ("postgresql://u:${PW}@h/shop", "shop", "."),
        ("${NOT_SET}.csv", "${NOT_SET}.csv", "."),
    ],
)
def test_names(text: str, name: str, folder: str) -> None:
    assert (Named(text).name, str(Named(text).folder)) == (name, folder)


def test_predict_reads_a_url_and_names_the_file_of_each_row(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    found = opened(Named("memory://bucket/parts"), offline=True)
    counts = predict(asker(1.0), found, output=out, progress=lambda *_: None)
    assert counts == {"answered": 120, "faults": 1}
    said = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(one["file"], one["line"]) for one in said[59:62]] == [("a.jsonl", 60), ("a.jsonl", 61), ("b.jsonl", 1)]
    assert said[60]["error"] == "invalid_json"


def test_predict_names_what_the_user_named(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.store["/bucket/c.csv"] = MemoryFile(store, "/bucket/c.csv", b"other,kind\nx,y\n")
    with pytest.raises(DataError, match=r"memory://bucket/c\.csv: the input template .* names the column 'text'"):
        predict(
            asker(1.0), opened(Named("memory://bucket/c.csv"), offline=True),
            output=tmp_path / "out.jsonl", progress=lambda *_: None,
        )  # fmt: skip
