"""What docs/tokens.md says is what happens."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml
from data_kit import renderer

from luthier.data.chat import parse_chat
from luthier.data.masks import Supervision, mask
from luthier.spec.load import load_recipe
from luthier.spec.recipe import DataEntry, Train

PAGE = (Path(__file__).parents[2] / "docs" / "tokens.md").read_text(encoding="utf-8")


def test_the_recipe_shown_is_read(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1], encoding="utf-8")
    recipe = load_recipe(tmp_path / "r.yaml").recipe
    assert (recipe.data.too_long, recipe.train.class_weight, recipe.train.class_weight_beta) == (
        "cut_middle", "effective", 0.99,
    )  # fmt: skip


def test_every_value_shown_is_taken() -> None:
    shown = re.findall(r"`train\.(\w+): ([^`]+)`", PAGE)
    assert {key for key, _ in shown} == {"class_weight", "sampler"}
    for key, value in shown:
        Train.model_validate({key: yaml.safe_load(value)})


def test_what_a_conversation_teaches(tmp_path: Path) -> None:
    cell = json.loads(re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)[1])["messages"]
    turns = parse_chat(cell)
    assert not isinstance(turns, str)
    ours = renderer(tmp_path, task="generation", system="")
    rows = re.findall(r"^\| (as it is|`\w+: .*?`) \| (.*) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 3
    for keys, learned in rows:
        given = {} if keys == "as it is" else yaml.safe_load(keys.strip("`"))
        found = mask(ours, turns, Supervision.of(DataEntry.model_validate({"path": "d", **given})))
        text = ours.raw_text([token for token, on in zip(found.ids, found.supervised, strict=True) if on])
        assert text.split("<|im_end|>")[:-1] == re.findall(r"`([^`]+)`", learned)
