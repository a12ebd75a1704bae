"""What docs/evaluation.md says is what happens."""

from __future__ import annotations

import csv
from pathlib import Path

import test_evals_coverage
from scipy import stats

from luthier.evals.intervals import FEWEST_BEYOND, FEWEST_GROUPS
from luthier.plan.looks import level_of, one_sided
from luthier.plan.power import must_observe

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_numbers_are_those_of_the_code() -> None:
    assert f"With fewer than {FEWEST_GROUPS} there is no interval" in PAGE
    assert f"z^2 = {stats.norm.ppf(0.975) ** 2:.2f}" in PAGE
    assert "`tests/fast/test_evals_coverage.py`" in PAGE


def test_the_table_of_looks_is_that_of_the_code() -> None:
    rows = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("|")]
    cells = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    looks = [int(cell) for cell in cells["look"]]
    assert cells["one-sided bound at"] == [one_sided(look, 0.95) for look in looks]
    needed = [must_observe(0.80, 300, level=level_of(look, 0.95)) for look in looks]
    assert cells["a share of 0.80 on 300 rows is shown by about"] == [f"{value:.3f}" for value in needed]
    assert f"fewer than {FEWEST_BEYOND} of these" in PAGE


def test_what_the_page_says_is_simulated_is_simulated() -> None:
    told = {"means": "mean_of_normal", "skewed losses": "mean_of_losses", "shares": "share_of_right", "kappa": "kappa"}
    for word, test in told.items():
        assert word in " ".join(PAGE.split())
        assert any(test in name for name in vars(test_evals_coverage))


def test_the_table_is_what_its_script_wrote() -> None:
    with (ROOT / "benchmarks/results/intervals.csv").open(encoding="utf-8", newline="") as file:
        last = {row["groups"]: row for row in csv.DictReader(file)}
    for title, column in (("percentile bootstrap", "percentile_misses"), ("here", "luthier_misses")):
        shares = [f"{100 * float(row[column]) + 1e-9:.1f} %" for row in last.values()]
        assert f"| {title} | {' | '.join(shares)} |" in PAGE
    assert f"| groups | {' | '.join(last)} |" in PAGE
    (repetitions,) = {int(row["repetitions"]) for row in last.values()}
    assert f"{repetitions:,} repetitions" in PAGE
