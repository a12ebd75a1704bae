"""What docs/distillation.md says is what is there."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import get_args

from luthier.models import taught
from luthier.plan import teaching
from luthier.spec.asking import Writer
from luthier.spec.load import load_recipe
from luthier.spec.methods.distill import FACTS, Distill
from luthier.train.methods.distill import EVEN

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "distillation.md").read_text(encoding="utf-8")
LOGITS, _, SEQUENCE = PAGE.partition("## By sequence")


def test_the_recipes_shown_are_read(tmp_path: Path) -> None:
    recipes = []
    for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL):
        (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
        recipes.append(load_recipe(tmp_path / "r.yaml").recipe)
    assert [recipe.method.type for recipe in recipes] == ["distill", "auto"]
    assert recipes[1].data.teacher is not None


def test_every_setting_and_divergence_is_named_and_there_are_no_others() -> None:
    divergences = get_args(Distill.model_fields["divergence"].annotation)
    assert tuple(re.findall(r"^\| `(\w+)`", LOGITS, re.MULTILINE)) == divergences
    assert set(taught._DIVERGENCES) == set(divergences)
    named = set(re.findall(r"`method\.(\w+)[`:]", PAGE)) | set(re.findall(r"`(beta)` near 0", PAGE))
    assert named == set(Distill.model_fields) - {"type"}
    assert Distill(teacher="t").divergence == divergences[0]
    assert 0 < EVEN < 1


def test_the_methods_that_may_teach_write_words() -> None:
    assert "Name a run of `method: sft`, `pretrain` or `distill`" in PAGE
    assert FACTS.is_taught


def test_the_positions_told_are_those_of_the_code_and_of_the_plan() -> None:
    assert f"for {taught.CHUNK} positions at a time" in PAGE
    assert teaching.POSITIONS == taught.CHUNK


def test_every_key_and_reason_of_a_teacher_that_writes_is_named() -> None:
    keys = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", SEQUENCE, re.MULTILINE)
    assert {key for line in keys for key in re.findall(r"`(\w+)`", line)} == set(Writer.model_fields)
    folder = ROOT / "src" / "luthier" / "data"
    code = "".join((folder / name).read_text(encoding="utf-8") for name in ("writer.py", "endpoint.py"))
    before = SEQUENCE[SEQUENCE.index("is not asked about (") :].partition(")")[0]
    after = SEQUENCE[SEQUENCE.index("by reason:") : SEQUENCE.index("(an answer names")]
    named = set(re.findall(r"`(\w+)`", before + after))
    assert all(f'"{reason}"' in code for reason in named)
    assert set(re.findall(r'"(\w+)", ""', code)) <= named
    kept = re.search(r'home\(\) / "(\w+)"', code)
    assert kept is not None
    assert f"`LUTHIER_HOME/{kept[1]}`" in SEQUENCE


def test_the_numbers_shown_are_those_that_were_measured() -> None:
    with (ROOT / "benchmarks" / "results" / "distillation.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 4
    for row in rows:
        accuracy, low, high = (float(row[key]) for key in ("accuracy", "low", "high"))
        line = f"| {accuracy:.3f} [{low:.3f}, {high:.3f}] |"
        if row["way"].startswith("distill"):
            gap, below, above = (float(row[key]) for key in ("less_sft", "less_low", "less_high"))
            line += f" {gap:+.3f} [{below:+.3f}, {above:+.3f}] |"
        assert line in PAGE, row
        assert f"{row['n_test']} test questions" in PAGE
        assert f"{row['rows']} of these questions" in PAGE
