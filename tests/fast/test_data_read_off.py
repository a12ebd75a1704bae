"""Rows with several labels, or a number, on their way from cells to shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_data_prepare import run, shards, write

from luthier.errors import DataError
from luthier.records import RequestContract

SEVERAL: dict[str, Any] = {
    "task": "multi_label", "label": "topics", "path": "data.jsonl", "labels": {"separator": ","}
}  # fmt: skip
NUMBER: dict[str, Any] = {"task": "regression", "label": "minutes", "path": "data.jsonl"}


def rows(count: int = 40) -> list[dict[str, Any]]:
    topics = [["order"], ["refund", "order"], [], ["return"]]
    return [
        {"message": f"message {n} about things", "topics": topics[n % 4], "minutes": 5_551_230_000 + n}
        for n in range(count)
    ]


def contract(folder: Path) -> RequestContract:
    return RequestContract.read(folder / "out" / "contract.json")


def test_labels_are_sorted_counted_and_known_from_the_training_rows(tmp_path: Path) -> None:
    made = [*rows(), {"message": "one more", "topics": ["a,b"], "minutes": 1}]
    report = run(tmp_path, made, method={"type": "multi_label", "threshold": 0.3}, **SEVERAL)
    assert report.dropped == {"bad_labels": 1}
    (fate,) = report.fates
    assert "set data.labels.separator" in fate.detail
    known = contract(tmp_path)
    learned = shards(tmp_path)["train"]
    assert {row.answer for row in learned} == {"order", "order, refund", "none", "return"}
    assert (known.tags, known.labels, known.separator, known.threshold) == (("order", "refund", "return"), (), ",", 0.3)
    assert known.head_rows == known.tags
    assert known.label_rows == tuple(sum(tag in row.answer for row in learned) for tag in known.tags)


def test_a_cell_with_separators_is_the_same_as_a_list(tmp_path: Path) -> None:
    as_text = [{**row, "topics": " ; ".join(row["topics"])} for row in rows()]
    run(tmp_path, as_text, method={"type": "sft"}, **SEVERAL | {"labels": {"separator": ";"}})
    assert {row.answer for row in shards(tmp_path)["train"]} == {"order", "order; refund", "none", "return"}
    assert contract(tmp_path).label_rows == ()


def test_numbers_have_the_scale_of_the_training_rows_and_are_no_personal_data(tmp_path: Path) -> None:
    made = [*rows(), {"message": "one more", "topics": [], "minutes": "soon"}]
    report = run(tmp_path, made, method={"type": "regression"}, **NUMBER)
    assert report.dropped == {"not_a_number": 1}
    numbers = [float(row.answer) for row in shards(tmp_path)["train"]]
    scale = contract(tmp_path).scale
    assert scale is not None
    assert scale.mean == pytest.approx(sum(numbers) / len(numbers))
    assert scale.spread == pytest.approx((sum((one - scale.mean) ** 2 for one in numbers) / len(numbers)) ** 0.5)
    assert contract(tmp_path).head_rows == (contract(tmp_path).name,)


def test_nothing_to_learn_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row of the train split has a label"):
        run(tmp_path, [{**row, "topics": []} for row in rows()], **SEVERAL)
    with pytest.raises(DataError, match=r"all \d+ numbers of the train split are 3: there is nothing to learn"):
        run(tmp_path, [{**row, "minutes": 3} for row in rows()], **NUMBER)


@pytest.mark.parametrize("task", [SEVERAL, NUMBER])
def test_what_is_exchanged_in_a_text_leaves_its_labels_and_numbers(tmp_path: Path, task: dict[str, Any]) -> None:
    write(tmp_path / "unused.csv", [{"a": "b"}])
    made = [{**row, "message": f"the order {place} of {row['minutes']}"} for place, row in enumerate(rows())]
    report = run(tmp_path, made, augment={"swap": 1.0, "swaps": [["order", "parcel"]]}, leakage={"near": False}, **task)
    assert report.rows_added > 5
    answers = {row.text.replace("parcel", "order"): row.answer for row in shards(tmp_path)["train"] if not row.made_by}
    offspring = [row for row in shards(tmp_path)["train"] if row.made_by]
    assert all(row.answer == answers[row.text.replace("parcel", "order")] for row in offspring)
    assert not any("parcel" in row.answer for row in offspring)
