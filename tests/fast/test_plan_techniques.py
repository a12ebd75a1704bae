"""The plan is driven by the tables: a method and an adapter that nothing knows by name are weighed and taken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from command import environment
from luthier.plan.rank import FEW_SHOT, FULL_ROWS, MAJORITY, TFIDF, ZERO_SHOT
from luthier.plan_records import Plan

INTERVAL = {"level": 0.95, "n": 300}
SFT, HEAD = "lora sft", "lora head"


def seen(technique: str, point: float, *, data: str = "d") -> dict[str, Any]:
    span = {"point": point, "low": point - 0.05, "high": point + 0.05, **INTERVAL}
    return {"technique": technique, "metrics": {"macro_f1": span}, "source": "measured in run a/1", "data": data}


BETTER = [seen(SFT, 0.9), seen(HEAD, 0.7)]
CASES: dict[str, dict[str, Any]] = {
    "many labels": {"rows": 2400, "labels": 77},
    "thin": {"rows": 60, "labels": 10},
    "enough": {"rows": 1200, "labels": 12},
    "measured": {"rows": 1200, "labels": 12, "known": BETTER},
    "near": {"rows": 1200, "labels": 12, "known": [seen(SFT, 0.72), seen(HEAD, 0.7)]},
    "elsewhere": {"rows": 1200, "labels": 12, "known": [seen(SFT, 0.9, data="other"), seen(HEAD, 0.7)]},
    "begun": {"rows": 1200, "labels": 12, "begun": SFT},
    "begun and outdone": {"rows": 1200, "labels": 12, "begun": HEAD, "known": BETTER},
    "asked for": {"rows": 1200, "labels": 12, "method": {"type": "sft"}},
    "adapter given": {"rows": 1200, "labels": 12, "adapter": {"type": "full"}},
    "no memory": {"rows": 1200, "labels": 12, "objective": {"budget": {"ram_gib": 0.1}}},
    "little memory": {"rows": 2 * FULL_ROWS, "labels": 100, "objective": {"budget": {"ram_gib": 3}}},
    "large": {"rows": 2 * FULL_ROWS, "labels": 100},
    "money": {
        "rows": 1200,
        "labels": 12,
        "objective": {"budget": {"price_per_hour": 2.0, "currency": "EUR", "money": 0.001}},
    },
    "one of several": {"rows": 1200, "labels": 12, "alone": False},
    "odd settings": {"rows": 1200, "labels": 12, "adapter": {"r": 8}},
}


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    script = Path(__file__).with_name("techniques_kit.py")
    done = subprocess.run(
        [sys.executable, str(script)],
        input=json.dumps(list(CASES.values())),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, json.loads(done.stdout), strict=True))


def plan(made: dict[str, Any], case: str) -> Plan:
    return Plan.model_validate(made[case]["plan"])


def order(made: dict[str, Any], case: str) -> list[str]:
    return [candidate.technique for candidate in plan(made, case).candidates]


def test_every_method_and_adapter_of_the_tables_is_a_candidate(made: dict[str, Any]) -> None:
    names = {SFT, HEAD, "full sft", "full head", TFIDF, ZERO_SHOT, FEW_SHOT, MAJORITY}
    assert set(order(made, "enough")) == names
    assert set(order(made, "asked for")) == names, "what the recipe asks for is weighed too"
    assert set(order(made, "adapter given")) == names - {SFT, HEAD}
    assert set(order(made, "odd settings")) == names - {"full sft", "full head"}, "settings of LoRA mean LoRA"


def test_auto_follows_rows_and_labels(made: dict[str, Any]) -> None:
    chosen = {case: plan(made, case).chosen for case in ("many labels", "thin", "enough")}
    assert chosen == {"many labels": HEAD, "thin": SFT, "enough": HEAD}
    assert made["many labels"]["reasons"]["method.type"].startswith("one of 77 labels is read off at once")
    assert made["thin"]["reasons"]["method.type"].startswith("with 4 rows a label their words say more")
    assert made["many labels"]["method"] == {"type": "head", "smoothing": 0.1}, "its settings are its own"
    assert all(made[case]["by_rule"] == technique for case, technique in chosen.items())


def test_one_task_of_several_has_the_method_that_suits_its_rows(made: dict[str, Any]) -> None:
    assert plan(made, "one of several").chosen == HEAD
    assert made["one of several"]["reasons"]["method.type"] == made["enough"]["reasons"]["method.type"]
    assert "full sft" not in order(made, "one of several"), "tasks share an adapter"


def test_what_the_recipe_asks_for_is_kept(made: dict[str, Any]) -> None:
    asked = plan(made, "asked for")
    assert (asked.chosen, asked.candidates[0].technique, asked.weighed_sha256) == (SFT, HEAD, "")
    assert f"'{HEAD}' ranks first" in asked.notes[0]


def test_measurements_on_the_same_data_overrule_rules(made: dict[str, Any]) -> None:
    assert order(made, "measured")[:2] == [SFT, HEAD]
    first = plan(made, "measured").candidates[0]
    assert first.why == f"measured to be better than '{HEAD}'"
    assert first.expected is not None
    assert (first.expected.point, first.expected.source) == (0.9, "measured in run a/1")
    assert plan(made, "measured").chosen == SFT
    assert made["measured"]["by_rule"] == HEAD
    for case in ("near", "elsewhere"):  # may be chance; cannot be compared
        assert order(made, case)[0] == HEAD


def test_a_recipe_goes_on_with_what_was_taken_unless_that_is_known_to_be_worse(made: dict[str, Any]) -> None:
    assert plan(made, "begun").chosen == SFT
    assert made["begun"]["reasons"]["method.type"] == "the plan took it when this recipe was first run"
    assert plan(made, "begun and outdone").chosen == SFT
    assert plan(made, "begun").weighed_sha256 == plan(made, "enough").weighed_sha256 != ""


def test_all_weights_are_tuned_only_where_rows_are_many_and_memory_suffices(made: dict[str, Any]) -> None:
    assert order(made, "large")[0] == "full head"
    assert plan(made, "large").chosen == "full head"
    assert made["large"]["reasons"]["adapter.type"] == "rows are many enough that all weights learn more"
    assert order(made, "little memory")[0] == HEAD
    trained = {one.technique: one for one in plan(made, "enough").candidates}
    assert trained["full sft"].trainable_parameters == 134_515_008
    assert trained["full head"].trainable_parameters == 134_515_008 + 12 * 576
    assert trained[HEAD].trainable_parameters == 4_884_480 + 12 * 576
    assert trained["full sft"].peak_memory_gib > 7 * 134_515_008 * 4 / 2**30, "weights, gradients, moments, copies"
    assert trained["full sft"].train_seconds > 1.2 * trained[SFT].train_seconds
    assert order(made, "enough").index(SFT) < order(made, "enough").index("full head")


def test_a_head_is_cheaper_to_train_and_to_ask_than_words(made: dict[str, Any]) -> None:
    of = {one.technique: one for one in plan(made, "many labels").candidates}
    assert of[HEAD].train_seconds < of[SFT].train_seconds
    assert of[HEAD].total_seconds < of[SFT].total_seconds
    assert of[HEAD].trains == "an adapter and a head"


def test_where_nothing_fits_the_best_is_taken_and_that_is_said(made: dict[str, Any]) -> None:
    assert plan(made, "no memory").chosen == HEAD
    assert not plan(made, "no memory").fits
    assert "no technique fits the budget" in made["no memory"]["reasons"]["method.type"]


def test_money_is_time_at_its_price(made: dict[str, Any]) -> None:
    priced = plan(made, "money")
    chosen = next(one for one in priced.candidates if one.technique == priced.chosen)
    assert chosen.money == pytest.approx(2.0 * chosen.total_seconds / 3600)
    assert not priced.fits
    assert (priced.currency, priced.budget["money"]) == ("EUR", 0.001)
    assert any(note.startswith("Money does not suffice: ") and "EUR" in note for note in priced.notes)
    assert all(one.money is None for one in plan(made, "enough").candidates)
