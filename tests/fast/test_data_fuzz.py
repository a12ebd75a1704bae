"""Whatever a file holds: rows, faults or one error of the user's; never a traceback, a lost row or unbounded memory."""

from __future__ import annotations

import csv
import gzip
import io
import json
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_data_formats import database, write_workbook, write_zstd

from luthier.data.profile import profile
from luthier.data.read import Fault, Row, rows
from luthier.data.text_file import MOST_ROW_CHARS
from luthier.errors import UserError
from luthier.spec.plugins import READERS

ROWS = [{"text": f"row {number} of some", "label": "ab"[number % 2], "n": number} for number in range(40)]
quick = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def read_all(path: Path, format: str | None = None) -> list[Row | Fault] | str:
    """All rows, or what the user is told."""
    try:
        return list(rows(path, format=format))
    except UserError as error:
        said = error
    assert path.name in said.what or "is unknown" in said.what
    assert said.way_out
    return str(said)


def as_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ROWS[0].keys())
        writer.writeheader()
        writer.writerows(ROWS)


def as_database(path: Path) -> None:
    values = ", ".join(f"('{row['text']}', '{row['label']}', {row['n']})" for row in ROWS)
    database(path, "CREATE TABLE t (text, label, n)", f"INSERT INTO t VALUES {values}")


def as_workbook(path: Path) -> None:
    write_workbook(path, {"s": [list(ROWS[0]), *(list(row.values()) for row in ROWS)]})


LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
WRITERS: dict[str, Callable[[Path], Any]] = {
    "a.csv": as_csv,
    "a.jsonl": lambda path: path.write_bytes(LINES),
    "a.json": lambda path: path.write_text(json.dumps({"rows": ROWS})),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "a.jsonl.zst": lambda path: write_zstd(path, LINES),
    "a.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
    "a.arrow": lambda path: feather.write_feather(pa.Table.from_pylist(ROWS), path, compression="uncompressed"),
    "a.xlsx": as_workbook,
    "a.db": as_database,
}


@pytest.mark.parametrize("name", WRITERS)
@quick
@given(data=st.data())
def test_a_spoiled_file_of_any_format_never_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("spoiled") / name
    WRITERS[name](path)
    content = bytearray(path.read_bytes())
    cut = data.draw(st.integers(0, len(content)) | st.just(len(content)), label="cut")
    for place, byte in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=6)
    ):
        content[place] = byte
    path.write_bytes(content[:cut])
    read_all(path)


@quick
@given(
    content=st.binary(max_size=200),
    start=st.sampled_from(
        [b"", b"PAR1", b"ARROW1", b"PK\x03\x04", b"SQLite format 3\0", b"\x1f\x8b", b"\xff\xfe", b"[{"]
    ),
    format=st.sampled_from([None, "xml", *READERS.names()]),
)
@example(content=b"a,b\n\xff,\0\n", start=b"", format=None)
def test_any_bytes_under_any_name(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, start: bytes, format: str | None
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "data"
    path.write_bytes(start + content)
    read_all(path, format)


ODD_CELLS = st.sampled_from(
    ["", "1", "1e308", "-0", "NaN", '"', "'", "\ufeff", "x" * 300, "=1+1", "null", "\u2028", "é"]
)


@quick
@given(
    table=st.lists(st.lists(ODD_CELLS | st.text(max_size=5), min_size=1, max_size=5), min_size=2, max_size=8),
    delimiter=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_no_row_of_a_csv_file_is_lost(
    tmp_path_factory: pytest.TempPathFactory, table: list[list[str]], delimiter: str, quoting: Any
) -> None:
    """Every row after the header is a row or a fault, or the file is refused as a whole."""
    table = [[cell.replace("\r", "").replace("\0", "") for cell in row] for row in table]
    table[0] = [f"column{index}" for index in range(3)]
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, quoting=quoting).writerows(table)
    path = tmp_path_factory.mktemp("csv") / "data.csv"
    path.write_bytes(text.getvalue().encode("utf-8", "surrogatepass"))
    read = read_all(path)
    if not isinstance(read, str):
        assert len(read) == len(table) - 1
        assert all(isinstance(item, Row) == (len(cells) == 3) for item, cells in zip(read, table[1:], strict=True)) or (
            any("\ud800" <= char <= "\udfff" for row in table for cell in row for char in cell)
        )


@quick
@given(
    lines=st.lists(st.text(max_size=20) | st.sampled_from(['{"a": 1}', "[]", "{", '{"a": 1e999}', '{"a": "\\ud800"}']))
)
def test_no_line_of_json_lines_is_lost(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    lines = ['{"a": 0}', *("".join(line.splitlines()).replace("\x1a", "") for line in lines)]
    path = tmp_path_factory.mktemp("jsonl") / "data.jsonl"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    read = read_all(path)
    if not isinstance(read, str):
        assert [item.line for item in read] == [number for number, line in enumerate(lines, 1) if line.strip()]


def test_one_wrong_row_of_many_costs_that_row_alone(tmp_path: Path) -> None:
    wrong: list[object] = [5, None, [], {"text": {"deep": [[["x"]]]}, "label": 1e308}, {"text": 1}, {}]
    lines = [json.dumps(row) for row in ROWS] + [json.dumps(row) for row in wrong]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    read = list(rows(tmp_path / "a.jsonl"))
    assert [type(item) for item in read[40:]] == [Fault, Fault, Fault, Row, Row, Row]
    found = profile(tmp_path / "a.jsonl")
    assert found.num_rows == 46
    assert sum(one.rows for one in found.faults) == 3


BOMBS: dict[str, str] = {
    "a line of 300 MB": "path.open('wb').writelines([b'{\"a\": 1}\\n', *[b'x' * 10**6] * 300, b'\\n{\"a\": 2}\\n'])",
    "a gzip bomb": "import gzip; f = gzip.open(path, 'wb'); f.write(b'{\"a\": 1}\\n'); "
    "[f.write(b' ' * 10**6) for _ in range(400)]; f.write(b'\\n{\"a\": 2}\\n'); f.close()",
    "an endless value": "path.open('wb').writelines([b'[{\"a\": 1}, {\"b\": \"', *[b'x' * 10**6] * 300])",
    "an endless cell": "path.open('wb').writelines([b'a,b\\n1,2\\n', *[b'x' * 10**6] * 300, b',2\\n'])",
    "one text, referred to 3000 times": "import pyarrow.parquet as pq; text = pyarrow.array(['x' * 10**6]); "
    "places = pyarrow.array([0] * 3000, pyarrow.int32()); "
    "pq.write_table(pyarrow.table({'a': pyarrow.DictionaryArray.from_arrays(places, text)}), path)",
    "an endless quote": "path.open('wb').writelines([b'a,b\\n1,2\\n\"', *[b'x,\\n' * 10**5] * 600])",
}
READ = """
import resource, sys
from pathlib import Path
from luthier.data.read import rows
from luthier.errors import UserError
import pyarrow
path = Path(sys.argv[1])
{write}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    print([(type(item).__name__, item.line) for item in rows(path)])
except UserError as error:
    print(str(error).partition("->")[0])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bomb", "name", "said"),
    [
        ("a line of 300 MB", "a.jsonl", "('Row', 1), ('Fault', 2), ('Row', 3)"),
        ("a gzip bomb", "a.jsonl.gz", "('Row', 1), ('Fault', 2), ('Row', 3)"),
        ("an endless value", "a.json", "a value that is longer than"),
        ("an endless cell", "a.csv", "a.csv:3: a cell in the row that starts here has more than"),
        ("one text, referred to 3000 times", "a.parquet", "('Row', 2999), ('Row', 3000)"),
        ("an endless quote", "a.csv", "a.csv:3: a cell in the row that starts here has more than"),
    ],
)
def test_memory_stays_bounded(tmp_path: Path, bomb: str, name: str, said: str) -> None:
    script = READ.format(write=BOMBS[bomb])
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / name)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    grown_mib = int(done.stdout.split()[-1])
    assert grown_mib < 4 * MOST_ROW_CHARS / 2**20, "a few times the longest row that is held"


def test_a_workbook_that_unpacks_to_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.xlsx"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("xl/worksheets/sheet1.xml", "w", force_zip64=True) as part,
    ):
        for _ in range(200):
            part.write(b" " * (1 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = read_all(path)
    assert "grows to 209,715,200 bytes" in str(said)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_json_nested_into_the_ground(tmp_path: Path) -> None:
    for depth in (65, 500, 990, 1500, 100_000):
        bomb = '{"a": ' * depth + "1" + "}" * depth
        (tmp_path / "a.jsonl").write_text(f'{{"a": 1}}\n{bomb}\n{{"a": 2}}\n')
        assert [type(item) for item in rows(tmp_path / "a.jsonl")] == [Row, Fault, Row]
        (tmp_path / "a.json").write_text(f'[{{"a": 1}}, {bomb}, {{"a": 2}}]')
        read = read_all(tmp_path / "a.json")
        assert isinstance(read, str) or [type(item) for item in read] == [Row, Fault, Row]
        profile(tmp_path / "a.jsonl")
