"""Rows with the right lines, and every fault of a file or row with its place and way out."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.read import Fault, Row, rows
from luthier.data.readers.csv import MOST_CELL_CHARS
from luthier.data.source import open_source
from luthier.errors import DataError

CELL = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\r\t"), max_size=12)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@given(cells=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=8), delimiter=st.sampled_from(",;\t|"))
def test_csv_gives_back_cells_and_the_line_where_each_row_starts(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]], delimiter: str
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerow(("first", "second"))
    starts = []
    for row in cells:
        starts.append(len(text.getvalue().replace("\r\n", "\n").replace("\r", "\n").split("\n")))
        writer.writerow(row)
    path = write(tmp_path_factory.mktemp("csv"), "data.csv", text.getvalue())
    read = list(rows(path))
    assert read == [Row(start, {"first": a, "second": b}) for start, (a, b) in zip(starts, cells, strict=True)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings_are_detected(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path, "data.csv", "text;label\nCafé für 5 £;a\n".encode(encoding))
    assert list(rows(path)) == [Row(2, {"text": "Café für 5 £", "label": "a"})]
    source = open_source(path)
    assert (source.encoding, source.delimiter) == (encoding, ";")


def test_a_stray_byte_in_a_utf8_file_is_a_fault_of_its_row(tmp_path: Path) -> None:
    path = write(tmp_path, "data.csv", "text,label\ncafé à la carte,a\n".encode() + b"caf\xe9,b\nx,c\n")
    assert [type(row) for row in rows(path)] == [Row, Fault, Row]
    assert list(rows(path))[1] == Fault(3, "undecodable", "byte 0xE9 is not UTF-8")


def test_commas_in_text_do_not_hide_the_delimiter(tmp_path: Path) -> None:
    path = write(tmp_path, "data.csv", "id;text\n1;one, two, three\n2;four\n3;five, six\n")
    assert open_source(path).columns == ("id", "text")


def test_unnamed_columns_get_a_name_and_blank_lines_do_not_count(tmp_path: Path) -> None:
    path = write(tmp_path, "data.csv", ",text\n\n0,one\n\n1,two\n")
    assert list(rows(path)) == [Row(3, {"column_1": "0", "text": "one"}), Row(5, {"column_1": "1", "text": "two"})]


def test_row_faults_of_csv(tmp_path: Path) -> None:
    path = write(tmp_path, "data.csv", 'a,b\n1,2,3\n"x\ny",2\n\0,2\nonly\n')
    assert list(rows(path)) == [
        Fault(2, "wrong_cell_count", "3 cells, the header has 2"),
        Row(3, {"a": "x\ny", "b": "2"}),
        Fault(5, "nul_character", "the row holds a NUL character"),
        Fault(6, "wrong_cell_count", "1 cells, the header has 2"),
    ]


def test_lines_inside_a_long_cell_never_become_rows(tmp_path: Path) -> None:
    hidden = "".join(f"injected{number},hidden text,late\n" for number in range(6000))
    limit = csv.field_size_limit()
    path = write(tmp_path, "data.csv", f'a,b,c\nx,1,y\nlong,"{hidden}",late\nz,2,y\n')
    assert list(rows(path)) == [
        Row(2, {"a": "x", "b": "1", "c": "y"}),
        Row(3, {"a": "long", "b": hidden, "c": "late"}),
        Row(6004, {"a": "z", "b": "2", "c": "y"}),
    ]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(("name", "line"), [("row.csv", 3), ("header.csv", 2)])
def test_a_cell_above_the_limit_is_a_fault_of_the_file(tmp_path: Path, name: str, line: int) -> None:
    cell = "hidden,late\n" * (MOST_CELL_CHARS // 12 + 1)
    start = "a,b\nx,1\n" if name == "row.csv" else "\n"
    path = write(tmp_path, name, f'{start}long,"{cell}"\ny,2\n')
    read: list[Row | Fault] = []
    with pytest.raises(
        DataError, match=rf"{name}:{line}: a cell .* more than 10,000,000 characters\n  -> close the quote"
    ):
        read.extend(rows(path))
    assert not [item for item in read if isinstance(item, Row) and "hidden" in item.values.values()]


def test_row_faults_of_jsonl(tmp_path: Path) -> None:
    long = f'{{"a": {"9" * 5000}}}'
    lines = ['{"a": 1}', "", "{broken", "[1]", '{"a": "\\ud800"}', long, "[" * 100_000, '{"a": "\u2028"}']
    found = list(rows(write(tmp_path, "data.jsonl", "\n".join(lines))))
    assert found[0] == Row(1, {"a": 1})
    assert [(one.line, one.reason) for one in found if isinstance(one, Fault)] == [
        (3, "invalid_json"), (4, "not_an_object"), (5, "undecodable"), (6, "invalid_json"), (7, "invalid_json"),
    ]  # fmt: skip
    assert found[-1] == Row(8, {"a": "\u2028"})
    assert [one.detail for one in found if isinstance(one, Fault)] == [
        "Expecting property name enclosed in double quotes at character 2",
        "found list",
        "a lone surrogate is not UTF-8",
        "too long a number",
        "nested too deeply",
    ]


def test_gzip_and_parquet_read_like_the_plain_file(tmp_path: Path) -> None:
    values = [{"text": f"row {number}", "label": "ab"[number % 2]} for number in range(5)]
    text = "".join(json.dumps(value) + "\n" for value in values)
    path = tmp_path / "data.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write(text)
    assert [row.values for row in rows(path) if isinstance(row, Row)] == values
    pq.write_table(pa.Table.from_pylist(values), tmp_path / "data.parquet")
    assert list(rows(tmp_path / "data.parquet")) == [Row(number, value) for number, value in enumerate(values, start=1)]


def test_files_without_a_telling_name_are_known_by_their_content(tmp_path: Path) -> None:
    assert open_source(write(tmp_path, "data.txt", '{"a": 1}\n')).format == "jsonl"
    assert open_source(write(tmp_path, "data.dat", "a\tb\n1\t2\n")).delimiter == "\t"


CP1251 = ("текст;метка\n" + "где мой заказ;а\n" * 20).encode("cp1251")
FILE_FAULTS = {
    "empty.csv": (b"", "is empty"),
    "blank.csv": (b"\xef\xbb\xbf\n\n", "is empty"),
    "header.csv": (b"text,label\n", "holds a header and no rows"),
    "mail.csv": (b"ana@example.org,late\nb,late\n", "mail.csv: the first row looks like data: its cell 1 holds email"),
    "key.csv": (b"a,AKIAIOSFODNN7EXAMPLE\nb,c\n", "its cell 2 holds secret: aws_access_key"),
    "long.csv": (b"where is it? " * 9 + b",late\nb,c\n", "its cell 1 holds 117 characters"),
    "unnamed.csv": (b",,\n1,2,3\n", "names no columns"),
    "twice.csv": (b"text,text\n1,2\n", "names 'text' twice"),
    "quote.csv": (b'text,label\nx,a\n"never closed,b\ny,c\n', "quote.csv:3: a quote opens in this row"),
    "last.csv": (b'text,label\nx,a\n"never closed\n', "last.csv:3: a quote opens in this row"),
    "binary.csv": (bytes(range(256)) * 40, "is binary"),
    "book.csv": (b"PK\x03\x04xxxx", "book.csv is a zip archive or an Excel workbook, and cannot be read as one"),
    "russian.csv": (CP1251, "neither UTF-8 nor Windows-1252"),
    "japanese.csv": ("見出し,ラベル\n注文,ア\n".encode("shift-jis"), "neither UTF-8 nor Windows-1252"),
    "half.csv": ("a,b\n1,2\n".encode("utf-16") + b"\x00\xd8", "begins as UTF-16"),
    "cut.jsonl.gz": (gzip.compress(b'{"a": 1}\n' * 1000)[:-12], "truncated or damaged"),
    "prose.jsonl": (b"hello\nworld\n", "no row can be read as jsonl; line 1: invalid_json"),
    "narrow.csv": (b"a,b\n1\n2\n", "no row can be read as csv; line 2: wrong_cell_count"),
    "damaged.parquet": (b"PAR1 nothing PAR1", "not a readable Parquet file"),
}


@pytest.mark.parametrize("name", FILE_FAULTS)
def test_file_faults_name_the_file_and_the_way_out(tmp_path: Path, name: str) -> None:
    content, message = FILE_FAULTS[name]
    path = write(tmp_path, name, content)
    with pytest.raises(DataError) as error:
        list(rows(path))
    assert message in error.value.what
    assert name in error.value.what
    assert error.value.way_out


def test_faults_of_the_place(tmp_path: Path) -> None:
    write(tmp_path, "here.csv", "a\n1\n")
    with pytest.raises(DataError, match=r"does not exist\n  -> there is: here.csv"):
        open_source(tmp_path / "missing.csv")
    with pytest.raises(DataError, match=r"the folder .* does not exist either"):
        open_source(tmp_path / "nowhere" / "missing.csv")
    with pytest.raises(DataError, match="is a folder, not csv"):
        open_source(tmp_path, format="csv")
    with pytest.raises(DataError, match="is a file, not folder"):
        open_source(tmp_path / "here.csv", format="folder")
    with pytest.raises(DataError, match="format 'xml' is unknown"):
        open_source(tmp_path / "here.csv", format="xml")
    pq.write_table(pa.table({"a": pa.array([], pa.string())}), tmp_path / "none.parquet")
    with pytest.raises(DataError, match="holds no rows"):
        open_source(tmp_path / "none.parquet")
    pq.write_table(pa.table({}), tmp_path / "no.parquet")
    with pytest.raises(DataError, match="has no columns"):
        open_source(tmp_path / "no.parquet")
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="the header names 'a' twice"):
        open_source(tmp_path / "twice.parquet")
