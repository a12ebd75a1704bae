"""Whatever rows hold, all steps together account for each of them, or the user is told what is wrong; nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_kit import resolved, tokenizer_folder
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from luthier.data.prepare import prepare
from luthier.data_report import DataReport
from luthier.errors import UserError

EXAMPLES = int(os.environ.get("LUTHIER_FUZZ_EXAMPLES", "0"))
"""Of the long profile: as many examples a test; 0 is the short one."""

THINGS = ("parcel", "guitar", "invoice", "violin", "string", "bow", "drum", "refund", "order", "sheet")
GOOD = [
    {"message": f"where is the {THINGS[n % 10]} {THINGS[n // 10 % 10]} that I sent on day {n * 37}",
     "intent": ("order", "refund", "return")[n % 3], "who": f"c{n // 2}", "at": f"2026-01-{1 + n % 28:02}",
     "split": ("train", "train", "test", "validation")[n % 4]}
    for n in range(60)
]  # fmt: skip

NASTY = (
    "", " ", "\u200b", "\ufeff", "\u2028", "\r", "\x1a", "a\x00b", "\ud800", "x\udcffy", "\u202eabc", "é" * 300,
    "&nbsp;",
    "&#0;", "&#xD800;", "&amp;amp;amp;lt;", "Ã©Ã¤â€™", "{message}", "${HOME}", "{{7*7}}", "<|im_end|>",
    "<|im_start|>system", "a" * 5000, "word " * 400, "1e308", "nan", "-0", "null", "[]", "👩‍👩‍👧‍👦" * 9,
    "Z̸͔a̶l̷g̵o̴" * 30, "ﷺ" * 40,
    "ana@example.org or 4111 1111 1111 1111", "a\u0300" * 50, "0" * 400, "../../etc/passwd", "=cmd|' /C calc'!A0",
    "where is the parcel parcel that I sent on day 0", "WHERE IS THE PARCEL PARCEL THAT I SENT ON DAY 0!",
)  # fmt: skip
cells: Any = st.one_of(
    st.sampled_from(NASTY),
    st.text(max_size=30),
    st.sampled_from(
        [None, True, 1e308, -1e308, 1e-320, 10**25, 0, -1, [], {}, [[]], {"a": None}, [1, "x"], "9999-99-99"]
    ),
    st.recursive(st.none() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=3), max_leaves=6),
)
turn = st.fixed_dictionaries(
    {}, optional={"role": st.sampled_from(["user", "assistant", "system", "tool", "", None, 3]), "content": cells}
)
steps = st.fixed_dictionaries(
    {},
    optional={
        "filter": st.fixed_dictionaries(
            {},
            optional={
                "min_chars": st.integers(1, 40),
                "max_chars": st.integers(10, 400),
                "max_repetition": st.floats(0.05, 0.9),
            },
        ),
        "dedupe": st.fixed_dictionaries({"near": st.sampled_from([0.5, 0.8, 1.0, False])}),
        "leakage": st.fixed_dictionaries({"near": st.sampled_from([0.5, 0.9, False])}),
        "privacy": st.fixed_dictionaries(
            {
                "action": st.sampled_from(["report", "redact", "pseudonymise", "drop"]),
                "secrets": st.sampled_from(["stop", "redact", "drop"]),
            }
        ),
        "labels": st.fixed_dictionaries({"min_rows": st.integers(0, 4), "review": st.booleans()}),
        "split": st.sampled_from(
            [{"group_by": "who"}, {"by_time": "at"}, {"stable": True, "stratify": False}, {"column": "split"}]
        ),
        "limit": st.fixed_dictionaries({}, optional={"train": st.integers(1, 30), "test": st.integers(1, 30)}),
        "max_bad_rows": st.sampled_from([0.01, 1.0]),
        "bad_rows": st.sampled_from(["quarantine", "quarantine", "fail"]),
    },
)
quick = settings(
    max_examples=EXAMPLES or 12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_folder(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_PRIVACY_KEY", "00" * 32)


def accounted_for(folder: Path, tokenizer: Path, name: str, rows: int, **recipe: Any) -> DataReport | str:
    """Prepare; every row is used, set aside with a reason, or in quarantine: or the user is told why not."""
    try:
        report = prepare(resolved(folder, path=name, **recipe), tokenizer_folder=tokenizer, out=folder / "out")
    except UserError as error:
        assert error.way_out  # noqa: PT017
        assert not (folder / "out" / "report.json").exists()
        return str(error)
    assert report.rows_in == rows
    assert report.rows_in == report.rows_out + sum(report.dropped.values())
    assert len({(fate.file, fate.line) for fate in report.fates}) == len(report.fates) == sum(report.dropped.values())
    kept = folder / "out" / "quarantine.jsonl"
    assert report.quarantined == (len(kept.read_text().splitlines()) if kept.exists() else 0)
    for one, two in zip(report.steps, report.steps[1:], strict=False):
        assert one.rows_out == two.rows_in
    return report


def as_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@quick
@given(rows=st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(GOOD[0], cells)), max_size=12), data=steps)
@example(rows=[{"message": "\ud800", "intent": "\udfff"}, {"message": [[]], "intent": {"a": 1}}], data={})
def test_labelled_rows(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path, rows: Any, data: Any) -> None:
    folder = tmp_path_factory.mktemp("rows")
    (folder / "data.jsonl").write_bytes(as_lines([*GOOD, *rows]))
    accounted_for(folder, tokenizer, "data.jsonl", len(GOOD) + len(rows), **data)


@quick
@given(rows=st.lists(st.fixed_dictionaries({"message": cells, "intent": cells}), max_size=12), data=steps)
def test_free_answers(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path, rows: Any, data: Any) -> None:
    folder = tmp_path_factory.mktemp("rows")
    (folder / "data.jsonl").write_bytes(as_lines([*GOOD, *rows]))
    data.pop("labels", None)
    task = {"task": "generation", "system": ""}
    accounted_for(folder, tokenizer, "data.jsonl", len(GOOD) + len(rows), **task, **data)


@quick
@given(chats=st.lists(st.lists(turn, max_size=4) | cells, max_size=12), data=steps)
def test_conversations(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path, chats: Any, data: Any) -> None:
    folder = tmp_path_factory.mktemp("rows")
    good = [
        {"messages": [{"role": "user", "content": row["message"]}, {"role": "assistant", "content": row["intent"]}]}
        for row in GOOD
    ]
    (folder / "data.jsonl").write_bytes(as_lines([*good, *({"messages": chat} for chat in chats)]))
    data = {key: value for key, value in data.items() if key not in ("labels", "split")}
    task = {"task": "generation", "system": "", "input": "", "label": ""}
    accounted_for(folder, tokenizer, "data.jsonl", len(good) + len(chats), **task, **data)


@quick
@given(
    lines=st.lists(
        st.binary(max_size=40) | st.sampled_from([b'"', b"a,b,c,d,e,f", b"\xff\xfe", b"\0", b"\x1a"]), max_size=8
    )
)
def test_any_lines_of_a_table(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path, lines: list[bytes]) -> None:
    folder = tmp_path_factory.mktemp("rows")
    good = "\n".join([",".join(GOOD[0]), *(",".join(row.values()) for row in GOOD)]).encode()
    (folder / "data.csv").write_bytes(b"\n".join([good, *lines]))
    try:
        report = prepare(resolved(folder, max_bad_rows=1.0), tokenizer_folder=tokenizer, out=folder / "out")
    except UserError as error:
        assert "data.csv" in error.what  # noqa: PT017
        return
    assert report.rows_in == report.rows_out + sum(report.dropped.values()) >= len(GOOD)


@pytest.mark.slow
def test_one_wrong_type_in_two_hundred_thousand_rows_of_each_format(tmp_path: Path) -> None:
    """The row is quarantined or read as it is; those around it stay as they were, and so does the memory."""
    from luthier.data.read import Fault, Row, rows

    many, wrong = 200_000, 123_456
    good = [f"message number {n}" for n in range(many)]
    with (tmp_path / "a.jsonl").open("w") as out:
        for n, text in enumerate(good):
            out.write(f'{{"text": {"[1, 2" if n == wrong else json.dumps(text)}, "n": {n}}}\n')
    with (tmp_path / "a.csv").open("w") as out:
        out.write("text,n\n")
        for n, text in enumerate(good):
            out.write(f"{text},{n}{',extra' if n == wrong else ''}\n")
    texts = pa.array([b"\xff\xfe" if n == wrong else text.encode() for n, text in enumerate(good)]).view(pa.string())
    pq.write_table(pa.table({"text": texts, "n": range(many)}), tmp_path / "a.parquet", use_dictionary=False)
    for name, place in {"a.jsonl": wrong + 1, "a.csv": wrong + 2, "a.parquet": wrong + 1}.items():
        faults, seen = [], 0
        for item in rows(tmp_path / name):
            if isinstance(item, Fault):
                faults.append(item.line)
            else:
                assert isinstance(item, Row)
                seen += 1
        assert (seen, faults) == (many - 1, [place]), name
