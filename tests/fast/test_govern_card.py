"""The card says what must be said; the lineage connects every artifact with every source."""

from __future__ import annotations

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
    train,
    with_terms,
)  # fmt: skip

from luthier.data_report import Augmentation, EndpointUse, PlantedCanaries, TaughtRows, Technique
from luthier.errors import RunError
from luthier.eval_records import AllItems
from luthier.govern.card import model_card
from luthier.govern.lineage import Lineage, lineage
from luthier.records import Teacher
from luthier.spec.methods.distill import Distill


def records(**changes: Any) -> dict[str, Any]:
    return {
        "resolved": resolved(),
        "shape": shape(),
        "data": data(),
        "train": train(),
        "evaluation": evaluation(),
        "artifacts": [artifact()],
        "gate": decision(),
        **changes,
    }


def test_the_card_has_all_its_sections_once_and_in_order() -> None:
    card = model_card(**records())
    titles = [line for line in card.splitlines() if line.startswith("#")]
    assert titles == [
        "# tickets",
        "## Intended use",
        "## Base model",
        "## Data",
        "## Training",
        "## Evaluation",
        "## Limits",
        "## Gate",
        "## Licenses",
        "## How to use",
        "## Lineage",
    ]
    assert card.startswith('---\nbase_model: "small"\nlicense: "apache-2.0"\n')
    assert "\n\n\n" not in card


def test_the_card_tells_the_score_with_rows_that_training_has_seen() -> None:
    every = AllItems(num_items=303, metrics={"macro_f1": 0.881, "accuracy": 0.9})
    card = model_card(**records(evaluation=evaluation(with_contaminated=every)))
    assert (
        "3 more rows of the split overlap with training and do not count. With them the tuned model would have: "
        "accuracy 0.900, macro_f1 0.881."
    ) in card
    assert "\n\n\n" not in card
    assert "overlap with training" not in model_card(**records(gate=decision(report=evaluation()))).split("## Gate")[0]


def test_the_card_says_what_must_not_be_hidden() -> None:
    card = model_card(**records())
    for sentence in (
        "The tuned model reaches 0.87.",
        "This base was dequantised from Q4_1 (4 bits) to float32 before training",
        "The data is **synthetic**",
        "Of 1,000 rows, 900 are used",
        "| duplicate | 60 |",
        "Names of people are not looked for",
        "base, zero-shot scores higher than the tuned model on macro_f1: 0.950 against 0.870.",
        "| tuned | 0.870 (95 %: 0.820 to 0.910) |",
        "| tuned - base | macro_f1 | -0.080 (95 %: -0.100 to -0.060) |  |",
        "ratio 1.010 (95 %: 0.990 to 1.030)",
        "Its perplexity on general text is 1.0 % higher",
        "**Passed** at 2026-03-01T09:30:00+00:00",
        "the base model (Apache-2.0) may be used",
        "luthier serve tickets",
        "`sha-merged`",
    ):
        assert sentence in card
    assert "TF-IDF + logistic regression scores higher" not in card


def test_the_card_tells_of_rows_that_were_made() -> None:
    typos = Technique(technique="typos", asked=70, made=61, dropped={"too_long": 1}, rows=60, labels={}, examples=())
    made = Augmentation(originals=500, techniques=(typos,))
    planted = PlantedCanaries(copies={0: 1, 5: 1}, rows=5)
    card = model_card(**records(data=data(rows_out=965, augmentation=made, canaries=planted)))
    told = "Of 1,000 rows, 900 are used; 65 were made for training: 60 by typos, 5 canaries (planted secrets)."
    assert told in " ".join(card.split())


@pytest.mark.parametrize(("license_id", "passes"), [("Apache-2.0", True), ("CC-BY-NC-4.0", False)])
def test_card_gate_and_lineage_know_who_taught(license_id: str, passes: bool) -> None:
    teacher = Teacher(named="big@1", shape=shape(name="big", license=license_id), tuned="somewhere", tuned_sha256="w")
    method = Distill(teacher="big@1", divergence="jsd", beta=0.25)
    usual = resolved()
    taught = usual.model_copy(update={"teacher": teacher, "recipe": usual.recipe.model_copy(update={"method": method})})
    gate = decision(resolved=taught)
    (line,) = [one for one in gate.lines if one.line == "license of the teacher"]
    assert line.passed is passes
    card = model_card(**records(resolved=taught, gate=gate))
    told = f"taught by `big@1` (tuned from `big`, {teacher.sha256[:12]}; alpha 0.5, temperature 1, divergence jsd, "
    assert f"{told}beta 0.25)." in card
    assert f"the teacher ({license_id})" in card
    graph = {node.node: node for node in lineage(**records(resolved=taught, gate=gate)).nodes}
    assert graph["teacher"].sha256 == teacher.sha256
    assert "teacher" in graph["trained weights"].made_from
    assert "teacher" not in {node.node for node in lineage(**records()).nodes}


def test_the_card_says_who_wrote_answers() -> None:
    use = EndpointUse(endpoint="http://h/v1", model="large|1", requests=9, from_cache=0, tokens=9, unanswered=0)
    rows = TaughtRows(
        file="more.csv", available=9, rows=7, rewritten=0, kept=0, dropped={"refused": 2}, labels={}, findings={},
        endpoint=use, examples=(),
    )  # fmt: skip
    card = model_card(**records(data=data(rows_out=907, teacher=rows)))
    assert "7 were made for training: 7 with answers that `large\\|1` wrote." in " ".join(card.split())


def test_the_card_says_only_what_is_so() -> None:
    gate = decision(report=evaluation(tuned=interval(0.97, 0.1, 0.98)))
    card = model_card(
        **records(
            shape=shape(quantisation=""),
            data=data(synthetic=False),
            gate=gate,
            evaluation=evaluation(tuned=interval(0.97, 0.1, 0.98)),
        )
    )
    for absent in ("dequantised", "synthetic**", "scores higher", "rounding of"):
        assert absent not in card
    assert "**Refused**" in card
    assert "The gate refused this version" in card
    assert "luthier serve tickets --allow-refused" in card
    assert "luthier serve tickets\n" not in card
    assert "| **no** |" in card


def test_without_validation_rows_the_card_says_which_weights_were_kept() -> None:
    card = model_card(**records(train=train(best_step=40, best_metric="", best_value=float("nan"))))
    assert "The weights are those of step 40, the last: there were no validation rows to choose" in card
    assert "nan" not in card
    assert "of step 30, the best on the validation split by macro_f1 (0.900)." in model_card(**records())


def test_free_text_has_no_labels() -> None:
    card = model_card(**records(evaluation=evaluation(labels=(), confusion=())))
    assert "Answering a text with a text" in card
    assert "always chooses one of its labels" not in card


def test_names_from_outside_break_no_table_and_bring_no_html() -> None:
    card = model_card(
        **records(
            evaluation=evaluation(labels=("a|b", "<script>alert(1)</script>")),
            data=data(source_sha256={"a|\nb.csv": "sha-csv"}),
        )
    )
    assert "a\\|b" in card
    assert "<script" not in card
    assert "| source: a\\| b.csv | `sha-csv` |" in card


# --- lineage ---


def reaches(graph: Lineage, start: str) -> set[str]:
    nodes = {node.node: node for node in graph.nodes}
    seen, todo = set[str](), [start]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += nodes[name].made_from
    return seen


def test_every_node_comes_after_what_it_was_made_from_and_has_a_hash() -> None:
    graph = lineage(**records())
    before: set[str] = set()
    for node in graph.nodes:
        assert node.sha256
        assert set(node.made_from) <= before
        before.add(node.node)
    assert len(before) == len(graph.nodes)


def test_every_source_is_found_from_every_artifact() -> None:
    sources = {f"file{number}.csv": f"sha{number}" for number in range(3)}
    graph = lineage(
        **records(
            data=data(source_sha256=sources),
            artifacts=[
                artifact(),
                artifact(kind="adapter", path="artifacts/adapter", sha256={"a": "1", "b": "2"}, parity=parity()),
            ],
        )
    )
    outside = {node.node for node in graph.nodes if not node.made_from}
    assert outside == {"base model", *(f"source: {file}" for file in sources)}
    for end in ("artifacts/merged/model.safetensors", "artifacts/adapter/a", "artifacts/adapter/b", "gate.json"):
        assert reaches(graph, end) >= outside
    weights = reaches(graph, "trained weights")
    assert "data/train.arrow" in weights
    assert not weights & {"data/test.arrow", "data/validation.arrow", "eval/report.json"}


def test_every_hash_of_the_records_is_in_the_graph(tmp_path: Path) -> None:
    graph = lineage(**records())
    hashes = {node.sha256 for node in graph.nodes}
    assert hashes == {
        "sha-csv",
        "sha-base",
        resolved().sha256,
        "sha-contract",
        "sha-train",
        "sha-test",
        "sha-weights",
        "sha-eval",
        "sha-merged",
        "sha-index",
        decision().seal,
    }
    (tmp_path / "lineage.json").write_text(graph.to_json())
    assert Lineage.read(tmp_path / "lineage.json") == graph


@pytest.mark.parametrize(
    ("changes", "says", "way_out"),
    [
        (
            {"evaluation": evaluation(weights_sha256="other")},
            "eval/report.json was made from weights other, but train/result.json has sha-weights",
            "luthier run",
        ),
        ({"artifacts": [artifact(made_from="other")]}, "artifacts/merged was made from weights other", "luthier run"),
        ({"resolved": resolved(targets={})}, "gate.json was decided for recipe", "luthier gate"),
    ],
)
def test_records_of_different_runs_are_not_connected(changes: dict[str, Any], says: str, way_out: str) -> None:
    for make in (lineage, model_card):
        with pytest.raises(RunError) as caught:
            make(**records(**changes))
        assert says in caught.value.what
        assert way_out in caught.value.way_out


def test_the_card_says_how_often_terms_are_kept_and_which_are_missed() -> None:
    card = model_card(**records(evaluation=with_terms(glossary_use(), tuned=interval(0.6, 0.5, 0.7))))
    assert "Terms of terms.tsv that answers keep: 5 of its 9 terms stand in 30 test items, 40 times: base 0.4" in card
    assert r"| a\|b | x, y | 7 | 1 | 3 |" in card
    none = model_card(**records(evaluation=with_terms(glossary_use(met=0, missed=()))))
    assert "Term accuracy was not measured: the test items hold none of the 9 terms of terms.tsv." in none
    assert "erm accuracy" not in model_card(**records())
