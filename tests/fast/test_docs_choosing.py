"""What docs/choosing.md says of the plan is what the plan does."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import samples
import yaml

from luthier.plan.expect import TABLE
from luthier.plan.lines import lines
from luthier.plan.make import make_plan
from luthier.plan.rank import (
    FEW_ROWS_PER_LABEL,
    FEW_SHOT,
    FULL_ROWS,
    HARDLY_ANY_ROWS,
    MANY_ROWS_PER_LABEL,
    TFIDF,
    ZERO_SHOT,
)
from luthier.plan.search import why_no_search
from luthier.plan_records import Plan
from luthier.spec.fill_baselines import FEW_SHOT_EXAMPLES
from luthier.spec.load import load_recipe
from luthier.spec.suits import MANY_LABELS, THIN_ROWS_PER_LABEL

PAGE = (Path(__file__).parents[2] / "docs" / "choosing.md").read_text(encoding="utf-8")


def plan_of(rows: int, labels: int, **sections: Any) -> Plan:
    counts = {f"l{number}": rows // labels for number in range(labels)}
    profile = samples.profile(num_rows=rows, labels=counts)
    return make_plan(samples.resolved(**{"objective": {}, **sections}), profile, samples.shape(), matmul_gflops=100.0)


def test_the_budget_shown_is_obeyed() -> None:
    section = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])["objective"]  # type: ignore[index]
    made = plan_of(1200, 12, objective=section)
    assert made.currency == "EUR"
    head = next(line for line in lines(made) if "whole run" in line and "trains" in line)
    columns = re.findall(r"^\| ([a-z, ]+) \|", PAGE.partition("Below stand")[0], re.MULTILINE)[1:]
    assert all(word in head for column in columns for word in column.split(", "))


def test_the_numbers_of_the_rules_are_those_of_the_code() -> None:
    for words in (
        f"less than {FEW_ROWS_PER_LABEL:.0f} rows a label",
        f"less than {THIN_ROWS_PER_LABEL:.0f} rows a label, up to {MANY_LABELS} labels",
        f"more than {MANY_ROWS_PER_LABEL:,.0f} rows a label",
        f"no labels, less than {HARDLY_ANY_ROWS} rows",
        f"{FULL_ROWS:,} rows and more",
    ):
        assert f"| {words}" in PAGE


@pytest.mark.parametrize(
    ("rows", "labels", "first"), [(18, 12, ZERO_SHOT), (60_000, 12, TFIDF), (3400, 77, TFIDF), (9700, 2, "lora sft")]
)
def test_the_ranking_is_as_told(rows: int, labels: int, first: str) -> None:
    entry = {"path": "support.csv", "task": "sentiment" if labels == 2 else "classification"}
    ranked = [one.technique for one in plan_of(rows, labels, data={"train": [entry]}).candidates]
    assert first in (ranked[0], next(name for name in ranked if name in (TFIDF, ZERO_SHOT, "lora sft")))


def test_the_measurements_shown_are_those_shipped() -> None:
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "accuracy"]
    for data in ("banking77", "sst2"):
        line = next(line for line in PAGE.splitlines() if line.startswith(f"| {data} "))
        for technique in (ZERO_SHOT, TFIDF, "lora sft"):
            one = next(row for row in rows if (row["data"], row["technique"]) == (data, technique))
            assert f"{one['point']} [{one['low']}, {one['high']}]" in line


def test_few_shot_is_asked_for_as_shown_and_off_otherwise() -> None:
    part = PAGE.partition("## Few-shot prompting")[2].partition("\n## ")[0]
    section = yaml.safe_load(re.search(r"```yaml\n(.*?)```", part, re.DOTALL)[1])["evaluate"]  # type: ignore[index]
    assert section == {"few_shot_examples": FEW_SHOT_EXAMPLES}
    evaluated = samples.resolved(evaluate=section).recipe.evaluate
    assert "few_shot" in (evaluated.baselines or ())
    assert "few_shot" not in (samples.resolved().recipe.evaluate.baselines or ())
    usual, asked = plan_of(1200, 12), plan_of(1200, 12, evaluate=section)
    assert asked.prediction.evaluate_seconds > 2 * usual.prediction.evaluate_seconds
    for made in (usual, asked):
        line = next(one for one in made.candidates if one.technique == FEW_SHOT)
        assert line.expected is None


def test_the_few_shot_measurement_shown_is_the_one_kept() -> None:
    kept = Path(__file__).parents[2] / "benchmarks" / "results" / "few_shot.csv"
    with kept.open(encoding="utf-8", newline="") as file:
        row = next(csv.DictReader(file))
    for name, title in (("accuracy", "accuracy"), ("macro_f1", "macro-F1")):
        shown = f"| {title} | {row[f'zero_{name}']} | {row[f'few_{name}']} | {row[f'difference_{name}']} |"
        assert shown in PAGE
    assert f"{row['items']} test items ({row['groups']} groups)" in PAGE
    assert f"{row['mean_examples']} fitted on average" in PAGE
    assert f"It took {row['time_ratio']} times as long" in PAGE


def test_the_search_shown_is_read_and_takes_what_is_said(tmp_path: Path) -> None:
    (shown,) = [text for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if text.startswith("search:")]
    (tmp_path / "r.yaml").write_text("name: r\nmodel: m\ndata: d.csv\n" + shown, encoding="utf-8")
    recipe = load_recipe(tmp_path / "r.yaml").recipe
    assert recipe.search is not None
    assert why_no_search(recipe) == ""
    assert [recipe.search.on_rung(rung) for rung in range(3)] == [9, 3, 1]
    assert f"about as long as {recipe.search.trainings:.1f} trainings" in PAGE
