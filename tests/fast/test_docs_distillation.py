"""What docs/distillation.md says is what is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from luthier.models import taught
from luthier.plan import teaching
from luthier.spec.load import load_recipe
from luthier.spec.methods.distill import FACTS, Distill
from luthier.train.methods.distill import EVEN

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "distillation.md").read_text(encoding="utf-8")


def test_the_recipes_shown_are_read(tmp_path: Path) -> None:
    for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL):
        (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
        assert load_recipe(tmp_path / "r.yaml").recipe.method.type == "distill"


def test_every_setting_and_divergence_is_named_and_there_are_no_others() -> None:
    divergences = get_args(Distill.model_fields["divergence"].annotation)
    assert tuple(re.findall(r"^\| `(\w+)`", PAGE, re.MULTILINE)) == divergences
    assert set(taught._DIVERGENCES) == set(divergences)
    named = set(re.findall(r"`method\.(\w+)`", PAGE)) | set(re.findall(r"`(beta)` near 0", PAGE))
    assert named == set(Distill.model_fields) - {"type"}
    assert Distill(teacher="t").divergence == divergences[0]
    assert 0 < EVEN < 1


def test_the_methods_that_may_teach_write_words() -> None:
    assert "Name a run of `method: sft`, `pretrain` or `distill`" in PAGE
    assert FACTS.is_taught


def test_the_positions_told_are_those_of_the_code_and_of_the_plan() -> None:
    assert f"for {taught.CHUNK} positions at a time" in PAGE
    assert teaching.POSITIONS == taught.CHUNK
