"""Canaries are learned like rows of the task, stand nowhere else, and the file holds what the test of memory needs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from test_data_prepare import run, shards, tickets

from luthier.data.canaries import FILE
from luthier.data.contract import Renderer
from luthier.data.shards import Shard
from luthier.data_report import CanaryFile
from luthier.errors import DataError
from luthier.evals.baselines import majority
from luthier.report.data import render_data
from luthier.spec.recipe import Recipe

FEW = {"count": 2, "copies": [0, 1, 4]}


def planted(folder: Path) -> CanaryFile:
    return CanaryFile.model_validate_json((folder / "out" / FILE).read_text(encoding="utf-8"))


@pytest.mark.parametrize("action", ["report", "redact", "drop"])
def test_canaries_are_learned_and_stand_nowhere_else(tmp_path: Path, action: str) -> None:
    rules = {"action": action, "secrets": "stop", "profile": "fast"}
    report = run(tmp_path, tickets(200), canaries=FEW, privacy=rules)
    kept = planted(tmp_path)
    assert (kept.digits, kept.space, kept.seed) == (8, 10**8, 0)
    assert Counter(one.copies for one in kept.canaries) == {0: 2, 1: 2, 4: 2}
    assert len({one.secret for one in kept.canaries}) == len({one.text for one in kept.canaries}) == 6
    assert all(len(one.secret) == 8 and one.secret.isdecimal() for one in kept.canaries)
    rows = shards(tmp_path)
    learned = [one for one in rows["train"] if one.made_by == "canary"]
    assert Counter((one.text, one.answer) for one in learned) == {
        (one.text, one.secret): one.copies for one in kept.canaries if one.copies
    }
    asker = Renderer.open(tmp_path / "out" / "contract.json", tmp_path / "tokenizer" / "tokenizer.json")
    for one in learned:
        assert (one.line, one.parent) == (0, "")
        assert one.input_ids == asker.prompt_ids(asker.messages(one.text)) + asker.answer_ids(one.answer)
        assert sum(one.supervised) == len(asker.answer_ids(one.answer)), "the secret is learned like any answer"
    groups = {one.group for name in ("validation", "test") for one in rows[name]}
    assert not groups & {one.group for one in learned}
    assert len({one.group for one in learned}) == 4
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes() if path.name not in (FILE, "train.arrow") else b""
        assert not any(one.secret.encode() in content for one in kept.canaries), path.name
    assert not any(one.secret in render_data(report) for one in kept.canaries)
    assert report.canaries is not None
    assert (report.canaries.copies, report.canaries.rows, report.rows_added) == ({0: 2, 1: 2, 4: 2}, 10, 10)
    assert report.rows_in + 10 == report.rows_out + sum(report.dropped.values())


def test_canaries_are_no_labels_and_change_nothing_else(tmp_path: Path) -> None:
    plain = run(tmp_path, tickets(200))
    contract = (tmp_path / "out" / "contract.json").read_bytes()
    goldens = (tmp_path / "out" / "goldens.json").read_bytes()
    before = shards(tmp_path)
    report = run(tmp_path, tickets(200), canaries=FEW)
    assert (tmp_path / "out" / "contract.json").read_bytes() == contract
    assert (tmp_path / "out" / "goldens.json").read_bytes() == goldens
    assert report.splits["train"].labels == plain.splits["train"].labels
    assert (report.rare_labels, report.views) == (plain.rare_labels, plain.views)
    train = Shard(tmp_path / "out" / "train.arrow")
    assert list(train.originals()) == before["train"]
    assert {name: shards(tmp_path)[name] for name in ("validation", "test")} == {
        name: before[name] for name in ("validation", "test")
    }
    said = majority(train.originals(), [], before["test"])
    assert set(said.predicted) <= set(plain.splits["train"].labels)
    run(tmp_path, tickets(200))
    assert not (tmp_path / "out" / FILE).exists(), "secrets of another recipe do not stay"


def test_the_seed_makes_the_secrets_and_the_recipe_their_form(tmp_path: Path) -> None:
    contents = []
    for rules in (FEW, FEW, {**FEW, "seed": 1}, {**FEW, "digits": 12}, {**FEW, "prompt": "PIN of {name}:"}):
        run(tmp_path, tickets(200), canaries=rules)
        contents.append(planted(tmp_path))
    assert contents[0] == contents[1]
    secrets = [[one.secret for one in content.canaries] for content in contents]
    assert not set(secrets[0]) & set(secrets[2])
    assert {len(secret) for secret in secrets[3]} == {12}
    assert all(one.text.startswith("PIN of ") and one.text.endswith(":") for one in contents[4].canaries)
    more = {**FEW, "count": 3}
    run(tmp_path, tickets(300), canaries=more)
    assert {one.secret for one in contents[0].canaries} < {one.secret for one in planted(tmp_path).canaries}


def test_free_answers_and_conversations(tmp_path: Path) -> None:
    rows = [{"title": f"t{17**n}", "body": f"b{13**n}", "a": f"answer {n}"} for n in range(200)]
    recipe: dict[str, Any] = {"path": "data.jsonl", "task": "generation", "label": "a", "system": ""}
    run(tmp_path, rows, input="Title: {title}\nBody: {body}", canaries=FEW, **recipe)
    text = planted(tmp_path).canaries[0].text
    assert text.startswith("Title: What is the access code of ")
    assert text.endswith("?\nBody:")
    turns = [{"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}]}
             for n in range(200)]  # fmt: skip
    run(tmp_path, turns, **{**recipe, "label": ""}, input="", canaries=FEW)
    learned = [one for one in shards(tmp_path)["train"] if one.made_by]
    assert len(learned) == 10
    assert {(one.text, one.answer) for one in learned} == {
        (one.text, one.secret) for one in planted(tmp_path).canaries if one.copies
    }
    contract = json.loads((tmp_path / "out" / "contract.json").read_text())
    assert contract["labels"] == []


def test_too_many_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"8 secrets for each of 4 numbers of copies are 168 rows, more than 10%"
    ) as error:
        run(tmp_path, tickets(400), canaries={})
    assert "set data.canaries.count to 1 or less" in error.value.way_out
    with pytest.raises(DataError) as error:
        run(tmp_path, tickets(60), canaries={})
    assert "data.canaries.copies" in error.value.way_out


def test_canaries_that_are_too_long_are_refused(tmp_path: Path) -> None:
    long = {**FEW, "prompt": "qwx vbn " * 60 + "{name}"}
    with pytest.raises(DataError, match=r"10 of 10 rows are longer than train.max_length, 200 tokens") as error:
        run(tmp_path, tickets(200), canaries=long, max_length=200)
    assert "data.canaries.prompt" in error.value.way_out
    assert not (tmp_path / "out" / "report.json").exists()


@pytest.mark.parametrize(
    ("train", "key"), [({"sampler": "sqrt"}, "sampler"), ({"class_weight": "balanced"}, "class_weight")]
)
def test_canaries_are_not_weighted_or_drawn_more_often(train: dict[str, str], key: str) -> None:
    rest = {"name": "r", "model": {"name": "m"}, "data": {"train": [{"path": "f.csv"}], "canaries": {}}}
    with pytest.raises(
        ValidationError, match=rf"train\.{key} would change how often data\.canaries are learned; leave"
    ):
        Recipe.model_validate({**rest, "train": train})
