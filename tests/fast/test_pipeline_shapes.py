"""Every shape of rows that people have is recognised and shown with a recipe; what the recipe says wins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from command import call, paper_model


def turns(n: int, role: str, said: str, *, keys: tuple[str, str] = ("user", "assistant")) -> list[dict[str, str]]:
    return [{role: keys[0], said: f"where is parcel {n} now"}, {role: keys[1], said: f"it is in town number {n}"}]


SHAPES: dict[str, Any] = {
    "messages": lambda n: {"messages": turns(n, "role", "content")},
    "sharegpt": lambda n: {"conversations": turns(n, "from", "value", keys=("human", "gpt"))},
    "alpaca": lambda n: {"instruction": f"say where parcel {n} is", "input": f"parcel {n}", "output": f"in town {n}"},
    "prompt_completion": lambda n: {"prompt": f"where is parcel {n}?", "completion": f"it is in town number {n}"},
    "text_label": lambda n: {"text": f"where is parcel number {n}", "label": "ab"[n % 2]},
    "source_target": lambda n: {"source": f"where is parcel {n}", "target": f"wo ist das Paket {n}"},
    "preference": lambda n: {"prompt": f"where is {n}?", "chosen": f"it is in town {n}", "rejected": f"no idea, {n}"},
    "plain_text": lambda n: {"text": f"paragraph number {n} of a long text about parcels"},
}
TRAINED = list(SHAPES)


def write(folder: Path, shape: str) -> None:
    (folder / "data.jsonl").write_text("".join(json.dumps(SHAPES[shape](n)) + "\n" for n in range(60)))


@pytest.mark.parametrize("shape", SHAPES)
def test_inspect_shows_shape_and_recipe(tmp_path: Path, shape: str) -> None:
    write(tmp_path, shape)
    said = call("data", "inspect", "data.jsonl", cwd=tmp_path).succeeds().out
    assert f"\nshape: {shape}" in said
    if shape in TRAINED:
        assert "`luthier init` writes:" in said
        return
    assert "no recipe: its rows are" in said
    assert "no method of this version learns from" in said
    assert "\n  -> " in said
    assert "data.train[0].task" in said


@pytest.mark.parametrize("shape", TRAINED)
def test_what_init_writes_is_taken_by_check(tmp_path: Path, shape: str) -> None:
    write(tmp_path, shape)
    call("init", "data.jsonl", cwd=tmp_path).succeeds()
    small = ["--set", f"model.name={paper_model(tmp_path / 'model')}", "--set", "data.privacy.profile=fast", "--json"]
    resolved = call("check", "data.yaml", *small, cwd=tmp_path).succeeds().document
    entry = yaml.safe_load((tmp_path / "data.yaml").read_text())["data"]["train"][0]
    assert resolved["recipe"]["data"]["train"][0]["task"] == entry["task"]


@pytest.mark.parametrize(
    ("shape", "entry"),
    [
        ("alpaca", {"input": "{input}", "label": "output", "task": "generation"}),
        ("prompt_completion", {"input": "{completion}", "label": "prompt", "task": "generation"}),
        ("source_target", {"input": "{target}", "label": "source", "task": "translation"}),
        ("text_label", {"input": "{label}", "label": "text", "task": "generation"}),
        ("preference", {"input": "{prompt}", "label": "rejected", "task": "generation"}),
    ],
)
def test_a_mapping_in_the_recipe_overrides(tmp_path: Path, shape: str, entry: dict[str, str]) -> None:
    write(tmp_path, shape)
    tree = {"name": "r", "model": str(paper_model(tmp_path / "model")),
            "data": {"train": [{"path": "data.jsonl", **entry}], "privacy": {"profile": "fast"}}}  # fmt: skip
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(tree))
    made = call("check", "r.yaml", "--json", cwd=tmp_path).succeeds().document
    assert {key: made["recipe"]["data"]["train"][0][key] for key in entry} == entry
