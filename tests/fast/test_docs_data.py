"""Numbers of docs/data.md are those that were measured."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
SYSTEMS = {
    "Presidio's default": "presidio_default",
    "the same, with organizations": "presidio_organizations",
    "fast": "fast",
    "balanced": "balanced",
    "maximum": "maximum",
}
COLUMNS = ("f1", "near_f1", "masked", "clean_texts", "harmless_masked")


def results(name: str) -> list[dict[str, Any]]:
    with (ROOT / "benchmarks" / "results" / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_what_is_found_of_personal_data_is_the_last_measure_of_the_test_split() -> None:
    last = {row["system"]: row for row in results("privacy_quality.csv") if row["split"] == "test"}
    assert set(last) == set(SYSTEMS.values())
    for title, system in SYSTEMS.items():
        cells = re.search(rf"^\| {title} \| (.+) \|$", PAGE, re.MULTILINE)[1].split(" | ")
        for column, cell in zip(COLUMNS, cells, strict=True):
            told = re.fullmatch(r"(\.\d+) \[(\.\d+), (\.\d+)\]", cell).groups()
            for number, end in zip(told, ("", "_low", "_high"), strict=True):
                half = 0.5 * 10.0 ** -(len(number) - 1)
                assert float(number) == pytest.approx(float(last[system][column + end]), abs=half + 1e-9), (
                    system,
                    column,
                )


def test_a_million_rows_took_what_is_said() -> None:
    rows = [row for row in results("prepare_scale.csv") if row["rows"] == "1000000" and row["times_as_fast_as_peer"]]
    for said in (
        f"needed {rows[-1]['peak_gib']} GiB",
        f"{rows[-1]['times_as_fast_as_peer_with_processes']}\ntimes as fast as the pipeline",
        f"({rows[-1]['times_as_fast_as_peer']} times as in one)",
    ):
        assert said in PAGE
