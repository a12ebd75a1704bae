"""A run with a classification head from its recipe to answers, by the command line, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from peft import PeftModel
from torch import no_grad, tensor
from transformers import AutoModelForSequenceClassification

from command import luthier
from luthier.data.goldens import read_goldens
from luthier.engines.transformers import TransformersEngine
from luthier.eval_records import EvalReport
from luthier.records import GateDecision, RequestContract
from luthier.store.runs import RunFolder
from luthier.train_records import TrainResult
from tiny import write_model, write_recipe

pytestmark = pytest.mark.slow


def test_a_head_goes_from_the_recipe_to_answers(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    path = write_recipe(tmp_path, model, num_train_epochs=6, learning_rate=0.01)
    recipe = yaml.safe_load(path.read_text())
    recipe["method"] = {"type": "classify", "label_smoothing": 0.05, "abstain_below": 0.4, "ordered": True}
    recipe["data"]["labels"] |= {"order": ["late", "broken", "refund"]}  # not the alphabet's
    recipe["objective"]["targets"] = {"kind.coverage": ">= 0.02", "kind.accuracy": ">= 0.02", "kind.mae": "<= 1.9"}
    recipe["data"]["split"] = {"test": 0.3, "validation": 0.3, "group_by": ""}  # rows enough to calibrate on
    path.write_text(yaml.safe_dump(recipe))
    home = {"cwd": tmp_path, "LUTHIER_HOME": str(tmp_path / "home")}
    shown = luthier("check", "tiny.yaml", "--explain", **home).succeeds()
    assert "method.abstain_below" in shown.out
    said = luthier("run", "tiny.yaml", **home).decides()
    assert "PASSED." in said.out
    run = RunFolder.open("tiny", out=tmp_path / "runs")
    trained, judged = TrainResult.read(run.train_result), EvalReport.read(run.eval_report)
    assert trained.method == "classify"
    assert trained.calibration is not None
    assert trained.supervised_tokens < trained.trained_tokens / 5  # rows
    assert trained.history[-1].metrics.keys() == {"accuracy", "macro_f1", "quadratic_kappa", "log_loss"}
    assert trained.best_metric == "quadratic_kappa"
    assert judged.labels == ("late", "broken", "refund")
    for system in judged.systems:
        assert {"mae", "quadratic_kappa"} <= set(system.metrics)
    tuned = next(one for one in judged.systems if one.system == "tuned")
    assert {"coverage", "answered_accuracy", "log_loss"} <= set(tuned.metrics)
    assert not {"exact_match", "perplexity", "free_text_agreement"} & set(tuned.metrics)
    lines = {line.line: line for line in GateDecision.read(run.gate).lines}
    assert "chosen label equal on" in lines["parity of merged"].observed
    assert "a head learns the label of every row" in lines["supervision"].observed
    assert lines["kind.mae"].passed
    assert lines["general.perplexity"].passed  # of the language model under the head
    for text in (run.card.read_text(), run.report.read_text()):
        assert "greedy" not in text.lower()
        assert "of them learned" not in text
        assert "temperature of" in text
    assert "How sure it is" in run.report.read_text()
    assert "A classification head learns each row" in (run.data / "report.html").read_text()

    (tmp_path / "asked.csv").write_text("text\nmy cello is late\nthe bow snapped\n")
    luthier("predict", str(run.path), "asked.csv", "--output", "said.jsonl", **home).succeeds()
    answers = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert all(one["abstained"] == (one["label"] is None) for one in answers)
    assert all(one["abstained"] == (max(one["probabilities"].values()) < 0.4) for one in answers)
    assert all(list(one["probabilities"]) == ["late", "broken", "refund"] for one in answers)

    contract = RequestContract.read(run.contract)
    ours = TransformersEngine.open(model, run.train / "adapter")
    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=len(contract.labels))
    theirs = PeftModel.from_pretrained(base, run.artifacts / "adapter").eval()
    for golden in read_goldens(run.goldens):
        with no_grad():
            found = theirs(input_ids=tensor([golden.prompt_ids])).logits[0].numpy()
        assert abs(found - ours.class_logits(golden.prompt_ids)).max() <= 1e-4 * abs(found).max()
