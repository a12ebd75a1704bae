"""The gate says no exactly where a bound, a parity, a finding or a license does not allow a yes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from govern_records import (
    artifact,
    data,
    decision,
    evaluation,
    glossary_use,
    interval,
    parity,
    resolved,
    shape,
    with_terms,
)  # fmt: skip
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.eval_records import GlossaryUse
from luthier.govern.gate import combine, verify_seal
from luthier.govern.license import assess
from luthier.records import GateDecision, GateLine


def line(decided: GateDecision, name: str) -> GateLine:
    [found] = [line for line in decided.lines if line.line == name]
    return found


def refused(decided: GateDecision) -> list[str]:
    return [line.line for line in decided.lines if not line.passed]


def test_a_run_that_keeps_everything_passes_with_a_line_for_each_thing() -> None:
    decided = decision()
    assert decided.passed
    assert [line.line for line in decided.lines] == [
        "intent.macro_f1",
        "general.perplexity",
        "parity of merged",
        "leakage",
        "supervision",
        "secrets",
        "personal data",
        "license of the base",
        "license of the data",
    ]
    assert (decided.eval_sha256, decided.artifacts_sha256) == ("sha-eval", "sha-index")
    assert decided.recipe_sha256 == resolved().sha256
    assert decided.decided_at == "2026-03-01T09:30:00+00:00"
    assert "300 rows in 200 groups; 3 more overlap with training and do not count" in line(decided, "leakage").observed


def test_the_bound_decides_and_not_the_point() -> None:
    target = line(decided := decision(report=evaluation(tuned=interval(0.87, 0.7999, 0.91))), "intent.macro_f1")
    assert not decided.passed
    assert (target.bound, target.passed, target.asked) == (0.7999, False, "intent.macro_f1 >= 0.8")
    assert target.observed == (
        "tuned 0.870, 95 % interval 0.7999 to 0.910 (n = 300); "
        "what counts is its lower end, a one-sided bound at 97.5 %"
    )
    assert decision(report=evaluation(tuned=interval(0.80, 0.80, 0.80))).passed


@settings(deadline=None)
@given(point=st.floats(0, 1), low=st.floats(0, 1), value=st.integers(0, 1000).map(lambda n: n / 1000))
def test_what_is_shown_never_contradicts_the_verdict(point: float, low: float, value: float) -> None:
    decided = decision(
        resolved=resolved(targets={"intent.macro_f1": f">= {value}"}),
        report=evaluation(tuned=interval(point, low, 1.0)),
    )
    target = line(decided, "intent.macro_f1")
    shown = float(target.observed.split("interval ")[1].split(" to ")[0])
    assert target.passed == (low >= value) == (shown >= value)


@pytest.mark.parametrize(("high", "passed"), [(1.05, True), (1.0500001, False), (float("nan"), False)])
def test_general_text_is_held_by_the_upper_end_of_its_ratio(high: float, passed: bool) -> None:
    decided = decision(report=evaluation(ratio=interval(1.01, 0.99, high)))
    general = line(decided, "general.perplexity")
    assert (general.kind, general.passed, decided.passed) == ("non_regression", passed, passed)
    assert "upper end" in general.observed


def test_evidence_points_to_the_number_that_counts() -> None:
    report = json.loads(evaluation().to_json())
    for name in ("intent.macro_f1", "general.perplexity"):
        found = line(decision(), name)
        file, key = found.evidence.split(": ")
        assert file == "eval/report.json"
        value: Any = report
        for part in key.replace("[", ".").replace("]", "").split("."):
            value = value[int(part)] if isinstance(value, list) else value[part]
        assert value == found.bound


def test_a_target_that_was_not_measured_is_not_met() -> None:
    decided = decision(resolved=resolved(targets={"intent.accuracy": ">= 0.1"}))
    assert refused(decided) == ["intent.accuracy"]
    assert line(decided, "intent.accuracy").observed == "accuracy was not measured"


@pytest.mark.parametrize(("low", "passed"), [(0.9, True), (0.8999, False)])
def test_terms_are_held_by_the_lower_end_of_their_share(low: float, passed: bool) -> None:
    report = with_terms(glossary_use(), tuned=interval(0.95, low, 0.99))
    decided = decision(resolved=resolved(targets={"intent.term_accuracy": ">= 0.9"}), report=report)
    found = line(decided, "intent.term_accuracy")
    assert (found.kind, found.passed, found.bound) == ("target", passed, low)
    assert found.evidence == "eval/report.json: systems[2].metrics.term_accuracy.low"


def test_a_target_on_terms_that_no_item_holds_is_not_met_and_says_why() -> None:
    report = with_terms(glossary_use(met=0, occurrences=0, num_items=0, ratio=None, num_missed=0, missed=()))
    decided = decision(resolved=resolved(targets={"intent.term_accuracy": ">= 0"}), report=report)
    found = line(decided, "intent.term_accuracy")
    assert not found.passed
    assert found.observed.endswith("not measured, the test items hold none of the 9 terms of terms.tsv")


@pytest.mark.parametrize(
    ("use", "passed", "says"),
    [
        (glossary_use(), True, "tuned / base 1.500"),
        (glossary_use(ratio=interval(1.0, 0.89, 1.2)), False, "lower end"),
        (glossary_use(ratio=None), True, "the base model keeps no term"),
        (glossary_use(ratio=None, met=0), False, "term_accuracy was not measured"),
        (None, False, "term_accuracy was not measured"),
    ],
)
def test_terms_are_held_to_those_that_the_base_keeps(use: GlossaryUse | None, passed: bool, says: str) -> None:
    asked = resolved(non_regression={"intent.term_accuracy": ">= 0.9x"})
    decided = decision(resolved=asked, report=evaluation(glossary=use))
    found = line(decided, "intent.term_accuracy")
    assert (found.kind, found.passed, decided.passed) == ("non_regression", passed, passed)
    assert says in found.observed
    both = combine(
        {"a": decided, "b": decision()}, recipe_sha256="r", eval_sha256="e", artifacts_sha256="s",
        now=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    assert [one.line for one in both.lines if "term_accuracy" in one.line] == ["a: intent.term_accuracy"]
    assert [one.line for one in both.lines if "perplexity" in one.line] == ["general.perplexity"]


def test_without_targets_the_gate_says_so_and_keeps_its_other_lines() -> None:
    decided = decision(resolved=resolved(targets={}, non_regression={}))
    assert decided.passed
    assert line(decided, "target").observed == "no target was set"
    assert refused(decision(resolved=resolved(targets={}), data=data(end_of_turn_supervised=False))) == ["supervision"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (artifact(parity=parity(passed=False, first_difference="prompt 3")), "first difference: prompt 3"),
        (artifact(parity=parity(ids_equal=False)), "token ids differ on 8 prompts"),
        (artifact(parity=parity(max_logit_error=1.0004e-4)), "largest logit error 1.0004e-04"),
        (artifact(parity=parity(max_logit_error=float("nan"))), "largest logit error nan"),
        (artifact(made_from="sha-other"), "made from other weights than those that were evaluated: export again"),
    ],
)
def test_an_artifact_that_is_not_what_was_evaluated(changed: Any, says: str) -> None:
    decided = decision(artifacts=[changed])
    assert refused(decided) == ["parity of merged"]
    assert says in line(decided, "parity of merged").observed


def test_every_artifact_has_its_line_and_a_missing_one_too() -> None:
    decided = decision(resolved=resolved(export=("adapter", "merged")))
    assert refused(decided) == ["parity of adapter"]
    assert line(decided, "parity of adapter").observed == "there is no artifact 'adapter'"
    more = decision(artifacts=[artifact(), artifact(kind="adapter")])
    assert more.passed
    assert line(more, "parity of adapter").passed


@pytest.mark.parametrize(
    ("changes", "passed", "says"),
    [
        ({}, True, "none found (names of people are not looked for)"),
        (
            {"findings": {"email": 3}, "findings_action": "report"},
            False,
            "3 email; left in; set data.privacy.action to redact or drop",
        ),
        ({"findings": {"email": 3, "card": 1}, "findings_action": "redact"}, True, "1 card, 3 email; redacted"),
        ({"findings": {"email": 3}, "findings_action": "drop"}, True, "3 email; their rows dropped"),
        (
            {"findings": {"name": 2}, "findings_action": "pseudonymise", "not_looked_for": "names in verse are missed"},
            True,
            "2 name; replaced by pseudonyms (names in verse are missed)",
        ),
        (
            {"personal_wording": ("data.train[0].system holds 1 email",)},
            False,
            "none found; data.train[0].system holds 1 email, left in: take it out of the recipe",
        ),
    ],
)
def test_personal_data(changes: dict[str, Any], passed: bool, says: str) -> None:
    decided = decision(data=data(**changes))
    assert refused(decided) == ([] if passed else ["personal data"])
    assert says in line(decided, "personal data").observed


@pytest.mark.parametrize(("action", "passed"), [("stop", False), ("redact", True), ("drop", True)])
def test_secrets(action: str, passed: bool) -> None:
    found = data(findings={"secret.jwt": 2}, secrets_action=action, findings_action="report")
    decided = decision(data=found)
    assert refused(decided) == ([] if passed else ["secrets"])
    assert line(decided, "secrets").observed.startswith("2 secret.jwt")
    assert line(decided, "personal data").observed.startswith("none found")


@pytest.mark.parametrize("changes", [{"split": "validation"}, {"num_items": 0}, {"num_items": 301}])
def test_an_evaluation_on_anything_but_clean_test_rows(changes: dict[str, Any]) -> None:
    assert refused(decision(report=evaluation(**changes))) == ["leakage"]


def test_licenses_are_noted_and_a_non_commercial_one_refuses() -> None:
    decided = decision(shape=shape(license="unknown"), data=data(license="CC BY-NC 4.0"))
    assert refused(decided) == ["license of the data"]
    assert "the base model comes with no stated license" in line(decided, "license of the base").observed
    assert "may not be used for commercial purposes; choose another" in line(decided, "license of the data").observed


def test_a_decision_needs_a_time_zone() -> None:
    with pytest.raises(AssertionError, match="zone"):
        decision(now=datetime(2026, 3, 1))


# --- the seal ---


def changed_copies(decided: GateDecision) -> list[GateDecision]:
    """The decision with each of its values changed, one at a time."""
    tree = decided.model_dump(mode="json")
    copies = []
    for key, value in tree.items():
        if isinstance(value, bool):
            copies.append({**tree, key: not value})
        elif isinstance(value, str):
            copies.append({**tree, key: value + " "})
    for place, entry in enumerate(tree["lines"]):
        for key, value in entry.items():
            other = (
                not value
                if isinstance(value, bool)
                else "data"
                if key == "kind" and value != "data"
                else "target"
                if key == "kind"
                else f"{value} "
                if isinstance(value, str)
                else 0.123
            )
            lines = [*tree["lines"]]
            lines[place] = {**entry, key: other}
            copies.append({**tree, "lines": lines})
    copies.append({**tree, "lines": tree["lines"][1:]})
    copies.append({**tree, "lines": tree["lines"][::-1]})
    return [GateDecision.model_validate(copy) for copy in copies]


def test_any_edit_breaks_the_seal() -> None:
    decided = decision()
    assert verify_seal(decided)
    copies = changed_copies(decided)
    assert len(copies) > 60
    assert not any(map(verify_seal, copies))


def test_the_seal_survives_the_disk(tmp_path: Path) -> None:
    for decided in (decision(), decision(report=evaluation(ratio=interval(1.0, 0.9, float("nan"))))):
        (tmp_path / "gate.json").write_text(decided.to_json())
        assert verify_seal(GateDecision.read(tmp_path / "gate.json"))


def test_the_same_records_give_the_same_decision() -> None:
    assert decision() == decision()


# --- licenses ---


@pytest.mark.parametrize(
    ("license_id", "kind"),
    [
        ("Apache-2.0", "permissive"),
        ("apache 2.0", "permissive"),
        ("Apache License, Version 2.0", "permissive"),
        ("MIT", "permissive"),
        ("The MIT License", "permissive"),
        ("BSD-3-Clause", "permissive"),
        ("CC0-1.0", "permissive"),
        ("CC BY 4.0", "permissive"),
        ("cc-by-4.0", "permissive"),
        ("CC-BY-SA-4.0", "share-alike"),
        ("GPL-3.0-or-later", "share-alike"),
        ("cdla-sharing-1.0", "share-alike"),
        ("gemma", "restricted"),
        ("llama3.1", "restricted"),
        ("Llama 3.2 Community License", "restricted"),
        ("bigscience-openrail-m", "restricted"),
        ("CC-BY-ND-4.0", "restricted"),
        ("cc-by-nc-4.0", "non-commercial"),
        ("CC BY-NC-SA 4.0", "non-commercial"),
        ("qwen-research", "non-commercial"),
        ("Creative Commons Attribution-NonCommercial 4.0", "non-commercial"),
        ("", "unknown"),
        ("unknown", "unknown"),
        ("NOASSERTION", "unknown"),
        ("other", "unknown"),
        ("our own contract 17", "stated"),
        ("Apache-2.0 with Commons Clause", "stated"),
        ("BUSL-1.1", "stated"),
        ("nice-license", "stated"),
    ],
)
def test_what_is_known_of_a_license(license_id: str, kind: str) -> None:
    found = assess(license_id, "the data")
    assert (found.kind, found.passed) == (kind, kind != "non-commercial")
    assert found.observed.startswith("the data ")
    assert (f"({license_id})" in found.observed) == (kind != "unknown")


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_words_are_assessed(license_id: str) -> None:
    assert assess(license_id, "x").observed


@pytest.mark.parametrize(
    ("measure", "asked", "observed"),
    [
        ("logits", "logit error <= 0.001 of the largest logit", "largest logit error 2.0e-04"),
        (
            "log_probabilities",
            "log-probability error <= 0.001 of the largest log-probability",
            "largest log-probability error 2.0e-04",
        ),
        ("kl", "KL divergence <= 0.001 nats", "largest KL divergence 2.0e-04"),
    ],
)
def test_parity_is_told_in_the_words_of_what_was_compared(measure: str, asked: str, observed: str) -> None:
    seen = parity(measure=measure, bound=1e-3, max_logit_error=2e-4, greedy_equal=7, listed=("golden 'x': another",))
    decided = decision(artifacts=[artifact(parity=seen)])
    assert decided.passed
    told = line(decided, "parity of merged")
    assert told.asked == f"token ids equal, {asked}"
    assert f"{observed}, greedy text equal on 7; golden 'x': another" in told.observed
    worse = decision(artifacts=[artifact(parity=seen.model_copy(update={"max_logit_error": 2e-3}))])
    assert refused(worse) == ["parity of merged"]
