"""What docs/preference.md says is what is there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import echo_engine
import yaml

from luthier.data.profile import profile
from luthier.engines.pair import answer_columns, said_of
from luthier.records import Answer
from luthier.serve.schemas import ClassifyRequest
from luthier.spec.load import load_recipe
from luthier.spec.methods.reward import RewardModel
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


def test_the_recipe_of_a_reward_model_is_read_and_its_answers_look_as_they_are_shown(tmp_path: Path) -> None:
    part = PAGE[PAGE.index("## A reward model") :]
    (tmp_path / "r.yaml").write_text(re.search(r"```yaml\n(.*?)```", part, re.DOTALL)[1], encoding="utf-8")
    recipe = load_recipe(tmp_path / "r.yaml").recipe
    assert recipe.method == RewardModel(center_rewards_coefficient=0.01)
    one, pair = (json.loads(line) for line in re.search(r"```json\n(.*?)```", part, re.DOTALL)[1].splitlines())
    answers = [echo_answer(value) for value in (pair["scores"]["chosen"], pair["scores"]["rejected"])]
    assert one == {"line": 1, **said_of(("answer",), (echo_answer(one["score"]),))}
    assert pair == {"line": 2, **said_of((recipe.entry.label or "", recipe.entry.rejected or ""), tuple(answers))}
    asked = ClassifyRequest.model_validate_json(re.search(r"-d '(.*?)'\n```", part, re.DOTALL)[1])
    contract = echo_engine.contract(
        task="preference",
        labels=(),
        answered_by="head",
        input=recipe.entry.input,
        answer_columns=("chosen", "rejected"),
    )
    row, conversation = asked.input
    assert isinstance(row, dict)
    assert set(row) == {"prompt", *answer_columns(contract, row)}
    assert isinstance(conversation, dict)
    assert [turn["role"] for turn in conversation["messages"]] == ["user", "assistant"]


def echo_answer(value: float) -> Answer:
    return Answer(
        text="", label="", value=value, probabilities={}, prompt_tokens=1, answer_tokens=0, lost_tokens=0,
        log_mass=None, greedy_label=None,
    )  # fmt: skip


def test_every_reason_named_is_one_that_the_code_gives() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src" / "luthier" / "data").rglob("*.py"))
    part = PAGE[PAGE.index("where an answer is empty") : PAGE.index("both rows)")]
    reasons = re.findall(r"`(\w+)`", part)
    assert len(reasons) == 5
    assert all(f'"{reason}"' in code for reason in reasons)
