from __future__ import annotations

import math

import pytest

from luthier.plan import words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"),
        (9.94, "9.9 s"),
        (59.6, "1 min 00 s"),
        (12, "12 s"),
        (200, "3 min 20 s"),
        (599.9, "10 min"),
        (3599, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (9.97, "10 s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


def test_other_numbers() -> None:
    assert words.memory(2.43) == "2.4 GiB"
    assert words.memory(0.35) == "358 MiB"
    assert words.size(98_100_000) == "98.1 MB"
    assert words.size(541_200_000_0) == "5.4 GB"
    assert words.size(12) == "12 bytes"
    assert words.count(4_884_480) == "4,884,480"
    assert words.millions(134_515_008) == "134.5 M"
    assert words.millions(1_700_000_000) == "1.7 G"
    assert words.points(0.0834) == "8.3 points"
    assert words.p_value(3e-9) == "p < 0.001"
    assert words.p_value(0.0131) == "p = 0.013"
    assert words.p_value(0.42) == "p = 0.42"
    assert words.p_value(math.nan) == ""
