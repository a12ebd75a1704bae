"""A file of pairs from the command line to answers, and the same bits after a `kill -9` while it learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_kill import Bench, interrupt, pytestmark, saved
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from command import luthier
from luthier.eval_records import EvalReport
from luthier.store.events import EventLog
from luthier.store.files import sha256_files
from luthier.store.runs import RunFolder
from luthier.train_records import TrainResult
from tiny import write_model, write_recipe

__all__ = ["pytestmark"]

NAMES = ("guitar", "violin", "cello", "amp", "flute", "drum", "case", "bow")


def command(verb: str, *given: str, folder: Path) -> None:
    luthier(verb, *given, cwd=folder, LUTHIER_HOME=str(folder / "home")).decides()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("pairs")
    path = write_recipe(folder, write_model(folder / "model"), batch_size=4, save_steps=2, validations=2)
    recipe = yaml.safe_load(path.read_text())
    del recipe["method"]  # the plan takes what is made for pairs
    rows = [
        {"prompt": f"the {NAMES[n % 8]} {n} is late", "chosen": f"sorry, order {n} is here", "rejected": f"no {n * 3}"}
        for n in range(60)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe["objective"]["targets"] = {"preference.preference_accuracy": ">= 0.1"}
    recipe["data"]["train"] = [{"path": "pairs.jsonl", "license": "Apache-2.0", "synthetic": True}]
    recipe["data"]["split"] = {"test": 0.3, "validation": 0.15}
    recipe["data"]["leakage"] = {"near": False}
    recipe["data"].pop("labels")
    recipe["export"] = ["adapter"]
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    command("run", "tiny.yaml", "--out", "whole", folder=folder)
    return Bench(folder, RunFolder.open("tiny", out=folder / "whole"), ("train", "tiny.yaml"))


def test_a_file_of_pairs_becomes_a_version_that_answers_prompts(bench: Bench) -> None:
    report = EvalReport.read(bench.whole.eval_report)
    assert [one.system for one in report.systems] == ["length", "base", "base_per_token", "tuned"]
    assert json.loads(bench.whole.gate.read_text())["passed"]
    (bench.folder / "asked.jsonl").write_text('{"prompt": "the guitar 3 is late"}\n')
    command("predict", str(bench.whole.path), "asked.jsonl", "--output", "said.jsonl", folder=bench.folder)
    said = json.loads((bench.folder / "said.jsonl").read_text())
    assert set(said) == {"line", "text"}


def test_killed_while_it_learns_it_ends_in_the_same_bits_and_the_base_was_read_once(bench: Bench) -> None:
    interrupt(bench, "killed", saved(3), "child")
    command("train", "tiny.yaml", "--out", "killed", folder=bench.folder)
    run = RunFolder.open("tiny", out=bench.folder / "killed")
    read = [event for event in EventLog.read(run.events) if event["kind"] == "reference"]
    assert [event["reused"] for event in read] == [False, True]
    assert len({event["sha256"] for event in read}) == 1
    assert TrainResult.read(run.train_result).resumed_from
    assert sha256_files(run.train / "adapter") == sha256_files(bench.whole.train / "adapter")


def test_with_kto_the_base_reads_other_answers_too_and_the_run_is_judged_alike(bench: Bench) -> None:
    command("train", "tiny.yaml", "--out", "kto", "--set", "method={type: kto, beta: 0.2}", folder=bench.folder)
    run = RunFolder.open("tiny", out=bench.folder / "kto")
    events = [event for one in (run, bench.whole) for event in EventLog.read(one.events)]
    read, before = (event["pairs"] for event in events if event["kind"] == "reference")
    assert read == 2 * before
    result = TrainResult.read(run.train_result)
    assert (result.method, result.best_metric) == ("kto", "preference_accuracy")
    assert result.history[-1].loss < result.history[0].loss


def test_a_reward_model_is_judged_exported_and_scores_a_file_as_plain_tools_do(bench: Bench) -> None:
    command(
        "run", "tiny.yaml", "--out", "judge", "--set", "method={type: reward, center_rewards_coefficient: 0.01}",
        "--set", "export=[adapter, merged]", "--set", "train.learning_rate=0.01", "--set", "train.num_train_epochs=4",
        folder=bench.folder,
    )  # fmt: skip
    run = RunFolder.open("tiny", out=bench.folder / "judge")
    result, report = TrainResult.read(run.train_result), EvalReport.read(run.eval_report)
    assert (result.method, result.best_metric, run.train / "reference" in list(run.train.iterdir())) == (
        "reward", "preference_accuracy", False,
    )  # fmt: skip
    assert result.history[-1].loss < 0.5 * result.history[0].loss
    metrics = {one.system: one.metrics for one in report.systems}
    assert list(metrics) == ["length", "base", "base_per_token", "tuned"]
    assert metrics["tuned"]["preference_accuracy"].point > 0.8
    gate = json.loads(run.gate.read_text())
    assert gate["passed"]
    assert "both answers of every row are scored" in {line["asked"] for line in gate["lines"]}
    assert "Scoring answers to a text" in run.card.read_text()
    assert "pairs, whose answers the head scores" in run.report.read_text()
    asked = [{"prompt": "the guitar 3 is late", "chosen": "sorry, order 3 is here", "rejected": "no 9"}]
    (bench.folder / "both.jsonl").write_text(json.dumps(asked[0]) + "\n")
    command("predict", str(run.path), "both.jsonl", "--output", "scores.jsonl", folder=bench.folder)
    said = json.loads((bench.folder / "scores.jsonl").read_text())
    assert said["preferred"] == "chosen"
    tokenizer = AutoTokenizer.from_pretrained(run.artifacts / "merged")
    model: Any = AutoModelForSequenceClassification.from_pretrained(run.artifacts / "merged")
    for name in ("chosen", "rejected"):
        turns = [{"role": "user", "content": asked[0]["prompt"]}, {"role": "assistant", "content": asked[0][name]}]
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
        assert float(model(**ids).logits[0, 0].detach()) == pytest.approx(said["scores"][name], abs=1e-4)
