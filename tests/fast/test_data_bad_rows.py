"""Rows that cannot be read: none is lost, too many stop the run, and what is kept of them gives nothing away."""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from data_kit import resolved, tokenizer_folder
from hypothesis import given
from hypothesis import strategies as st

from luthier.data import bad_rows
from luthier.data.bad_rows import quarantine
from luthier.data.prepare import prepare
from luthier.data.privacy.profiles import FAST
from luthier.data.read import Fault
from luthier.data_report import DataReport
from luthier.errors import DataError, DiskFull

KEY = "AKIA" + "IOSFODNN7EXAMPLE"
MAIL = "ana@example.org"


def write(folder: Path, bad: list[bytes], *, good: int = 60) -> None:
    lines = [f"text number {number} of all,{'ab'[number % 2]}".encode() for number in range(good)]
    (folder / "data.csv").write_bytes(b"\n".join([b"message,intent", *lines, *bad]) + b"\n")


def run(folder: Path, **data: Any) -> DataReport:
    tokenizer = tokenizer_folder(folder / "tokenizer")
    return prepare(resolved(folder, **data), tokenizer_folder=tokenizer, out=folder / "out")


def kept(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / "quarantine.jsonl").read_text().splitlines()]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for path in (tmp_path / "out").glob("*"):  # whatever happened, no secret stands in anything that was written
        assert KEY.encode() not in path.read_bytes()
        assert KEY not in base64_contents(path)


def base64_contents(path: Path) -> str:
    if path.name != "quarantine.jsonl":
        return ""
    return "".join(
        base64.b64decode(json.loads(line).get("raw", "")).decode(errors="replace")
        for line in path.read_text().splitlines()
    )


def test_raw_bytes_are_kept_to_the_byte(place: Path) -> None:
    bad = ["one, two, three €".encode(), b"caf\xe9,a", b"nul \0,b", b'"two\nlines",x,y']
    write(place, bad)
    report = run(place, max_bad_rows=0.1)
    assert (report.rows_in, report.rows_out, report.quarantined) == (64, 60, 4)
    assert report.rows_in == report.rows_out + sum(report.dropped.values())
    rows = kept(place)
    assert [(row["file"], row["line"], row["reason"]) for row in rows] == [
        ("data.csv", 62, "wrong_cell_count"), ("data.csv", 63, "undecodable"), ("data.csv", 64, "nul_character"),
        ("data.csv", 65, "wrong_cell_count"),
    ]  # fmt: skip
    assert [base64.b64decode(row["raw"]) for row in rows] == [line + b"\n" for line in bad]
    assert stat.S_IMODE((place / "out" / "quarantine.jsonl").stat().st_mode) == 0o600
    assert {path.name for path in (place / "out").iterdir() if path.name.startswith(".")} == set()


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252", "utf-8-sig"])
def test_raw_bytes_are_those_of_the_files_encoding(place: Path, encoding: str) -> None:
    lines = [f"tëxt number {number},{'ab'[number % 2]}" for number in range(60)]
    (place / "data.csv").write_bytes("\n".join(["message,intent", *lines, "é,b,c", ""]).encode(encoding))
    run(place, max_bad_rows=0.1)
    (row,) = kept(place)
    assert base64.b64decode(row["raw"]).decode(row["encoding"]) == "é,b,c\n"
    assert (place / "data.csv").read_bytes().find(base64.b64decode(row["raw"])) > 0


SPOILED = [
    f"my key is {KEY},a,b",
    f"my k\0ey is {KEY[:6]}\0{KEY[6:]},a",
    "mail " + MAIL.replace("@", "\0@") + ",a",
    f"mail {MAIL},a,b",
]


@pytest.mark.parametrize("action", ["report", "redact", "drop"])
@pytest.mark.parametrize("line", SPOILED)
def test_nothing_that_is_to_be_removed_stands_in_quarantine(place: Path, action: str, line: str) -> None:
    write(place, [line.encode()])
    run(place, max_bad_rows=0.1, privacy={"action": action, "secrets": "redact"})
    (row,) = kept(place)
    if "raw" in row:
        assert action == "report"
        assert "mail" in line
        return
    assert "[SECRET]" in row["text"] or "[EMAIL]" in row["text"]
    assert row["note"].startswith("the raw bytes are not kept: ")
    assert MAIL not in row["text"]
    assert "example.org" not in row["text"]


def test_an_escaped_address_is_found_too(place: Path) -> None:
    rows = [json.dumps({"message": f"text number {n}", "intent": "ab"[n % 2]}) for n in range(60)]
    rows.append('{"message": "mail ana\\u0040example.org", "message": 1}')
    (place / "data.jsonl").write_text("\n".join(rows))
    run(place, path="data.jsonl", max_bad_rows=0.1, privacy={"action": "redact", "secrets": "redact"})
    (row,) = kept(place)
    assert row["reason"] == "duplicate_key"
    assert "raw" not in row
    assert "[EMAIL]" in row["text"]


def test_a_find_is_not_cut_in_two_and_a_long_row_is(place: Path) -> None:
    filler = "x " * (bad_rows._MOST_CHARS // 2 - 5)
    write(place, [f"{filler}{KEY},a,b".encode(), f"{filler}{filler},a,b".encode()])
    run(place, max_bad_rows=0.1)
    first, second = kept(place)
    assert KEY[:5] not in first["text"]
    assert len(base64.b64decode(second["raw"])) == bad_rows._MOST_CHARS
    assert second["chars"] == 2 * len(filler) + len(",a,b\n")


def test_no_file_is_left_where_no_row_was_kept(place: Path) -> None:
    write(place, [b"one,two,three"])
    run(place, max_bad_rows=0.1)
    assert (place / "out" / "quarantine.jsonl").is_file()
    write(place, [])
    run(place)
    assert not (place / "out" / "quarantine.jsonl").exists()


@pytest.mark.parametrize(("bad", "good", "fine"), [(1, 99, True), (2, 198, True), (1, 98, False), (2, 197, False)])
def test_one_in_a_hundred_may_go_by_default(place: Path, bad: int, good: int, fine: bool) -> None:
    write(place, [b"one,two,three"] * bad, good=good)
    if fine:
        assert run(place).quarantined == bad
        return
    with pytest.raises(DataError, match=rf"data.csv: {bad} of {bad + good} rows cannot be read .* wrong_cell_count"):
        run(place)
    assert not (place / "out" / "report.json").exists()
    assert len(kept(place)) == bad, "what is wrong can be looked at"


def test_the_message_has_counts_and_first_lines_by_reason(place: Path) -> None:
    write(place, [b"one,two,three"] * 7 + [b"nul \0,a"], good=60)
    with pytest.raises(DataError) as error:
        run(place, max_bad_rows=0.05)
    assert "8 of 68 rows cannot be read (11.76%), more than data.max_bad_rows allows (5.00%)" in error.value.what
    assert "7 wrong_cell_count in lines 62, 63, 64, 65, 66, ... (3 cells, the header has 2)" in error.value.what
    assert "1 nul_character in line 69 (the row holds a NUL character)" in error.value.what
    assert "data.max_bad_rows" in error.value.way_out
    assert "luthier data inspect" in error.value.way_out


def test_fail_means_the_first_one(place: Path) -> None:
    write(place, [b"one,two,three"], good=300)
    with pytest.raises(DataError, match=r"data\.bad_rows is 'fail'"):
        run(place, bad_rows="fail")
    write(place, [], good=60)
    assert run(place, bad_rows="fail").quarantined == 0


def test_each_file_is_held_to_the_limit_by_itself(place: Path) -> None:
    write(place, [], good=300)
    (place / "test.csv").write_text("message,intent\nwell done,a\nnot so,b\none,two,three\n")
    with pytest.raises(DataError, match=r"test.csv: 1 of 3 rows cannot be read"):
        run(place, test="test.csv")
    assert run(place, test="test.csv", max_bad_rows=0.5).quarantined == 1


def test_a_disk_that_fills_up_is_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskFull), quarantine(tmp_path / "q.jsonl", detector=FAST, keep_personal=True) as keep:
        keep("a", Fault(1, "reason", "detail", text="text"), "utf-8")
    assert not list(tmp_path.iterdir())


@given(
    text=st.text(st.characters(exclude_categories=[])), encoding=st.sampled_from(["utf-8", "utf-16", "", "utf-8-sig"])
)
def test_every_text_can_be_kept(text: str, encoding: str) -> None:
    entry = bad_rows._entry("f", Fault(1, "r", "d", text=text), encoding, detector=FAST, keep_personal=False)
    json.dumps(entry).encode()
    if "raw" in entry:
        raw = base64.b64decode(str(entry["raw"]))
        assert raw.decode(str(entry["encoding"]), "surrogatepass" if "utf-8" not in encoding else "replace") is not None
