"""A leaderboard claims what its pairs show, and draws what is a number."""

from __future__ import annotations

import math

import samples

from luthier.eval_records import Contender, Difference, Leaderboard
from luthier.report.leaderboard import claim, drawing, render_leaderboard


def board(metric: str = "macro_f1", **points: float) -> Leaderboard:
    """Contenders with a value each; the first is the better one, and leads by the difference, give or take .05."""
    names = list(points)
    return Leaderboard(
        task="classification", metric=metric, num_items=200, num_groups=90, not_counted=0, level=0.95, pair_level=0.99,
        contenders=tuple(
            Contender(name=name, metrics={metric: samples.interval(point, 0.04)}, answer_seconds=0.1)
            for name, point in points.items()
        ),
        pairs=tuple(
            Difference(system=one, against=other, metric=metric, p_value=math.nan,
                       interval=samples.interval(points[one] - points[other], 0.05))
            for place, one in enumerate(names) for other in names[place + 1 :]
        ),
        left_out=(),
    )  # fmt: skip


def test_a_lead_is_claimed_over_those_that_it_is_shown_over() -> None:
    assert claim(board(a=0.9, b=0.88, c=0.7)) == (
        "a has the best macro-F1, 0.900; it is shown to be better than c; no difference is shown to b."
    )
    assert claim(board(a=0.9, b=0.89)) == "a has the best macro-F1, 0.900; no difference is shown to b."
    less = claim(board("mae", a=1.0, b=2.0))
    assert less == "a has the best mean absolute error, 1.000; it is shown to be better than b."


def test_names_are_text_and_what_is_no_number_is_not_drawn() -> None:
    page = render_leaderboard(board(**{"<b>": 0.9, "c": 0.5}))
    assert "<b>" not in page.split("</style>")[1]
    assert 'class="pass">+40.0 points' in page
    assert drawing(board(a=math.nan, b=math.nan)) == ""
    assert "has the best macro-F1, –" in claim(board(a=math.nan, b=math.nan))
