"""Every format gives back the rows that were written, with their lines; what cannot be trusted is a fault."""

from __future__ import annotations

import gzip
import json
import sqlite3
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from data_kit import resolved, tokenizer_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.prepare import prepare
from luthier.data.profile import profile
from luthier.data.read import Fault, Row, read_source, rows
from luthier.data.readers import json as json_reader
from luthier.data.source import fingerprint, open_source
from luthier.data.workbook import column_index, column_letters
from luthier.errors import DataError
from luthier.spec.plugins import READERS

TABLE: list[dict[str, Any]] = [{"text": f"row {n} é\n", "label": "ab"[n % 2], "n": n} for n in range(7)]


def write_zstd(path: Path, content: bytes) -> Path:
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        file.write(content)
    return path


def write_workbook(path: Path, sheets: dict[str, Sequence[Sequence[object]]], merge: str = "") -> Path:
    """A workbook as a spreadsheet program would write it: shared and inline texts, numbers, dates, formulas, errors."""
    book = {"_rels/.rels": "<Relationships/>"}
    entries, targets = [], []
    for number, (name, table) in enumerate(sheets.items(), start=1):
        entries.append(f'<sheet name="{name}" sheetId="{number}" r:id="rId{number}"/>')
        targets.append(f'<Relationship Id="rId{number}" Target="worksheets/sheet{number}.xml"/>')
        lines = [
            f'<row r="{line}">{"".join(xml_cell(line, column, value) for column, value in enumerate(cells))}</row>'
            for line, cells in enumerate(table, start=1)
        ]
        merged = f'<mergeCells><mergeCell ref="{merge}"/></mergeCells>' if merge else ""
        book[f"xl/worksheets/sheet{number}.xml"] = (
            f'<worksheet xmlns="urn:x"><sheetData>{"".join(lines)}</sheetData>{merged}</worksheet>'
        )
    book["xl/workbook.xml"] = f'<workbook xmlns="urn:x" xmlns:r="urn:r"><sheets>{"".join(entries)}</sheets></workbook>'
    book["xl/_rels/workbook.xml.rels"] = f"<Relationships>{''.join(targets)}</Relationships>"
    book["xl/sharedStrings.xml"] = (
        '<sst xmlns="urn:x"><si><r><t>sha</t></r><r><t>red_x0041_</t></r><rPh><t>no</t></rPh></si></sst>'
    )
    book["xl/styles.xml"] = (
        '<styleSheet xmlns="urn:x"><numFmts><numFmt numFmtId="170" formatCode="dd/mm/yy &quot;x&quot;"/></numFmts>'
        '<cellXfs><xf numFmtId="0"/><xf numFmtId="14"/><xf numFmtId="170"/><xf numFmtId="4"/></cellXfs></styleSheet>'
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in book.items():
            archive.writestr(name, content)
    return path


def xml_cell(line: int, column: int, value: object) -> str:
    place = f'r="{column_letters(column)}{line}"'
    if value is None:
        return ""
    if value == "SHARED":
        return f'<c {place} t="s"><v>0</v></c>'
    if isinstance(value, str) and value.startswith("<c"):
        return value.replace("<c", f"<c {place}")
    if isinstance(value, str):
        text = value.replace("&", "&amp;").replace("<", "&lt;")
        return f'<c {place} t="inlineStr"><is><t xml:space="preserve">{text}</t></is></c>'
    return f"<c {place}><v>{value}</v></c>"


# --- the same rows come out of every format ---


def write_all(folder: Path) -> dict[str, Path]:
    lines = "".join(json.dumps(row) + "\n" for row in TABLE).encode()
    paths = {name: folder / f"data.{name}" for name in ("jsonl", "json", "parquet", "arrow", "feather", "db")}
    paths["jsonl"].write_bytes(lines)
    paths["zst"] = write_zstd(folder / "data.jsonl.zst", lines)
    paths["gz"] = folder / "data.jsonl.gz"
    paths["gz"].write_bytes(gzip.compress(lines))
    paths["json"].write_text(json.dumps(TABLE, indent=1))
    paths["inside"] = folder / "inside.json"
    paths["inside"].write_text(json.dumps({"about": {"of": [1]}, "tags": ["x"], "rows": TABLE, "none": []}))
    table = pa.Table.from_pylist(TABLE)
    pq.write_table(table, paths["parquet"])
    feather.write_feather(table, paths["feather"])
    with pa.OSFile(str(paths["arrow"]), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    with sqlite3.connect(paths["db"]) as database:
        database.execute('CREATE TABLE "odd "" name" (text, label, n)')
        database.executemany('INSERT INTO "odd "" name" VALUES (:text, :label, :n)', TABLE)
    database.close()
    cells: list[list[object]] = [[], ["text", "label", "n"], *([row["text"], row["label"], row["n"]] for row in TABLE)]
    paths["xlsx"] = write_workbook(folder / "data.xlsx", {"empty": [], "all": cells})
    (folder / "shards").mkdir()
    for part, some in (("10", TABLE[4:]), ("9", TABLE[:4])):  # in the order of the numbers
        pq.write_table(pa.Table.from_pylist(some), folder / "shards" / f"train-{part}.parquet")
    (folder / "shards" / "dataset_info.json").write_text("{}")
    paths["shards"] = folder / "shards"
    return paths


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    paths = write_all(tmp_path)
    formats = set()
    for path in paths.values():
        source = open_source(path)
        formats.add(source.format)
        assert [item.values for item in read_source(source) if isinstance(item, Row)] == TABLE, path
        assert [item.values for item in rows(path, format=source.format) if isinstance(item, Row)] == TABLE
        assert len(fingerprint(path)) == 64
        assert profile(path).num_rows == 7
    documents = {facts.name for facts in READERS.entries().values() if facts.is_document}  # test_data_documents.py
    assert formats | {"csv"} | documents == set(READERS.names())


def test_lines_are_those_that_an_editor_shows(tmp_path: Path) -> None:
    paths = write_all(tmp_path)
    assert [item.line for item in rows(paths["json"])] == [2 + 5 * n for n in range(7)]
    assert [item.line for item in rows(paths["xlsx"])] == list(range(3, 10))
    assert [item.line for item in rows(paths["arrow"])] == list(range(1, 8))
    first, second = "train-9.parquet", "train-10.parquet"
    assert [(item.file, item.line) for item in rows(paths["shards"])] == [
        (first, 1), (first, 2), (first, 3), (first, 4), (second, 1), (second, 2), (second, 3),
    ]  # fmt: skip


# --- JSON ---

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.text(st.characters(exclude_characters="\0")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60)
@given(
    table=st.lists(st.dictionaries(st.sampled_from("abc"), VALUES, min_size=1), min_size=1, max_size=6),
    indent=st.sampled_from([None, 0, 2]),
    ascii=st.booleans(),
    inside=st.booleans(),
    window=st.integers(1, 40),
)
def test_json_comes_out_as_it_went_in_however_it_is_cut(
    tmp_path_factory: pytest.TempPathFactory,
    table: list[Any],
    indent: int | None,
    ascii: bool,
    inside: bool,
    window: int,
) -> None:
    tree = {"before": {"x": [1, "]"]}, "rows": table, "after": None} if inside else table
    path = tmp_path_factory.mktemp("json") / "data.json"
    text = json.dumps(tree, indent=indent, ensure_ascii=ascii)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_reader, "_CHUNK", window)
        found = list(rows(path, format="json"))
    assert [item.values for item in found if isinstance(item, Row)] == table
    assert len(found) == len(table)


def test_elements_that_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    deep = "[" * 70 + "]" * 70
    lines = ['[{"a": NaN}', "5", '{"a": 1, "a": 2}', '{"a": "\\u0000"}', f'{{"a": {deep}}}, {{"a": Infinity}}]']
    path.write_text(",\n".join(lines))
    assert list(rows(path)) == [
        Row(1, {"a": None}),
        Fault(2, "not_an_object", "found int"),
        Fault(3, "duplicate_key", "a key stands twice in one object"),
        Fault(4, "nul_character", "the row holds a NUL character"),
        Fault(5, "invalid_json", "nested too deeply"),
        Row(5, {"a": "Infinity"}),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "the JSON array is empty"),
        ("[\n]", "the JSON array is empty"),
        ('{"a": 1}', "holds no array of objects"),
        ('{"a": [1, 2]}', "holds no array of objects"),
        ('{"a": [{}], "b": [{}]}', "both 'a' and 'b' hold arrays of objects"),
        ('[{"a": 1},\n{"b" 2}]', "json:2: not JSON: Expecting ':' delimiter"),
        ('[{"a": 1},\n{"b": 2}', "json:2: not JSON: expected ',' or ']', found the end of the file"),
        ('[{"a": 1}\n{"b": 2}]', "json:2: not JSON: expected ',' or ']', found '{'"),
        ('[{"a": 1}] x', "json:1: not JSON: 'x' after the end of the array"),
        ('[{"a": "never', "json:1: not JSON: Unterminated string"),
        ('[{"a": ' + "9" * 5000 + "}]", "json:1: not JSON: too long a number"),
        ("[" * 100_000, "json:1: not JSON: nested too deeply"),
        ('["a", "b"]', "no row can be read as json; line 1: not_an_object"),
    ],
)
def test_json_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        list(rows(path))
    assert message in error.value.what
    assert error.value.way_out


def test_json_lines_are_known_whatever_they_are_called(tmp_path: Path) -> None:
    for name in ("data.json", "data.txt", "data"):
        (tmp_path / name).write_text('{"a": 1}\n{"a": 2}\n')
        assert open_source(tmp_path / name).format == "jsonl"
    (tmp_path / "array.jsonl").write_text('[{"a": 1}]')
    assert open_source(tmp_path / "array.jsonl").format == "json"


# --- compression ---


@pytest.mark.parametrize("cut", [5, 30, 5000, -1])
def test_a_truncated_zstandard_archive_is_refused(tmp_path: Path, cut: int) -> None:
    path = write_zstd(tmp_path / "data.jsonl.zst", b"".join(b'{"a": %d}\n' % (n * 7919 % 9973) for n in range(9000)))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match="the zstd archive is truncated or damaged"):
        open_source(path)


def test_archives_one_after_the_other_are_one_file(tmp_path: Path) -> None:
    path = write_zstd(tmp_path / "data.csv.zst", b"a,b\n1,2\n")
    path.write_bytes(path.read_bytes() + write_zstd(tmp_path / "more", b"3,4\n").read_bytes())
    assert [item.values for item in rows(path) if isinstance(item, Row)] == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


def test_an_archive_in_an_archive_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "data.csv.gz"
    path.write_bytes(gzip.compress(gzip.compress(b"a,b\n1,2\n")))
    with pytest.raises(DataError, match="a gzip archive, not text"):
        open_source(path)


# --- Arrow and Parquet ---


def test_class_numbers_become_their_names(tmp_path: Path) -> None:
    label = {"names": ["neg", "pos"], "_type": "ClassLabel"}
    features = {"info": {"features": {"label": label, "n": {"dtype": "int64"}}}}
    table = pa.table({"label": [1, 0, -1, 7], "n": [1, 1, 1, 1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, tmp_path / "data.parquet")
    found = [item.values for item in rows(tmp_path / "data.parquet") if isinstance(item, Row)]
    assert found == [{"label": label, "n": 1} for label in ("pos", "neg", None, 7)]
    for odd in ("[]", "{", '{"info": {"features": []}}', '{"info": null}'):
        pq.write_table(table.replace_schema_metadata({"huggingface": odd}), tmp_path / "odd.parquet")
        assert len(list(rows(tmp_path / "odd.parquet"))) == 4


def test_a_cell_that_is_no_text_is_a_fault_of_its_row(tmp_path: Path) -> None:
    cells = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffb")]
    )
    table = pa.table({"a": cells})
    feather.write_feather(table, tmp_path / "data.arrow")
    pq.write_table(table, tmp_path / "data.parquet")
    for name in ("data.arrow", "data.parquet"):
        assert list(rows(tmp_path / name)) == [
            Row(1, {"a": "a"}), Fault(2, "unreadable_value", "a text is not UTF-8"), Row(3, {"a": "b"}),
        ]  # fmt: skip


def test_a_date_out_of_range_is_a_fault_of_its_row(tmp_path: Path) -> None:
    moments = pa.array([0, 2**62, 1], pa.int64()).cast(pa.timestamp("s"))
    feather.write_feather(pa.table({"when": moments}), tmp_path / "data.arrow")
    assert [type(item) for item in rows(tmp_path / "data.arrow")] == [Row, Fault, Row]


@pytest.mark.parametrize("content", [b"ARROW1\0\0 and no more", b"\xff\xff\xff\xff\x10\0\0\0", b"ARROW1"])
def test_a_damaged_arrow_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.arrow").write_bytes(content)
    with pytest.raises(DataError, match="is not a readable Arrow file"):
        list(rows(tmp_path / "data.arrow"))


def test_an_arrow_file_without_rows_or_columns(tmp_path: Path) -> None:
    empty = pa.table({"a": pa.array([], pa.string())})
    for table, words in ((empty, "holds no rows"), (pa.table({}), "has no columns")):
        feather.write_feather(table, tmp_path / "data.arrow")
        with pytest.raises(DataError, match=words):
            open_source(tmp_path / "data.arrow")


# --- databases ---


def database(path: Path, *statements: str) -> Path:
    made = sqlite3.connect(path)
    for statement in statements:
        made.execute(statement)
    made.commit()
    made.close()
    return path


def test_a_query_chooses_the_rows(tmp_path: Path) -> None:
    path = database(tmp_path / "a.db", "CREATE TABLE a (x)", "CREATE TABLE b (y)", "INSERT INTO a VALUES (1), (2)")
    found = list(read_source(open_source(path, query="SELECT x * 2 AS z FROM a ORDER BY x DESC")))
    assert found == [Row(1, {"z": 4}), Row(2, {"z": 2})]
    with pytest.raises(DataError, match=r"holds 2 tables\n  -> there are: a, b; say which with data.train\[0\].query"):
        open_source(path)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SELECT nope FROM a", "no such column"),
        ("DELETE FROM a", "readonly"),
        ("SELECT x, x FROM a", "names 'x' twice"),
        ("SELECT x FROM a WHERE x > 9", "holds no rows"),
        ("SELECT x FROM a; SELECT 1", "one statement"),
        ("PRAGMA user_version = 3", "readonly|no columns"),
        ("gibberish", "syntax error"),
    ],
)
def test_a_query_that_cannot_be_used(tmp_path: Path, query: str, words: str) -> None:
    path = database(tmp_path / "a.db", "CREATE TABLE a (x)", "INSERT INTO a VALUES (1)")
    before = path.read_bytes()
    with pytest.raises(DataError, match=words):
        open_source(path, query=query)
    assert path.read_bytes() == before


def test_databases_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds 0 tables"):
        open_source(database(tmp_path / "none.db", "CREATE TABLE a (x)", "DROP TABLE a"))
    path = database(tmp_path / "cut.db", "CREATE TABLE a (x)", "INSERT INTO a VALUES (hex(zeroblob(20000)))")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"cut\.db"):
        list(rows(path))


def test_texts_of_a_database_that_are_none(tmp_path: Path) -> None:
    path = database(tmp_path / "a.db", "CREATE TABLE a (x)", "INSERT INTO a VALUES ('ok'), (CAST(x'41ff' AS TEXT))")
    assert list(rows(path)) == [Row(1, {"x": "ok"}), Fault(2, "undecodable", "byte 0xFF is not UTF-8")]


# --- workbooks ---


CELLS: list[tuple[object, object]] = [
    ("SHARED", "sharedA"),
    ("in line & <b>", "in line & <b>"),
    (1.5, 1.5),
    (3.0, 3),
    (1e308, 1e308),
    (-7, -7),
    ('<c t="b"><v>1</v></c>', True),
    ('<c t="str"><f>A1&amp;B1</f><v>a formula</v></c>', "a formula"),
    ('<c t="str"><f>""</f></c>', None),
    ("<c><f>1+1</f><v>2</v></c>", 2),
    ('<c s="1"><v>46082</v></c>', "2026-03-01"),
    ('<c s="2"><v>46082.4310185</v></c>', "2026-03-01 10:20:40"),
    ('<c s="1"><v>0.5</v></c>', "12:00:00"),
    ('<c s="3"><v>46082</v></c>', 46082),
    ('<c t="d"><v>2026-03-01</v></c>', "2026-03-01"),
    ("<c/>", None),
]


@pytest.mark.parametrize(("cell", "expected"), CELLS, ids=lambda value: repr(value)[:30])
def test_cells_of_a_workbook(tmp_path: Path, cell: object, expected: object) -> None:
    path = write_workbook(tmp_path / "a.xlsx", {"s": [["x", None, "z"], ["first", None, cell]]})
    assert list(rows(path)) == [Row(2, {"x": "first", "column_2": None, "z": expected})]


@pytest.mark.parametrize(
    ("cells", "reason", "detail"),
    [
        (["a", '<c t="e"><f>1/0</f><v>#DIV/0!</v></c>'], "formula_error", "B4: the formula gave an error"),
        (["a", "<c><f>1+1</f></c>"], "formula_without_value", "B4: the formula was never computed"),
        (["a", "b", None, "out"], "wrong_cell_count", "a value in column D, outside of the header"),
        (["a", "b_x0000_"], "nul_character", "NUL"),
    ],
)
def test_row_faults_of_a_workbook(tmp_path: Path, cells: list[object], reason: str, detail: str) -> None:
    path = write_workbook(tmp_path / "a.xlsx", {"s": [[], ["x", "y"], ["good", 1], cells]})
    good, fault = rows(path)
    assert good == Row(3, {"x": "good", "y": 1})
    assert isinstance(fault, Fault)
    assert (fault.line, fault.reason) == (4, reason)
    assert detail in fault.detail


@pytest.mark.parametrize(("merge", "bad"), [("A3:A5", [4, 5]), ("A3:B3", [3]), ("A3:B4", [3, 4]), ("A1:B1", [])])
def test_merged_cells_are_no_rows(tmp_path: Path, merge: str, bad: list[int]) -> None:
    path = write_workbook(tmp_path / "a.xlsx", {"s": [["x", "y"], *([n, n] for n in range(5))]}, merge=merge)
    faults = [item for item in rows(path) if isinstance(item, Fault)]
    assert [fault.line for fault in faults] == bad
    assert all(fault.reason == "merged_cells" and merge in fault.detail for fault in faults)


def test_a_sheet_is_chosen_by_name(tmp_path: Path) -> None:
    sheets: dict[str, Sequence[Sequence[object]]] = {"one": [["a"], [1]], "two": [["b"], [2]], "none": []}
    path = write_workbook(tmp_path / "a.xlsx", sheets)
    assert open_source(path).sheet == "one"
    assert list(read_source(open_source(path, sheet="two"))) == [Row(2, {"b": 2})]
    assert profile(path, sheet="two").columns[0].name == "b"
    with pytest.raises(DataError, match=r"has no sheet 'x'\n  -> data.train\[0\].sheet: one of 'one', 'two', 'none'"):
        open_source(path, sheet="x")
    with pytest.raises(DataError, match="the sheet 'none' is empty"):
        open_source(path, sheet="none")
    with pytest.raises(DataError, match="no sheet holds a value"):
        open_source(write_workbook(tmp_path / "b.xlsx", {"none": []}))
    with pytest.raises(DataError, match="the sheet 's' holds a header and no rows"):
        open_source(write_workbook(tmp_path / "c.xlsx", {"s": [["a"]]}))


def spoiled(path: Path, part: str, content: bytes | None) -> Path:
    """The workbook with one part replaced or left out."""
    whole = write_workbook(path.with_name("whole.xlsx"), {"s": [["a", "b"], ["SHARED", 1]]})
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            if name != part:
                new.writestr(name, old.read(name))
        if content is not None:
            new.writestr(part, content)
    return path


LAUGHS = b"<!DOCTYPE x [<!ENTITY a 'ha'><!ENTITY b '&a;&a;&a;'>]><sst><si><t>&b;</t></si></sst>"
SHEET = "xl/worksheets/sheet1.xml"


@pytest.mark.parametrize(
    ("part", "content", "words"),
    [
        ("xl/sharedStrings.xml", LAUGHS, "document type"),
        ("xl/sharedStrings.xml", b"<sst></sst>", "cannot be read"),
        ("xl/sharedStrings.xml", b"<sst><si>", "cannot be read"),
        ("xl/workbook.xml", None, "missing"),
        (SHEET, None, "missing"),
        (SHEET, b"<worksheet><sheetData><row r='1'><c r='A1'><v>x</v></c></row>", "cannot be read"),
        (SHEET, b" " * (1 << 27), "grows to 134,217,728 bytes"),
        ("../../../etc/evil.xml", b"x", None),
    ],
)  # fmt: skip
def test_workbooks_that_are_damaged_or_mean_harm(
    tmp_path: Path, part: str, content: bytes | None, words: str | None
) -> None:
    path = spoiled(tmp_path / "a.xlsx", part, content)
    if words is None:  # nothing is ever unpacked to a path
        assert len(list(rows(path))) == 1
        assert {one.name for one in tmp_path.rglob("*")} == {"a.xlsx", "whole.xlsx"}
        return
    with pytest.raises(DataError, match=words):
        list(rows(path))


def test_a_part_that_lies_about_its_size_is_damaged(tmp_path: Path) -> None:
    path = spoiled(tmp_path / "a.xlsx", SHEET, b"<worksheet>" + b" " * 5000 + b"</worksheet>")
    content = path.read_bytes()
    size = (5000 + len("<worksheet></worksheet>")).to_bytes(4, "little")
    assert content.count(size) == 2
    path.write_bytes(content.replace(size, (100).to_bytes(4, "little")))
    with pytest.raises(DataError, match="cannot be read"):
        list(rows(path))


@pytest.mark.parametrize("index", [0, 1, 25, 26, 51, 52, 701, 702, 16383])
def test_letters_of_columns(index: int) -> None:
    assert column_index(column_letters(index)) == index


# --- folders ---


def test_a_folder_of_another_make(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder without data files"):
        open_source(tmp_path)
    (tmp_path / "a.csv").write_text("a\n1\n")
    (tmp_path / "notes.md").write_text("not data")
    (tmp_path / ".hidden.csv").write_text("b\n1\n")
    (tmp_path / "cache-1.arrow").write_text("a cache")
    assert list(rows(tmp_path)) == [Row(2, {"a": "1"}, "a.csv")]
    (tmp_path / "b.csv").write_text("b\n1\n")
    with pytest.raises(DataError, match=r"a.csv has no column 'b', which other files"):
        open_source(tmp_path)
    (tmp_path / "b.csv").unlink()
    (tmp_path / "b.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(DataError, match="holds files of several formats: csv, jsonl"):
        open_source(tmp_path)


@pytest.mark.parametrize("names", [("train-0.csv", "test-0.csv"), ("train/0.csv", "validation/0.csv")])
def test_splits_in_a_folder_are_never_mixed(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a\n1\n")
    with pytest.raises(DataError, match=r"holds several splits: .*train.*\n  -> give each by itself, e.g. data.train"):
        open_source(tmp_path)


def test_a_folder_goes_through_prepare_and_says_which_file_a_row_is_of(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for part in (0, 1):
        lines = [json.dumps({"message": f"text number {n} of {part}", "intent": "ab"[n % 2]}) for n in range(40)]
        lines[7] = "{broken" if part else lines[7]
        (tmp_path / "shards" / f"part-{part}.jsonl").write_text("\n".join(lines))
    before = fingerprint(tmp_path / "shards")
    recipe = resolved(tmp_path, path="shards", max_bad_rows=0.1)
    report = prepare(recipe, tokenizer_folder=tokenizer_folder(tmp_path / "tokenizer"), out=tmp_path / "out")
    assert (report.rows_in, report.rows_out, report.quarantined) == (80, 79, 1)
    assert [(fate.file, fate.line, fate.reason) for fate in report.fates] == [
        ("shards/part-1.jsonl", 8, "invalid_json")
    ]
    assert report.source_sha256 == {"shards": before}
    (tmp_path / "shards" / "part-0.jsonl").rename(tmp_path / "shards" / "part-2.jsonl")
    assert fingerprint(tmp_path / "shards") != before, "the order of the rows has changed"


def test_options_that_the_format_does_not_have(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a\n1\n")
    with pytest.raises(DataError, match=r"a.csv is csv: data.train\[0\].sheet is for xlsx"):
        open_source(tmp_path / "a.csv", sheet="x")
    with pytest.raises(DataError, match=r"a.csv is csv: data.train\[0\].query is for sqlite"):
        open_source(tmp_path / "a.csv", query="x")


def test_a_sheet_and_a_query_in_a_recipe(tmp_path: Path) -> None:
    tokenizer = tokenizer_folder(tmp_path / "tokenizer")
    table = [(f"text number {n} of all", "ab"[n % 2]) for n in range(40)]
    write_workbook(tmp_path / "a.xlsx", {"no": [["x"], [1]], "yes": [["message", "intent"], *table]})
    database(tmp_path / "a.db", "CREATE TABLE t (message, intent)", "CREATE TABLE u (x)", "INSERT INTO u VALUES (1)")
    with sqlite3.connect(tmp_path / "a.db") as made:
        made.executemany("INSERT INTO t VALUES (?, ?)", table)
    made.close()
    for path, option in (("a.xlsx", {"sheet": "yes"}), ("a.db", {"query": "SELECT * FROM t"})):
        recipe = resolved(tmp_path, path=path)
        entry = recipe.recipe.entry.model_copy(update=option)
        data = recipe.recipe.data.model_copy(update={"train": (entry,)})
        recipe = recipe.model_copy(update={"recipe": recipe.recipe.model_copy(update={"data": data})})
        report = prepare(recipe, tokenizer_folder=tokenizer, out=tmp_path / path.replace(".", "_"))
        assert report.rows_out == 40
