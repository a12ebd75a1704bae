"""What is wrong with a recipe or a file is said once, with place and way out; nothing that was made is lost."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from command import COMMAND, call, environment, luthier, paper_model
from luthier.data_report import DataReport
from luthier.store.runs import RunFolder
from tiny import write_messages, write_recipe

ROWS = [f"c{number},text number {number} of some length,{'late' if number % 2 else 'broken'}" for number in range(60)]
GOOD = "\n".join(["customer,text,kind", *ROWS]) + "\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paper_model(tmp_path_factory.mktemp("paper") / "model")


@pytest.fixture
def place(tmp_path: Path, model: Path) -> Path:
    """A folder with a sound recipe and its data."""
    write_recipe(tmp_path, model)
    return tmp_path


def change(place: Path, **data: Any) -> None:
    """Edit the `data` section of the recipe."""
    tree = yaml.safe_load((place / "tiny.yaml").read_text())
    tree["data"] |= data
    (place / "tiny.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))


# --- the recipe ---


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["'bad.yaml' is not a file", "luthier recipes ls"]),
        (b"", ["bad.yaml is empty", "luthier init"]),
        (b"# only a comment\n", ["bad.yaml", "a recipe is a mapping"]),
        (b"\x89PNG\r\n\x1a\n\x00\x00\xff\xfe", ["bad.yaml: byte 0 is not UTF-8"]),
        ("name: é\n".encode("latin-1"), ["bad.yaml: byte 6 is not UTF-8", "as UTF-8 text"]),
        (b"name: [a\nmodel: b\n", ["bad.yaml:2: not YAML"]),
        (b"- a\n- b\n", ["bad.yaml: a recipe is a mapping", "found list"]),
        (b"name: a\nname: b\n", ["bad.yaml:2", "'name' stands twice"]),
        (b"name: a\nmodle: {name: b}\n", ["bad.yaml:2", "unknown key 'modle'", "did you mean 'model'"]),
        (b"name: a\nmodel: {name: b}\n", ["bad.yaml", "'data' is missing"]),
        (b"name: a b\nmodel: {name: b}\ndata: {train: x.csv}\n", ["bad.yaml:1", "name", "'a b'"]),
        (
            b"name: a\nmodel: b\ndata: {train: x.csv}\ntrain:\n  learning_rate: fast\n",
            ["bad.yaml:5", "train.learning_rate", "'fast'"],
        ),
        (b"name: a\nmodel: b\ndata: {train: x.csv}\ncompress: {}\n", ["bad.yaml:4", "'compress'", "not built yet"]),
        (b"name: a\nmodel: ${NOSUCH}\ndata: {train: x.csv}\n", ["${NOSUCH} is not set", "export NOSUCH"]),
        (b"name: a\nmodel: b\ndata: {train: x.csv}\n", ["data.train.0.path: 'x.csv'", "does not exist"]),
    ],
    ids=lambda value: None if isinstance(value, list) else "missing" if value is None else repr(value)[2:30],
)
def test_a_recipe_that_is_wrong(place: Path, content: bytes | None, words: list[str]) -> None:
    if content is not None:
        (place / "bad.yaml").write_bytes(content)
    for verb in ("check", "run"):
        call(verb, "bad.yaml", cwd=place).fails(2, *words)
    assert not (place / "runs").exists()


# --- the data file ---

FILES: dict[str, tuple[bytes | None, list[str]]] = {
    "missing": (None, ["does not exist", "data.train.0.path"]),
    "empty": (b"", ["messages.csv is empty"]),
    "blank": (b"\n \n\n", ["messages.csv is empty"]),
    "header only": (b"customer,text,kind\n", ["messages.csv holds a header and no rows"]),
    "binary": (bytes(range(256)) * 8, ["messages.csv is binary"]),
    "a workbook": (b"PK\x03\x04" + bytes(100), ["messages.csv is a zip archive or an Excel workbook", "CSV"]),
    "another encoding": (
        "текст,kind\n".encode("koi8-r") + "привет,да\n".encode("koi8-r") * 50,
        ["messages.csv is neither UTF-8 nor Windows-1252", "iconv"],
    ),
    "truncated": (gzip.compress(GOOD.encode() * 40)[:-30], ["messages.csv: the gzip archive is truncated"]),
    "twice the same column": (GOOD.replace("customer,text", "text,text").encode(), ["messages.csv", "'text' twice"]),
    "wrong columns": (
        GOOD.replace("text,kind", "txet,kind").encode(),
        ["'text', which is not there", "did you mean 'txet'"],
    ),
    "no label column": (
        GOOD.replace("text,kind", "text,knid").encode(),
        ["data.train.0.label", "'kind'", "did you mean 'knid'"],
    ),
    "every row faulty": (b"customer,text,kind\n" + b"a,b\n" * 20, ["messages.csv", "line 2"]),
}


@pytest.mark.parametrize("fault", FILES)
def test_a_data_file_that_is_wrong_is_found_before_anything_is_made(place: Path, fault: str) -> None:
    content, words = FILES[fault]
    (place / "messages.csv").unlink()
    if content is not None:
        (place / "messages.csv").write_bytes(content)
    for verb in ("check", "run"):
        call(verb, "tiny.yaml", cwd=place).fails(2, *words)
    assert not (place / "runs").exists()


def test_a_data_folder_is_no_file(place: Path) -> None:
    (place / "messages.csv").unlink()
    (place / "messages.csv").mkdir()
    call("run", "tiny.yaml", cwd=place).fails(2, "messages.csv", "folder")


@pytest.mark.parametrize("fault", [name for name in FILES if name not in ("wrong columns", "no label column")])
def test_init_says_the_same_of_the_file(tmp_path: Path, fault: str) -> None:
    content, words = FILES[fault]
    if content is not None:
        (tmp_path / "messages.csv").write_bytes(content)
    call("init", "messages.csv", cwd=tmp_path).fails(2, *(word for word in words if "data." not in word))
    assert not (tmp_path / "messages.yaml").exists()


def one_label(place: Path) -> None:
    (place / "messages.csv").write_text(GOOD.replace("broken", "late"))


def unknown_label_in_the_test_file(place: Path) -> None:
    (place / "test.csv").write_text("customer,text,kind\nz1,all is well,late\nz2,what is this,strange\n")
    change(place, test="test.csv")


def broken_test_file(place: Path) -> None:
    (place / "test.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a", "kind": "late"}\n' * 500)[:-9])
    change(place, test="test.jsonl.gz")


def no_column_in_the_test_file(place: Path) -> None:
    (place / "test.csv").write_text("customer,words,kind\nz1,all is well,late\n")
    change(place, test="test.csv")


def all_too_long(place: Path) -> None:
    (place / "messages.csv").write_text(GOOD.replace("text number", "long " * 400))


def a_secret(place: Path) -> None:
    key = "AKIA" + "IOSFODNN7EXAMPLQ"
    (place / "messages.csv").write_text(GOOD.replace("text number 7 ", f"my key is {key} "))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (one_label, ["messages.csv", "the one label 'late'", "'kind'", "at least two labels"]),
        (unknown_label_in_the_test_file, ["test.csv:3", "'strange'", "known: broken, late"]),
        (broken_test_file, ["test.jsonl.gz", "the gzip archive is truncated"]),
        (all_too_long, ["60 of 60 rows are longer than train.max_length", "raise train.max_length"]),
        (a_secret, ["messages.csv:9", "aws_access_key", "privacy"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_is_found_while_the_data_is_prepared(place: Path, spoil: Any, words: list[str]) -> None:
    spoil(place)
    done = luthier("prepare", "tiny.yaml", "--set", "data.privacy.secrets=stop", cwd=place).fails(2, *words)
    assert "AKIA" not in done.err
    assert not list(place.glob("runs/tiny/*/data/report.json"))


@pytest.mark.parametrize("key", ["test", "validation"])
@pytest.mark.parametrize("verb", ["check", "prepare"])
def test_a_split_file_without_a_column_is_found_before_anything_is_made(place: Path, key: str, verb: str) -> None:
    no_column_in_the_test_file(place)
    change(place, **{"test": None, key: "test.csv"})
    call(verb, "tiny.yaml", cwd=place).fails(2, "test.csv", "input", "'text'", "there are: customer, words, kind")
    (place / "test.csv").write_text("customer,text,class\nz1,all is well,late\n")
    call(verb, "tiny.yaml", cwd=place).fails(2, "test.csv", "label", "'kind'", "there are: customer, text, class")
    assert not (place / "runs").exists()


def test_rows_at_fault_are_set_aside_with_line_and_reason(place: Path) -> None:
    faults = ["c1,too,many,cells", "c2,a nul \0 in it,late", "c3,,late", "c4,no label,", f"c5,{'long ' * 200},late"]
    (place / "messages.csv").write_text(GOOD + "\n".join(faults) + "\n")
    change(place, max_bad_rows=0.05)
    done = luthier("prepare", "tiny.yaml", "--json", cwd=place).succeeds()
    report = DataReport.model_validate(done.document)
    assert report.rows_in == 65 == report.rows_out + sum(report.dropped.values())
    assert [(fate.line, fate.reason) for fate in report.fates] == [
        (62, "wrong_cell_count"),
        (63, "nul_character"),
        (64, "empty_input"),
        (65, "empty_answer"),
        (66, "too_long"),
    ]
    assert "train.max_length is 128" in report.fates[-1].detail
    text = luthier("prepare", "tiny.yaml", cwd=place).succeeds().out
    assert "65 rows in, 60 used" in text
    assert "1 too long" in text
    assert "of these, 2 cannot be read" in text


def test_too_many_rows_at_fault_are_said_before_anything_is_made(place: Path) -> None:
    (place / "messages.csv").write_text(GOOD + "c1,too,many,cells\nc2,only two\n")
    words = ["messages.csv: 2 of 62 rows cannot be read (3.23%)", "2 wrong_cell_count in lines 62, 63 (4 cells"]
    for verb in ("check", "run"):
        call(verb, "tiny.yaml", cwd=place).fails(2, *words, "data.max_bad_rows", "luthier data inspect")
    call("check", "tiny.yaml", "--set", "data.max_bad_rows=0.04", cwd=place).succeeds()
    call("check", "tiny.yaml", "--set", "data.max_bad_rows=0.04", "--set", "data.bad_rows=fail", cwd=place).fails(
        2, "data.bad_rows is 'fail'"
    )
    assert not (place / "runs").exists()


def test_data_that_goes_wrong_later_leaves_the_earlier_run_whole(place: Path) -> None:
    luthier("prepare", "tiny.yaml", cwd=place).succeeds()
    run = RunFolder.open("tiny", out=place / "runs")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    one_label(place)
    luthier("prepare", "tiny.yaml", cwd=place).fails(2, "the one label")
    assert {path: path.read_bytes() for path in before} == before
    write_messages(place / "messages.csv")
    done = luthier("prepare", "tiny.yaml", cwd=place).succeeds()
    assert "prepare: unchanged" in done.err


# --- the machine ---

GROWING_DISK = """
mount -t tmpfs -o size=4k,nr_inodes=200 small "$1" || exit 99
for size in 4k 24k 64k 128k 4m; do
    mount -o remount,size=$size "$1"
    "${@:2}" >out.$size 2>err.$size
    echo $size $?
done
"""


def test_a_full_disk_is_the_machines_and_costs_nothing_that_was_made(place: Path) -> None:
    disk = place / "disk"
    disk.mkdir()
    unshare = ["unshare", "--mount", "--map-root-user", "bash", "-c"]
    mount = [*unshare, f"mount -t tmpfs -o size=4k small {disk}"]
    if sys.platform != "linux" or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a small disk")
    command = [*COMMAND, "prepare", "tiny.yaml", "--out", str(disk), "--json"]
    done = subprocess.run(
        [*unshare, GROWING_DISK, "sh", str(disk), *command],
        cwd=place,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    codes = dict(line.split() for line in done.stdout.splitlines())
    assert codes["4k"] == "6"
    assert codes["4m"] == "0"
    assert set(codes.values()) == {"0", "6"}
    for size, code in codes.items():
        said = (place / f"err.{size}").read_text()
        assert "Traceback" not in said, said
        if code == "6":
            assert said.count("error: ") == 1, said
            assert "no space left on the disk" in said
            assert "free some space and run the same command again" in said
            assert not (place / f"out.{size}").read_text()
