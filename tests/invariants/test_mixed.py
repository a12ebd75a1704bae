"""Two heads and a text objective from one recipe to answers, by the command line, on a tiny model."""

from __future__ import annotations

import csv
import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file
from test_tasks import write_replies

from command import Done, luthier
from luthier.data.shards import Shard
from luthier.errors import RunError
from luthier.eval_records import EvalReport
from luthier.pipeline.answers import choose, open_askers
from luthier.pipeline.verdict import checked_gate
from luthier.plan.measured import Tried
from luthier.plan_records import Plan
from luthier.records import GateDecision
from luthier.store.runs import HEADS, RunFolder, weights_sha256
from luthier.train_records import TrainResult
from tiny import write_messages, write_model

pytestmark = pytest.mark.slow

TASKS = ("kind", "mood", "reply")
BAR = 0.6


def write_moods(path: Path) -> None:
    rng, words = random.Random(2), {"glad": ["lovely", "fine", "great"], "sad": ["awful", "poor", "bad"]}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["review", "mood"])
        for number in range(100):
            mood = ("glad", "sad")[number % 2]
            writer.writerow([f"the tone is {rng.choice(words[mood])}, number {number} {rng.random():.4f}", mood])


@dataclass(frozen=True)
class World:
    folder: Path
    done: Done

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.folder / self.done.document["run"])

    def luthier(self, *arguments: str | Path) -> Done:
        return luthier(*arguments, cwd=self.folder, LUTHIER_HOME=str(self.folder / "home"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("mixed")
    write_model(folder / "model")
    write_messages(folder / "messages.csv")
    write_moods(folder / "moods.csv")
    write_replies(folder / "replies.jsonl")
    (folder / "things.txt").write_text("bow\nflute\ndrum\nnever said\n", encoding="utf-8")
    kind = {"name": "kind", "path": "messages.csv", "task": "classification", "input": "{text}", "label": "kind"}
    mood = {"name": "mood", "path": "moods.csv", "task": "sentiment", "input": "{review}", "label": "mood"}
    reply = {"name": "reply", "path": "replies.jsonl", "task": "generation", "input": "{question}", "label": "reply"}
    reply["glossary"] = "things.txt"
    recipe = {
        "name": "mixed",
        "model": {"name": str(folder / "model")},
        "objective": {
            "targets": {"kind.accuracy": ">= 0.02", "mood.coverage": ">= 0.02", "reply.term_accuracy": ">= 0"},
            "non_regression": {"general.perplexity": "<= 99x", "reply.term_accuracy": ">= 0x"},
        },
        "data": {
            "train": [
                {**kind, "method": {"type": "classify", "label_smoothing": 0.05},
                 "split": {"test": 0.3, "validation": 0.3, "group_by": ""}},
                {**mood, "method": {"type": "classify", "abstain_below": BAR},
                 "split": {"test": 0.3, "validation": 0.3}},
                {**reply, "weight": 0.5, "limit": {"test": 8}},
            ],
            "split": {"test": 0.2, "validation": 0.1},
            "labels": {"review": False},
            "privacy": {"profile": "fast"},
            "leakage": {"near": False},
        },
        "adapter": {"r": 4},
        "evaluate": {"resamples": 200},
        "export": ["adapter", "merged"],
        "train": {
            "num_train_epochs": 2, "max_length": 96, "batch_size": 8, "micro_batch_tokens": 256, "threads": 1,
            "validations": 2, "learning_rate": 0.01,
        },
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return World(
        folder, luthier("run", "recipe.yaml", "--json", cwd=folder, LUTHIER_HOME=str(folder / "home")).decides()
    )


def test_each_task_is_trained_judged_and_decided_in_its_own_way(world: World) -> None:
    trained, plan = TrainResult.read(world.run.train_result), Plan.read(world.run.plan)
    assert trained.method == "classify, sft"
    assert set(trained.calibrations) == {"kind", "mood"}
    checks = [event.metrics for event in trained.history if event.kind == "validation"]
    assert {"kind.log_loss", "kind.macro_f1", "mood.log_loss", "reply.perplexity"} <= set(checks[-1])
    assert "kind.perplexity" not in checks[-1]
    assert trained.best_metric == "mean of kind.macro_f1, mood.macro_f1, reply.perplexity"
    together = next(one for one in plan.candidates if one.technique == plan.chosen)
    assert together.trains == "an adapter for all, a head for each of kind, mood"
    assert together.trainable_parameters == trained.trainable_parameters
    metrics = {
        name: next(one for one in EvalReport.read(world.run.task(name).eval_report).systems if one.system == "tuned")
        for name in TASKS
    }
    assert "coverage" in metrics["mood"].metrics
    assert "log_loss" in metrics["kind"].metrics
    assert "coverage" not in metrics["kind"].metrics
    assert "perplexity" in metrics["reply"].metrics
    gate = GateDecision.read(world.run.gate)
    lines = {line.line: line for line in gate.lines}
    assert {"kind.accuracy", "mood.coverage", "parity of adapter", "parity of merged"} <= set(lines)
    for kind in ("adapter", "merged"):
        assert "greedy text or chosen label equal on" in lines[f"parity of {kind}"].observed
    assert "a head learns the label of every row" in lines["mood: supervision"].observed
    assert "the end of the turn is supervised" in lines["reply: supervision"].observed
    cards = {name: world.run.task(name).card.read_text(encoding="utf-8") for name in TASKS}
    assert f"{trained.calibrations['mood'].temperature:.3f}" in cards["mood"]
    assert "temperature of" in cards["kind"]
    assert "temperature of" not in cards["reply"]
    assert "How sure it is" in world.run.task("mood").report.read_text(encoding="utf-8")
    assert "How sure it is" not in world.run.task("reply").report.read_text(encoding="utf-8")


def test_the_terms_of_one_tasks_own_glossary_are_judged_for_it_alone(world: World) -> None:
    reports = {name: EvalReport.read(world.run.task(name).eval_report) for name in TASKS}
    assert [report.glossary is not None for report in reports.values()] == [False, False, True]
    use, test = reports["reply"].glossary, Shard(world.run.task("reply").data / "test.arrow")
    assert use is not None
    words = [set(f"{row.text} {row.answer}".replace(",", " ").split()) for row in test if not row.contaminated]
    assert use.occurrences == sum(len(said & {"bow", "flute", "drum"}) for said in words) > 0
    assert use.num_terms == 4
    for one in reports["reply"].systems:
        assert ("term_accuracy" in one.metrics) == (one.system in ("base", "tuned"))
    lines = [line for line in GateDecision.read(world.run.gate).lines if line.line == "reply.term_accuracy"]
    assert [(line.kind, line.passed) for line in lines] == [("target", True), ("non_regression", True)]
    assert "Terms of things.txt that answers keep" in world.run.task("reply").card.read_text(encoding="utf-8")
    assert "Terms of the glossary" in world.run.task("reply").report.read_text(encoding="utf-8")


def test_predict_says_of_each_task_what_the_evaluation_saw(world: World) -> None:
    files = {"kind": "messages.csv", "mood": "moods.csv", "reply": "replies.jsonl"}
    for name, file in files.items():
        world.luthier("predict", f"mixed@1/{name}", file, "-o", f"{name}.jsonl").succeeds()
        said = [json.loads(line) for line in (world.folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        by_line = {one["line"]: one for one in said if "error" not in one}
        kept = (world.run.task(name).eval / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        for one in map(json.loads, kept):
            answer, expected = by_line[one["line"]], one["predicted"]["tuned"]
            if name == "reply":
                assert answer["text"] == expected
                continue
            assert answer["probabilities"] == pytest.approx(one["probabilities"]["tuned"], abs=1e-6)
            sure = max(answer["probabilities"].values()) >= BAR
            assert answer["label"] == (expected if name == "kind" or sure else None)
            assert ("abstained" in answer) == (name == "mood")


def test_the_server_answers_each_in_its_own_way(world: World) -> None:
    from fastapi.testclient import TestClient

    from luthier.serve.app import create_app

    chosen = choose("mixed@1", out=world.folder / "runs")
    askers = open_askers(list(chosen.tasks.values()))
    assert len({id(asker.engine) for asker in askers.values()}) == 1, "one model for all"
    client = TestClient(
        create_app(askers, model_id=chosen.model_id, also_called=chosen.names), base_url="http://127.0.0.1"
    )
    assert [one["id"] for one in client.get("/v1/models").json()["data"]] == [f"mixed@1/{name}" for name in TASKS]
    for name, labels in (("kind", {"late", "broken", "refund"}), ("mood", {"glad", "sad"})):
        row = Shard(world.run.task(name).data / "test.arrow")[0]
        answer = client.post("/v1/classify", json={"input": row.text, "model": f"mixed@1/{name}"}).json()
        assert set(answer["data"][0]["probabilities"] if "data" in answer else answer["probabilities"]) == labels
    question = [{"role": "user", "content": "where is my bow?"}]
    answer = client.post("/v1/chat/completions", json={"model": "mixed@1/reply", "messages": question})
    assert answer.status_code == 200


def test_each_tasks_folder_shows_a_model_that_plain_tools_open(world: World) -> None:
    from peft import PeftConfig

    for name in TASKS:
        artifacts = world.run.task(name).artifacts
        kinds = {"kind": "SEQ_CLS", "mood": "SEQ_CLS", "reply": "CAUSAL_LM"}
        own = artifacts / "adapter" / (name if name != "reply" else "")
        assert PeftConfig.from_pretrained(str(own)).task_type == kinds[name]
        assert (artifacts / "merged" / (name if name != "reply" else "") / "model.safetensors").is_file()


def test_heads_that_were_changed_take_the_decision_away(world: World) -> None:
    assert checked_gate(world.run, None).passed
    file = world.run.tuned / HEADS
    before = file.read_bytes()
    heads, known = load_file(file), weights_sha256(world.run.tuned)
    save_file({**heads, "mood.weight": -heads["mood.weight"]}, file)
    try:
        assert weights_sha256(world.run.tuned) != known
        with pytest.raises(RunError, match="changed since"):
            checked_gate(world.run, None)
    finally:
        file.write_bytes(before)
    assert checked_gate(world.run, None).passed


def test_a_probe_times_each_task_as_it_is_asked(world: World) -> None:
    plan = world.luthier("plan", "recipe.yaml", "--probe", "--json", "--out", world.folder / "probed").succeeds()
    tried = Tried.read(RunFolder.open("mixed", out=world.folder / "probed").path / "probe.json")
    assert len(tried.asked) == len(TASKS)
    assert all(tried.asked)
    kept = [json.loads(path.read_text()) for path in (world.folder / "home" / "probes").glob("*.json")]
    assert {one["technique"] for one in kept} == {"lora classify", "lora sft"}
    assert len({one["asked"] for one in kept}) == 1
    assert len({round(one["score_gflops"], 6) for one in kept}) == 1, "one rate, whatever is asked"
    assert plan.document["prediction"]["rates"] == "probe"
