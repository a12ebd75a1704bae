"""Records on disk are JSON that any other program reads."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from luthier.records import Interval


def refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.1 + 0.2, 5e-324, 1e308])
def test_any_number_comes_back_and_the_file_is_strict_json(tmp_path: Path, value: float) -> None:
    path = tmp_path / "interval.json"
    path.write_text(Interval(point=value, low=0.0, high=1.0, n=3).to_json(), encoding="utf-8")
    json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    back = Interval.read(path).point
    assert back == value or (math.isnan(back) and math.isnan(value))
