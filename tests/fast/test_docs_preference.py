"""What docs/preference.md says is what is there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from luthier.data.profile import profile
from luthier.spec.load import load_recipe
from luthier.spec.plugins import METHODS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "preference.md").read_text(encoding="utf-8")


def test_the_recipe_shown_is_read_and_its_row_recognised(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1], encoding="utf-8")
    recipe = load_recipe(tmp_path / "r.yaml").recipe
    row = json.loads(re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)[1])
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps({name: f"{text} {n}" for name, text in row.items()}) + "\n" for n in range(40))
    )
    found = profile(tmp_path / "pairs.jsonl")
    assert (found.input, found.label, found.rejected) == (recipe.entry.input, recipe.entry.label, recipe.entry.rejected)


def test_the_methods_and_settings_named_are_those_that_learn_preferences() -> None:
    methods = {name: facts for name, facts in METHODS.entries().items() if "preference" in facts.tasks}
    assert set(re.findall(r"^\| `(\w+)`", PAGE, re.MULTILINE)) == set(methods)
    settings = {key for facts in methods.values() for key in facts.section.model_fields} - {"type"}
    assert set(re.findall(r"`method\.(\w+)`", PAGE)) == settings
    shown = re.search(r"method: (\{.*\})", PAGE)[1]
    assert yaml.safe_load(shown) == {"type": "dpo", "beta": methods["dpo"].section(type="dpo").model_dump()["beta"]}


def test_every_reason_named_is_one_that_the_code_gives() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src" / "luthier" / "data").rglob("*.py"))
    part = PAGE[PAGE.index("where an answer is empty") : PAGE.index("both rows)")]
    reasons = re.findall(r"`(\w+)`", part)
    assert len(reasons) == 5
    assert all(f'"{reason}"' in code for reason in reasons)
