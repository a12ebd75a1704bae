"""What docs/merging.md says is what there is; its commands are run by tests/invariants/test_merging.py."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from luthier.compress.merge.arithmetic import Mix, combine
from luthier.data.learned_before import REASON
from luthier.spec.load import load_recipe
from luthier.spec.merge import KEPT_SETTINGS, MERGES, refuse_learning

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "merging.md").read_text(encoding="utf-8")


def test_the_recipe_shown_is_read(tmp_path: Path) -> None:
    shown = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert shown is not None
    (tmp_path / "r.yaml").write_text(shown[1], encoding="utf-8")
    loaded = load_recipe(tmp_path / "r.yaml")
    refuse_learning(loaded)
    assert loaded.recipe.merge is not None


def test_every_method_is_told_with_its_settings() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| .*? \| (.*?) \| .*? \|$", PAGE, re.MULTILINE))
    assert rows.keys() == MERGES.keys()
    for name, facts in MERGES.items():
        density = re.search(r"`density` \(([\d.]+)\)", rows[name])
        assert (float(density[1]) if density else None) == facts.usual_density
        assert ("`seed`" in rows[name]) == facts.draws
        assert ("`weights`" in rows[name]) == (not facts.chooses)
        assert ("`weights` (1 each)" in rows[name]) == (not facts.averages and not facts.chooses)
        if not facts.chooses:
            Mix(name, (1.0,))
            assert callable(combine)
    kept = re.search(r"\((`max_length`.*?) stay\)", PAGE, re.DOTALL)
    assert kept is not None
    assert tuple(re.findall(r"`(\w+)`", kept[1])) == KEPT_SETTINGS
    assert f"`{REASON}`" in PAGE


def test_the_numbers_shown_are_those_that_were_measured() -> None:
    with (ROOT / "benchmarks" / "results" / "merging.csv").open(encoding="utf-8", newline="") as file:
        measured = {(row["kind"], row["case"], row["task"]): row for row in csv.DictReader(file)}
    number, signed = r"([\d.]+)", r"([+−][\d.]+)"
    interval, gap = rf"{number} \[{number}, {number}\]", rf"{signed} \[{signed}, {signed}\]"
    shown = re.findall(rf"^\| (\w+) \| ([\w ,-]+?) \| (\w+) \| {interval} \| {gap} \|", PAGE, re.MULTILINE)
    assert len(shown) >= 8
    for kind, case, task, *numbers in shown:
        row = measured[kind, case, task]
        told = re.findall(r"[+-]?[\d.]+", f"{row['accuracy']} {row['difference']}")
        values = [float(number.replace("−", "-")) for number in numbers]
        assert values == pytest.approx([float(number) for number in told], abs=0.0051)
