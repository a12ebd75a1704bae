"""Documents, folders and archives that somebody or something has spoiled: text, one message, nothing else, nowhere."""

from __future__ import annotations

import os
import resource
import time
import zipfile
from pathlib import Path
from typing import Any

import fsspec
import pytest
from data_kit import resolved, tokenizer_folder
from fsspec.implementations.memory import MemoryFile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_data_documents import HTML, MARKDOWN, paragraph, word
from test_data_formats import write_workbook

from luthier.data.fetch import fetch
from luthier.data.prepare import prepare
from luthier.data.read import Fault, Row, rows
from luthier.errors import DataError, UserError

EXAMPLES = int(os.environ.get("LUTHIER_FUZZ_EXAMPLES", "0"))
quick = settings(
    max_examples=EXAMPLES or 25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def read_all(path: Path) -> list[Row | Fault] | str:
    try:
        return list(rows(path))
    except UserError as error:
        said = error
    assert path.name in said.what
    assert said.way_out
    return str(said)


WRITERS: dict[str, Any] = {
    "a.docx": lambda path: word(
        path, paragraph("Returns", "Heading1") + "".join(paragraph(f"p {n}") for n in range(9))
    ),
    "a.html": lambda path: path.write_text(HTML),
    "a.md": lambda path: path.write_text(MARKDOWN),
    "a.txt": lambda path: path.write_text("one\n\ntwo\n\nthree\n"),
}


@pytest.mark.parametrize("name", WRITERS)
@quick
@given(data=st.data())
def test_a_spoiled_document_never_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("spoiled") / name
    WRITERS[name](path)
    content = bytearray(path.read_bytes())
    cut = data.draw(st.integers(0, len(content)) | st.just(len(content)), label="cut")
    places = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255))
    for place, byte in data.draw(st.lists(places, max_size=6)):
        content[place] = byte
    path.write_bytes(content[:cut])
    read_all(path)


@quick
@given(inner=st.text(st.sampled_from("<>/!-&;#x\"'= pdivscrtab[]?CDATA\n\0é\ud800"), max_size=80))
def test_any_markup(tmp_path_factory: pytest.TempPathFactory, inner: str) -> None:
    folder = tmp_path_factory.mktemp("markup")
    (folder / "a.html").write_bytes(f"<p>start</p>{inner}<p>end".encode("utf-8", "surrogatepass"))
    read_all(folder / "a.html")
    (folder / "a.md").write_bytes(f"# start\n{inner}\n\nend".encode("utf-8", "surrogatepass"))
    read_all(folder / "a.md")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_document_type_is_found_wherever_it_hides(tmp_path: Path, encoding: str) -> None:
    """Entities that grow are declared there; behind a long comment and in another encoding too."""
    part = f'<?xml version="1.0" encoding="{encoding}"?><!-- {"x" * 5000} --><!DOCTYPE d [<!ENTITY a "b">]>'
    with zipfile.ZipFile(tmp_path / "a.docx", "w") as archive:
        archive.writestr("word/document.xml", f"{part}<d><body><p><t>&a;</t></p></body></d>".encode(encoding))
    assert "declares a document type" in str(read_all(tmp_path / "a.docx"))


@pytest.mark.parametrize("suffix", ["docx", "xlsx", "dat"])
@pytest.mark.parametrize(
    ("place", "value"),
    [(6, b"\x40"), (8, b"\x00\x08" + b"\0" * 36 + b"\x80"), (42, b"\xff\xff\xff\xff"), (10, b"\x63\x00"), (8, b"\x01")],
    ids=["later version", "broken name", "place before the file", "unknown packing", "encrypted"],
)
def test_a_damaged_directory_of_an_archive(tmp_path: Path, place: int, value: bytes, suffix: str) -> None:
    """Each lets Python's own reader raise something else."""
    path = word(tmp_path / "a.docx", paragraph("text")).rename(tmp_path / f"a.{suffix}")
    content = bytearray(path.read_bytes())
    for start in [at for at in range(len(content)) if content.startswith(b"PK\x01\x02", at)]:
        content[start + place : start + place + len(value)] = value
    path.write_bytes(content)
    assert isinstance(read_all(path), str)


def test_markup_nested_into_the_ground_costs_neither_time_nor_stack(tmp_path: Path) -> None:
    deep = 100_000
    (tmp_path / "a.html").write_text("<div>" * deep + "text" + "</div>" * deep)
    word(tmp_path / "a.docx", paragraph("text") + "<w:p>" * deep + "</w:p>" * deep)
    (tmp_path / "a.md").write_text(">" * deep + " text\n\n" + "- " * deep + "\n\n" + "[" * deep)
    before = time.process_time()
    for name in ("a.html", "a.docx", "a.md"):
        read_all(tmp_path / name)
    assert time.process_time() - before < 20


def test_names_in_an_archive_lead_nowhere(tmp_path: Path) -> None:
    """Nothing is ever unpacked to the disk, so that a name such as '../../evil' is just a name."""
    (tmp_path / "in").mkdir()
    names = ["../../evil", "/evil", "..\\evil", "word/../../evil.xml", "C:\\evil", "con"]
    word(tmp_path / "in" / "a.docx", paragraph("text"))
    write_workbook(tmp_path / "in" / "a.xlsx", {"s": [["a", "b"], ["1", "2"]]})
    for name in ("a.docx", "a.xlsx"):
        with zipfile.ZipFile(tmp_path / "in" / name, "a") as archive:
            for one in names:
                archive.writestr(one, "evil")
        assert [type(item) for item in read_all(tmp_path / "in" / name)] == [Row]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.docx", "a.xlsx", "in"]


@pytest.mark.parametrize("name", ["../../../evil.jsonl", "/evil.jsonl", "a\\..\\evil.jsonl"])
def test_a_name_in_a_store_cannot_lead_out_of_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A key of an object store may be any text."""
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))
    store = fsspec.filesystem("memory")
    monkeypatch.setattr(store, "store", {})
    for key in ("/slip/good.jsonl", f"/slip/{name}"):
        store.store[key] = MemoryFile(store, key, b'{"a": 1}\n')
    if name.startswith("."):
        copied = fetch("memory://slip", query=None, offline=True)
        assert copied is not None
        assert [path.name for path in copied.path.iterdir()] == ["good.jsonl"], "as hidden files are, left where it is"
    else:
        with pytest.raises(DataError, match=r"memory://slip: it holds a name that leads elsewhere"):
            fetch("memory://slip", query=None, offline=True)
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith("evil.jsonl")]


def test_a_bomb_in_a_document_is_refused_unread(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with (
        zipfile.ZipFile(tmp_path / "a.docx", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("word/document.xml", "w", force_zip64=True) as part,
    ):
        for _ in range(200):
            part.write(b" " * (1 << 20))
    assert "grows to 209,715,200 bytes" in str(read_all(tmp_path / "a.docx"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_files_of_a_folder_are_quarantined_each_in_its_own_encoding(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    good = "".join(f"message number {n} of thé lot,{'ab'[n % 2]}\n" for n in range(60))
    (tmp_path / "data" / "1.csv").write_bytes(f"message,intent\n{good}".encode("cp1252"))
    more = good.replace("number", "numéro") + "🎸 ✓,one,too many\n"
    (tmp_path / "data" / "2.csv").write_bytes(f"message,intent\n{more}".encode())
    recipe = resolved(tmp_path, path="data")
    report = prepare(recipe, tokenizer_folder=tokenizer_folder(tmp_path / "tokenizer"), out=tmp_path / "out")
    assert report.quarantined == 1
    assert '"encoding": "utf-8"' in (tmp_path / "out" / "quarantine.jsonl").read_text()
