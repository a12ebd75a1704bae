"""Columns are understood by the names people use and by what stands in them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from luthier.data.profile import profile

PROSE = ["where is my parcel today", "the guitar arrived broken", "please send the invoice to me", "cancel it now"]


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def prose(number: int) -> str:
    return f"{PROSE[number % 4]} number {number}"


def test_support_tickets(tmp_path: Path) -> None:
    rows = [
        {
            "ticket_id": f"T{n}", "received": f"2026-03-{n % 28 + 1:02} 10:00", "channel": "web" if n % 2 else "mail",
            "customer_id": f"C{n // 3}", "message": prose(n), "note": "",
            "intent": ("order", "refund", "return")[n % 3],
        }
        for n in range(60)
    ]  # fmt: skip
    found = profile(write_csv(tmp_path / "tickets.csv", rows))
    assert (found.shape, found.task) == ("text_label", "classification")
    assert (found.input, found.label) == ("{message}", "intent")
    assert found.group_by == "customer_id"
    assert found.labels == {"order": 20, "refund": 20, "return": 20}
    assert {column.name: column.kind for column in found.columns} == {
        "ticket_id": "id", "received": "date", "channel": "label", "customer_id": "id", "message": "text",
        "intent": "label", "note": "empty",
    }  # fmt: skip
    assert (found.num_rows, found.encoding, found.delimiter) == (60, "utf-8", ",")
    assert found.mean_input_chars == pytest.approx(sum(len(str(row["message"])) for row in rows) / 60)


def test_odd_columns(tmp_path: Path) -> None:
    rows = [
        {
            "Nr.": n, "Kd-Nr.": f"K-{n // 4:05}", "Was der Kunde schrieb": prose(n), "Land": "DE",
            "Bearbeiter": ("Ana", "Bo", "Cy")[n % 3],
        }
        for n in range(80)
    ]  # fmt: skip
    found = profile(write_csv(tmp_path / "export.csv", rows))
    assert (found.input, found.label, found.group_by) == ("{Was der Kunde schrieb}", "Bearbeiter", "Kd-Nr.")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "P", "completion": "C"}, ("prompt_completion", "generation", "{prompt}", "completion")),
        (
            {"instruction": "P", "input": "X", "output": "C"},
            ("alpaca", "generation", "{instruction}\n\n{input}", "output"),
        ),
        ({"question": "P", "answer": "C", "id": "q"}, ("prompt_completion", "generation", "{question}", "answer")),
        ({"source": "P", "target": "C"}, ("source_target", "translation", "{source}", "target")),
        ({"en": "P", "de": "C"}, ("source_target", "translation", "{en}", "de")),
        ({"prompt": "P", "chosen": "C", "rejected": "X"}, ("preference", "preference", "{prompt}", "chosen")),
        ({"body": "P"}, ("plain_text", "domain", "{body}", "")),
        ({"text": "P", "canonical_solution": "C"}, ("prompt_completion", "generation", "{text}", "canonical_solution")),
        ({"one": "P", "other": "Q"}, ("unknown", None, "", "")),
    ],
)
def test_other_shapes(tmp_path: Path, row: dict[str, str], expected: tuple[str, ...]) -> None:
    rows = [{name: f"{value} {prose(n)} {name}" for name, value in row.items()} for n in range(40)]
    found = profile(write_jsonl(tmp_path / "data.jsonl", rows))
    assert (found.shape, found.task, found.input, found.label) == expected
    assert found.labels == {}


def test_sentiment_and_numeric_labels(tmp_path: Path) -> None:
    rows: list[object] = [{"text": prose(n), "label": ("positive", "negative")[n % 2]} for n in range(40)]
    assert profile(write_jsonl(tmp_path / "a.jsonl", rows)).task == "sentiment"
    rows = [{"text": prose(n), "label": n % 2} for n in range(40)]
    found = profile(write_jsonl(tmp_path / "b.jsonl", rows))
    assert (found.task, found.label, found.labels) == ("classification", "label", {"0": 20, "1": 20})
    rows = [{"Bericht": prose(n), "Sterne": n % 5 + 1} for n in range(40)]
    assert profile(write_jsonl(tmp_path / "c.jsonl", rows)).label == "Sterne"


@pytest.mark.parametrize(
    ("shape", "role", "content", "user"),
    [("messages", "role", "content", "user"), ("sharegpt", "from", "value", "human")],
)
def test_chats(tmp_path: Path, shape: str, role: str, content: str, user: str) -> None:
    chat = [{role: user, content: "12345"}, {role: "assistant", content: "1234567"}]
    found = profile(write_jsonl(tmp_path / "chat.jsonl", [{"id": n, "messages": chat} for n in range(30)]))
    assert (found.shape, found.task, found.input, found.label) == (shape, "generation", "", "")
    assert (found.mean_input_chars, found.mean_answer_chars) == (5, 7)


def test_keys_that_come_and_go_are_counted_as_empty(tmp_path: Path) -> None:
    found = profile(write_jsonl(tmp_path / "data.jsonl", [{"a": "x"}, {"b": "y"}, {"a": None, "b": "z"}, "no object"]))
    assert {column.name: column.empty for column in found.columns} == {"a": 2, "b": 1}
    assert found.num_rows == 4


def test_a_value_that_covers_many_rows_is_no_group(tmp_path: Path) -> None:
    rows = [{"customer_id": "C1" if n < 30 else f"C{n}", "text": prose(n), "label": "ab"[n % 2]} for n in range(60)]
    assert profile(write_csv(tmp_path / "data.csv", rows)).group_by == ""


def test_a_profile_holds_no_label_with_a_finding(tmp_path: Path) -> None:
    odd = ("AKIA" + "IOSFODNN7EXAMPLE", "AKIA" + "IOSFODNN7EXAMPLF", "ana@example.org", "late")
    rows = [{"message": prose(number), "intent": odd[number % 4]} for number in range(80)]
    found = profile(write_csv(tmp_path / "data.csv", rows))
    assert found.labels == {"[SECRET]": 20, "[SECRET] (2)": 20, "[EMAIL]": 20, "late": 20}
    assert not any(value in found.to_json() for value in odd[:3])
