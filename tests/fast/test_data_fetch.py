"""What is not on this machine is copied once, by content; a password is nowhere but in the environment."""

from __future__ import annotations

import json
import sqlite3
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from command import luthier, paper_model
from luthier.data import fetch as fetching
from luthier.data.read import Fault, Row, rows
from luthier.errors import DataError, MissingExtra, RecipeError
from luthier.spec.load import load_recipe
from luthier.store.files import sha256_file
from tiny import write_recipe

SECRET = "hunter2-secret"


def fetch(named: str, **more: Any) -> Path | None:
    """The local copy."""
    found = fetching.fetch(named, **more)
    return found.path if found else None


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "data"


def database(path: Path) -> Path:
    made = sqlite3.connect(path)
    made.execute("CREATE TABLE t (text, kind, n)")
    rows = [(f"text number {n} of some length", "late" if n % 2 else "broken", n) for n in range(60)]
    made.executemany("INSERT INTO t VALUES (?, ?, ?)", rows)
    made.commit()
    made.close()
    return path


# --- files ---


def test_a_file_of_this_machine_is_left_where_it_is(cache: Path) -> None:
    assert fetch("data/messages.csv", query=None, offline=True) is None
    assert not cache.exists()


def test_a_remote_file_is_copied_once_by_content(cache: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    store.pipe("/bucket/messages.csv", b"a,b\n1,2\n")
    first = fetch("memory://bucket/messages.csv", query=None, offline=True)
    assert first is not None
    assert first == cache / sha256_file(first) / "messages.csv"
    assert list(rows(first)) == [Row(2, {"a": "1", "b": "2"})]
    assert stat.S_IMODE(first.stat().st_mode) == 0o600
    assert stat.S_IMODE(first.parent.stat().st_mode) == 0o700
    before = first.stat().st_mtime_ns
    assert fetch("memory://bucket/messages.csv", query=None, offline=True) == first
    assert first.stat().st_mtime_ns == before, "what has not changed is not copied again"
    store.pipe("/bucket/messages.csv", b"a,b\n1,3\n")
    second = fetch("memory://bucket/messages.csv", query=None, offline=True)
    assert second is not None
    assert second != first
    assert first.read_bytes() == b"a,b\n1,2\n", "a run keeps the rows it was made with"


def test_a_file_url_of_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    local = fetch(f"file://{tmp_path}/a.jsonl", query=None, offline=True)
    assert local is not None
    assert local.read_bytes() == b'{"a": 1}\n'


def test_urls_that_cannot_be_fetched(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(DataError, match=r"memory://bucket/nosuch\.csv cannot be fetched: FileNotFoundError"):
        fetch("memory://bucket/nosuch.csv", query=None, offline=True)
    for url in ("s3://b/k.csv", "gs://b/k.csv", "az://b/k.csv", "https://b/k.csv", "hf://datasets/b/k"):
        with pytest.raises(DataError, match=f"offline: {url} is on another machine"):
            fetch(url, query=None, offline=True)
    with pytest.raises(DataError, match=r"is a file: query .* is for databases"):
        fetch("memory://b/k.csv", query="SELECT 1", offline=True)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingExtra, match=r"'s3fs', which is not installed\n  -> pip install 'luthier\[cloud\]'"):
        fetch("s3://b/k.csv", query=None, offline=False)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingExtra, match="'fsspec'"):
        fetch("s3://b/k.csv", query=None, offline=False)


# --- databases ---


def test_rows_of_a_query_are_copied(tmp_path: Path, cache: Path) -> None:
    pytest.importorskip("sqlalchemy")
    path = database(tmp_path / "a.db")
    query = "SELECT n, text AS t, '12:30' AS at, '100%' AS share FROM t ORDER BY n DESC"
    local = fetch("sqlite:///${DB_FILE}", query=query, offline=True, environment={"DB_FILE": str(path)})
    assert local is not None
    found = list(rows(local))
    assert found[0] == Row(1, {"n": 59, "t": "text number 59 of some length", "at": "12:30", "share": "100%"})
    assert len(found) == 60
    assert stat.S_IMODE(local.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("named", "query", "words"),
    [
        ("sqlite:///${DB_FILE}", None, "it takes a query"),
        ("sqlite:///${DB_FILE}", "SELECT nope FROM t", "the database answered OperationalError"),
        ("sqlite:///${DB_FILE}", "SELECT n, n FROM t", "gives 'n' twice"),
        ("sqlite:////no/such/${PW}/folder.db", "SELECT 1", "the database answered OperationalError"),
        ("sqlite:///${DB_FILE}", "gibberish ${PW}", "the database answered OperationalError"),
        ("nosuch://u:${PW}@localhost/x", "SELECT 1", "is no URL of a database or of a file that is known"),
        ("postgresql+pg8000://u:${PW}@localhost/x", "SELECT 1", "driver 'pg8000' is not installed"),
        ("postgresql://u:${PW}@db.example.org/x", "SELECT 1", "offline: .* is on another machine"),
    ],
)
def test_databases_that_cannot_be_used_say_so_without_the_password(
    tmp_path: Path, cache: Path, named: str, query: str | None, words: str
) -> None:
    pytest.importorskip("sqlalchemy")
    environment = {"DB_FILE": str(database(tmp_path / "a.db")), "PW": SECRET}
    with pytest.raises(DataError, match=words) as error:
        fetch(named, query=query, offline=True, environment=environment)
    assert SECRET not in str(error.value)
    assert named in error.value.what
    assert error.value.way_out
    assert not list(cache.glob("*")), "nothing is left of what was not finished"


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(MissingExtra, match=r"'sqlalchemy', which is not installed\n  -> pip install 'luthier\[sql\]'"):
        fetch("sqlite:///x.db", query="SELECT 1", offline=True)


# --- the recipe ---


@pytest.mark.parametrize("url", ["${DB_URL}", "sqlite:///${DB_FILE}"])
def test_a_run_on_a_database_keeps_no_secret(tmp_path: Path, url: str) -> None:
    pytest.importorskip("sqlalchemy")
    write_recipe(tmp_path, paper_model(tmp_path / "model"))
    tree = yaml.safe_load((tmp_path / "tiny.yaml").read_text())
    query = "SELECT text, kind FROM t"
    tree["data"]["train"] = [{**tree["data"]["train"][0], "path": url, "query": query}]
    tree["data"]["split"] = {"test": 0.25, "validation": 0.1}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    file = database(tmp_path / f"{SECRET}.db")
    more = {"DB_URL": f"sqlite:///{file}", "DB_FILE": str(file)}
    done = luthier("prepare", "tiny.yaml", "--json", cwd=tmp_path, **more).succeeds()
    assert done.document["rows_in"] == 60
    assert list(done.document["source_sha256"]) == [url]
    for path in (tmp_path / "runs").rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    assert SECRET not in done.out + done.err
    made = json.loads(next((tmp_path / "runs").rglob("recipe.resolved.json")).read_text())
    assert made["recipe"]["data"]["train"][0]["path"] == url


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:{SECRET}@host/x",
        f"postgresql://host/x?user=u&password={SECRET}",
        f"postgresql://u:${{PW}}{SECRET}@host/x",
        f"az://c/x.csv?sig={SECRET}",
    ],
)
@pytest.mark.parametrize("key", ["train", "test", "benchmarks", "annotations"])
def test_a_password_in_a_recipe_is_refused(tmp_path: Path, url: str, key: str) -> None:
    data = {
        "train": {"train": [{"path": url}]},
        "test": {"train": [{"path": "a.csv"}], "test": url},
        "benchmarks": {"train": [{"path": "a.csv"}], "leakage": {"benchmarks": ["b.csv", url]}},
        "annotations": {"train": [{"path": "a.csv"}], "privacy": {"profile": "maximum", "annotations": url}},
    }[key]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"name": "r", "model": "m", "data": data}))
    with pytest.raises(RecipeError, match=r"r.yaml:\d+: data\.\S+: a password stands in the URL") as error:
        load_recipe(tmp_path / "r.yaml", environment={"PW": "x"})
    assert SECRET not in str(error.value)
    assert "${NAME}" in error.value.way_out


def test_a_password_in_an_override_is_refused_and_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("name: r\nmodel: m\ndata: {train: a.csv}\n")
    with pytest.raises(RecipeError, match=r"--set: data\.test: a password stands in the URL") as error:
        load_recipe(tmp_path / "r.yaml", overrides=[f"data.test=postgresql://u:{SECRET}@h/d"])
    assert SECRET not in str(error.value)


def test_what_a_store_says_of_a_file_cut_short_is_no_row(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = pytest.importorskip("fsspec").filesystem("memory")
    store.pipe("/bucket/long.csv", b"a,b\n1,2\n" * 99)
    whole = store.info("/bucket/long.csv")
    monkeypatch.setattr(type(store), "info", lambda *_: whole | {"size": whole["size"] + 1})
    with pytest.raises(DataError, match=r"memory://bucket/long\.csv cannot be fetched: CutShort"):
        fetch("memory://bucket/long.csv", query=None, offline=True)
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_bytes_of_a_database_are_text_or_set_aside(tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy")
    made = sqlite3.connect(tmp_path / "a.db")
    made.execute("CREATE TABLE t (a)")
    made.executemany("INSERT INTO t VALUES (?)", [(b"caf\xc3\xa9",), (b"\xff\xfe",)])
    made.commit()
    made.close()
    local = fetch(f"sqlite:///{tmp_path}/a.db", query="SELECT a FROM t", offline=True)
    assert local is not None
    first, second = rows(local)
    assert first == Row(1, {"a": "café"})
    assert isinstance(second, Fault)
    assert second.reason == "undecodable"


def test_a_url_keeps_its_names_and_a_file_does_not(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("name: r\nmodel: m\ndata: {train: 'x://u:${PW}@h/d', test: '${F}.csv'}\n")
    recipe = load_recipe(tmp_path / "r.yaml", environment={"PW": SECRET, "F": "held"}).recipe
    assert (recipe.entry.path, recipe.data.test) == ("x://u:${PW}@h/d", "held.csv")
    with pytest.raises(RecipeError, match=r"\$\{PW\} is not set in the environment"):
        load_recipe(tmp_path / "r.yaml", environment={"F": "held"})
