"""Several labels a row, and a number, from the recipe to answers that plain tools give too, on a tiny model."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer, pipeline

from command import luthier
from luthier.data_report import DataReport
from luthier.eval_records import EvalReport
from luthier.records import GateDecision, RequestContract
from luthier.store.runs import RunFolder
from luthier.train_records import TrainResult
from tiny import write_model, write_recipe

pytestmark = pytest.mark.slow

WORDS = {"late": ["late", "delayed"], "broken": ["cracked", "snapped"], "refund": ["refund", "charged"]}


def write_rows(path: Path) -> None:
    rng, lines = random.Random(0), []
    for number in range(200):
        kinds = [kind for kind in WORDS if rng.random() < 0.45]
        thing = rng.choice(["guitar", "cello", "drum"])
        text = f"{thing}: {' and '.join(rng.choice(WORDS[kind]) for kind in kinds)} ({number})"
        lines.append(json.dumps({"text": text, "kinds": kinds, "pain": round(1.5 * len(kinds) + rng.gauss(0, 0.2), 2)}))
    lines += ['{"text": "what", "kinds": ["late", "a,b"], "pain": 1}', '{"text": "how", "kinds": [], "pain": "much"}']
    path.write_text("\n".join(lines) + "\n")


def entry(**said: Any) -> dict[str, Any]:
    return {"path": "rows.jsonl", "input": "{text}", "license": "Apache-2.0", "synthetic": True, **said}


KINDS = {"name": "kinds", "label": "kinds", "task": "multi_label"}
PAIN = {"name": "pain", "label": "pain", "task": "regression"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("read-off")
    path = write_recipe(place, write_model(place / "model"), num_train_epochs=6, learning_rate=0.01)
    write_rows(place / "rows.jsonl")
    tree = yaml.safe_load(path.read_text())
    del tree["data"]["labels"]
    tree["data"]["split"] = {"test": 0.3, "validation": 0.2}
    tree["method"] = {"type": "auto"}
    tree["objective"] = {"targets": {"kinds.micro_f1": ">= 0.2", "kinds.binary_log_loss": "<= 0.69"}}
    tree["data"]["train"] = [entry(**KINDS)]
    (place / "kinds.yaml").write_text(yaml.safe_dump(tree | {"name": "kinds"}))
    tree["objective"] = {"targets": {"kinds.micro_f1": ">= 0.2", "pain.mae": "<= 1.2", "pain.r_squared": ">= 0"}}
    tree["data"]["train"] = [entry(**KINDS), entry(**PAIN, method={"type": "regression", "huber_delta": 1.5})]
    (place / "both.yaml").write_text(yaml.safe_dump(tree | {"name": "both"}))
    return place


def answers_of(folder: Path, version: str) -> list[dict[str, Any]]:
    (folder / "asked.csv").write_text("text\nmy cello is late and cracked\nfine\n")
    luthier("predict", version, "asked.csv", "--output", "said.jsonl", cwd=folder, LUTHIER_HOME=str(folder / "home"))
    return [json.loads(line) for line in (folder / "said.jsonl").read_text().splitlines()]


def plainly(artifact: Path, contract: RequestContract, text: str) -> dict[str, float]:
    """What transformers' own pipeline says."""
    tokenizer = AutoTokenizer.from_pretrained(artifact)
    turns = [{"role": "system", "content": contract.system}, {"role": "user", "content": text}]
    asked = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    classify: Any = pipeline("text-classification", model=str(artifact), tokenizer=tokenizer, top_k=None)
    return {one["label"]: one["score"] for one in classify([asked])[0]}


def test_several_labels_go_from_the_recipe_to_answers(folder: Path) -> None:
    said = luthier("run", "kinds.yaml", cwd=folder, LUTHIER_HOME=str(folder / "home")).decides()
    run = RunFolder.open("kinds", out=folder / "runs")
    assert "PASSED." in said.out
    assert "On 60 test items" in said.out or "beats the tuned model" in said.out
    trained, judged = TrainResult.read(run.train_result), EvalReport.read(run.eval_report)
    assert trained.method == "multi_label"  # auto: each label has a probability of its own
    assert trained.best_metric == "micro_f1"
    assert trained.calibration is not None
    contract = RequestContract.read(run.contract)
    assert (contract.labels, contract.tags) == ((), ("broken", "late", "refund"))
    fates = DataReport.read(run.data_report).fates
    assert [(one.reason, "data.labels.separator" in one.detail) for one in fates] == [("bad_labels", True)]
    tuned = next(one for one in judged.systems if one.system == "tuned")
    assert set(tuned.metrics) == {"micro_f1", "macro_f1", "accuracy", "hamming_loss", "binary_log_loss"}
    assert {one.system for one in judged.systems} == {"majority", "tfidf_logreg", "base", "tuned"}
    assert [score.label for score in judged.classes] == list(contract.tags)
    assert "Choosing any of 3 labels for a text, or none" in run.card.read_text()
    for answer in answers_of(folder, str(run.path)):
        assert answer["labels"] == [name for name, p in answer["probabilities"].items() if p >= 0.5]
        text = ["my cello is late and cracked", "fine"][answer["line"] - 2]
        for name, p in plainly(run.artifacts / "merged", contract, text).items():
            assert answer["probabilities"][name] == pytest.approx(p, abs=1e-4)
    against = luthier(
        "evaluate", str(run.path), "--against", str(run.path), cwd=folder, LUTHIER_HOME=str(folder / "home")
    ).succeeds()
    assert "micro-F1" in against.out


def test_both_share_an_adapter_and_each_is_judged_by_its_own_metrics(folder: Path) -> None:
    luthier("run", "both.yaml", cwd=folder, LUTHIER_HOME=str(folder / "home")).decides()
    run = RunFolder.open("both", out=folder / "runs")
    lines = {line.line: line for line in GateDecision.read(run.gate).lines}
    assert all(lines[name].passed for name in ("kinds.micro_f1", "pain.mae", "pain.r_squared"))
    kinds, pain = run.tasks(["kinds", "pain"])
    fates = DataReport.read(pain.data_report).fates
    assert ("not_a_number", "'much' is no finite number") in {(one.reason, one.detail) for one in fates}
    judged = EvalReport.read(pain.eval_report)
    assert {one.system for one in judged.systems} == {"mean", "tfidf_ridge", "base", "tuned"}
    base = next(one for one in judged.systems if one.system == "base")
    assert "answers without a number count as the mean of training" in base.title
    assert judged.classes == ()
    assert "Farthest off" in pain.report.read_text()
    contract = RequestContract.read(pain.contract)
    assert contract.scale is not None
    for answer in answers_of(folder, "both@1/pain"):
        text = ["my cello is late and cracked", "fine"][answer["line"] - 2]
        (z,) = plain_scores(run.artifacts / "merged" / "pain", contract, text)
        assert answer["value"] == pytest.approx(contract.scale.mean + contract.scale.spread * z, abs=1e-3)
    assert EvalReport.read(kinds.eval_report).classes


def plain_scores(artifact: Path, contract: RequestContract, text: str) -> list[float]:
    from transformers import AutoModelForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(artifact)
    turns = [{"role": "system", "content": contract.system}, {"role": "user", "content": text}]
    asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    model: Any = AutoModelForSequenceClassification.from_pretrained(artifact)
    assert model.config.problem_type == "regression"
    return [float(one) for one in model(**asked).logits[0].detach()]
