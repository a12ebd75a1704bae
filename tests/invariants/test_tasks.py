"""Two tasks, one adapter: what they do to each other, then one run of both, asked in every way."""

from __future__ import annotations

import csv
import json
import math
import random
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from command import Done, luthier
from luthier.data.shards import Shard
from luthier.data_report import DataReport
from luthier.errors import RunError
from luthier.eval_records import EvalReport, TransferMatrix
from luthier.govern.gate import verify_seal
from luthier.pipeline.answers import choose
from luthier.pipeline.context import Context
from luthier.pipeline.progress import Progress
from luthier.pipeline.verdict import checked_gate
from luthier.records import GateDecision
from luthier.store.files import sha256_file
from luthier.store.runs import RunFolder
from luthier.train_records import TrainResult
from tiny import write_messages, write_model

pytestmark = pytest.mark.slow

THINGS = ["bow", "amp", "case", "flute", "drum", "cello"]


def write_replies(path: Path) -> None:
    rng = random.Random(1)
    rows = [
        {"question": f"where is my {thing}, order {number * 37} {rng.random():.5f}?", "reply": f"the {thing} is here"}
        for number in range(60)
        for thing in [rng.choice(THINGS)]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@dataclass(frozen=True)
class World:
    folder: Path
    transfer: Done
    done: Done

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.folder / self.done.document["run"])

    def luthier(self, *arguments: str | Path) -> Done:
        return luthier(*arguments, cwd=self.folder, LUTHIER_HOME=str(self.folder / "home"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("tasks")
    write_model(folder / "model")
    write_messages(folder / "messages.csv")
    write_replies(folder / "replies.jsonl")
    kind = {"name": "kind", "path": "messages.csv", "task": "classification", "input": "{text}", "label": "kind"}
    reply = {"name": "reply", "path": "replies.jsonl", "task": "generation", "input": "{question}", "label": "reply"}
    recipe = {
        "name": "two",
        "model": {"name": str(folder / "model")},
        "objective": {"targets": {"kind.accuracy": ">= 0.05"}, "non_regression": {"general.perplexity": "<= 99x"}},
        "data": {
            "train": [
                {**kind, "labels": {"review": False}, "split": {"test": 0.3, "group_by": "customer"}},
                {**reply, "weight": 0.5, "limit": {"test": 8}},
            ],
            "split": {"test": 0.2, "validation": 0.1},
            "privacy": {"profile": "fast"},
            "leakage": {"near": False},
        },
        "multi_task": {"sampling": "equal", "loss": "pcgrad"},
        "adapter": {"r": 4},
        "evaluate": {"resamples": 200},
        "export": ["adapter"],
        "train": {
            "num_train_epochs": 1, "max_length": 96, "batch_size": 8, "micro_batch_tokens": 256, "threads": 1,
            "validations": 2, "learning_rate": 0.01,
        },
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    home = str(folder / "home")
    transfer = luthier("transfer", "recipe.yaml", "--json", cwd=folder, LUTHIER_HOME=home).succeeds()
    done = luthier("run", "recipe.yaml", "--json", cwd=folder, LUTHIER_HOME=home).decides()
    return World(folder, transfer, done)


def test_test_rows_that_another_task_learns_do_not_count(tmp_path: Path) -> None:
    """Every fourth message is asked about in the rows of the other task, too."""
    write_model(tmp_path / "model")
    write_messages(tmp_path / "messages.csv")
    with (tmp_path / "messages.csv").open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    asked = [{"question": text, "reply": f"it is {len(text)}"} for text in texts[::4]]
    (tmp_path / "replies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    recipe = {
        "name": "two",
        "model": {"name": str(tmp_path / "model")},
        "data": {
            "train": [
                {"name": "kind", "path": "messages.csv", "task": "classification", "input": "{text}", "label": "kind"},
                {"name": "reply", "path": "replies.jsonl", "task": "generation", "input": "{question}",
                 "label": "reply"},
            ],
            "split": {"test": 0.4, "validation": 0.1},
            "privacy": {"profile": "fast"},
            "leakage": {"near": False},
        },
        "train": {"max_length": 96},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    luthier("prepare", "recipe.yaml", cwd=tmp_path, LUTHIER_HOME=str(tmp_path / "home")).succeeds()
    run = RunFolder((tmp_path / "runs/two/latest").resolve())
    learned = {one.text for one in Shard(run.task("reply").data / "train.arrow")}
    test = list(Shard(run.task("kind").data / "test.arrow"))
    assert learned & {one.text for one in test}, "some of them have to meet for this test to say anything"
    assert {one.text: one.contaminated for one in test} == {
        one.text: "exact" if one.text in learned else "" for one in test
    }
    report = DataReport.read(run.task("kind").data / "report.json")
    assert report.splits["test"].contaminated == sum(one.text in learned for one in test)


def test_each_task_is_compared_with_its_training_alone(world: World) -> None:
    matrix = TransferMatrix.read(world.folder / "runs/two/transfer.json")
    shown = [cell["p_value"] for cell in world.transfer.document["cells"]]
    assert shown == [None if math.isnan(cell.p_value) else cell.p_value for cell in matrix.cells], "JSON has no NaN"
    assert matrix.tasks == ("kind", "reply")
    assert [(cell.task, cell.together) for cell in matrix.cells] == [
        ("kind", ("kind", "reply")), ("reply", ("kind", "reply")),
    ]  # fmt: skip
    for cell in matrix.cells:
        assert cell.difference.low <= cell.difference.point <= cell.difference.high
    assert sorted(matrix.runs) == ["kind", "kind + reply", "reply"]
    alone = {name: world.folder / path for name, path in matrix.runs.items()}
    again = world.luthier("evaluate", world.run.task("kind").path, "--against", alone["kind"], "--json").succeeds()
    assert again.document["differences"][0]["interval"]["point"] == matrix.cells[0].difference.point
    page = (world.folder / "runs/two/transfer.html").read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)\s*=\s*['\"]?http", page)
    assert "kind + reply" in page


def test_every_training_is_a_look_at_the_test_rows_and_the_run_is_the_look_that_it_was(world: World) -> None:
    for name in ("kind", "reply"):
        folder = RunFolder(world.folder / world.transfer.document["runs"][name])
        alone, together = (EvalReport.read(one.eval_report).look for one in (folder, world.run.task(name)))
        assert alone is not None
        assert together is not None
        assert (alone.number, together.number) == (1, 2)
        assert alone.test_sha256 == together.test_sha256
    lines = {line.line: line for line in GateDecision.read(world.run.gate).lines}
    assert "lower bound of look 2 " in lines["kind.accuracy"].observed
    assert lines["general.perplexity"].evidence == "tasks/kind/eval/report.json: bounds.general.high"
    assert "This is look 2 at these test rows" in world.run.task("kind").card.read_text(encoding="utf-8")


def test_a_subset_that_was_trained_is_not_trained_again(world: World) -> None:
    assert "train: unchanged, not run again" in world.done.err
    assert "evaluate: unchanged, not run again" in world.done.err


def test_the_run_has_a_report_a_card_and_gate_lines_for_each_task(world: World) -> None:
    assert sorted(world.done.document["evaluations"]) == ["kind", "reply"]
    gate = GateDecision.read(world.run.gate)
    assert verify_seal(gate)
    lines = [line.line for line in gate.lines]
    assert lines.count("kind.accuracy") == lines.count("general.perplexity") == 1
    assert {"kind: leakage", "reply: leakage", "reply: license of the data", "parity of adapter"} <= set(lines)
    for line in gate.lines:
        assert (world.run.path / line.evidence.partition(":")[0]).exists(), line.evidence
    for folder in [world.run, world.run.task("kind"), world.run.task("reply")]:
        for path in (folder.report, folder.card, folder.gate):
            assert path.is_file(), path
    overview = world.run.report.read_text(encoding="utf-8")
    assert 'href="tasks/kind/report.html"' in overview
    assert "Loss of each task" in overview
    assert not re.findall(r"(?:src|href)\s*=\s*['\"]?http", overview)


def test_the_decision_of_a_task_cannot_be_edited(world: World) -> None:
    gate = world.run.task("kind").gate
    before = gate.read_text(encoding="utf-8")
    try:
        gate.write_text(before.replace('"observed": "', '"observed": "indeed ', 1), encoding="utf-8")
        told = world.luthier("report", world.run.path)
        assert told.code == 2
        assert "is not made of what the gate.json of its tasks say; that of kind was edited" in told.err
    finally:
        gate.write_text(before, encoding="utf-8")


def test_training_tells_the_loss_of_each_task_and_validates_each(world: World) -> None:
    result = TrainResult.read(world.run.train_result)
    steps = [event for event in result.history if event.kind == "step"]
    assert {name for event in steps for name in event.metrics} == {"kind.loss", "reply.loss"}
    checks = [event for event in result.history if event.kind == "validation"]
    assert {"kind.macro_f1", "reply.perplexity"} <= set(checks[-1].metrics)
    assert result.best_metric == "mean of kind.macro_f1, reply.perplexity"


def test_predict_says_what_the_evaluation_saw_and_asks_which_task(world: World) -> None:
    world.luthier("predict", world.run.path, "messages.csv").fails(2, "has 2 tasks", "two@1/kind")
    world.luthier("predict", "two@1", "messages.csv").fails(2, "two@1/kind, two@1/reply")
    world.luthier("predict", "two@1/nothing", "messages.csv").fails(2, "has no task 'nothing'", "kind, reply")
    world.luthier("predict", "two@1/kind", "messages.csv", "-o", "kind.jsonl").succeeds()
    said = [json.loads(line) for line in (world.folder / "kind.jsonl").read_text(encoding="utf-8").splitlines()]
    by_line = {one["line"]: one["label"] for one in said if "label" in one}  # others are too long, and say so
    kept = (world.run.task("kind").eval / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    for one in map(json.loads, kept):
        assert by_line[one["line"]] == one["predicted"]["tuned"]


def test_the_server_lists_a_model_a_task(world: World) -> None:
    from fastapi.testclient import TestClient

    from luthier.pipeline.answers import open_askers
    from luthier.serve.app import create_app

    chosen = choose("two@1", out=world.folder / "runs")
    app = create_app(
        open_askers(list(chosen.tasks.values())), model_id=chosen.model_id, also_called=chosen.names
    )  # fmt: skip
    client = TestClient(app, base_url="http://127.0.0.1")
    listed = [one["id"] for one in client.get("/v1/models").json()["data"]]
    assert listed == ["two@1/kind", "two@1/reply"]
    row = Shard(world.run.task("kind").data / "test.arrow")[0]
    unnamed = client.post("/v1/classify", json={"input": row.text}).json()
    named = client.post("/v1/classify", json={"input": row.text, "model": "two/kind"}).json()
    assert unnamed == named
    assert unnamed["model"] == "two@1/kind"
    question = [{"role": "user", "content": "where is my bow?"}]
    answer = client.post("/v1/chat/completions", json={"model": "two@1/reply", "messages": question})
    assert answer.json()["model"] == "two@1/reply"
    assert client.post("/v1/classify", json={"input": "x", "model": "two@1/reply"}).status_code == 400
    refused = client.post("/v1/chat/completions", json={"model": "two@1", "messages": question})
    assert refused.status_code == 404
    assert "two@1/kind" in refused.json()["error"]["message"]


def test_a_step_is_done_for_all_tasks_or_for_none(world: World) -> None:
    world.luthier("evaluate", world.run.task("kind").path).fails(2, "is one task of a run", str(world.run.path))
    world.luthier("evaluate", world.run.path, "--against", world.run.task("kind").path).fails(
        2, "a run of 2 tasks", "tasks/kind"
    )
    world.luthier("doctor", "resume", world.run.path).fails(2, "has several tasks")


def test_one_task_is_asked_by_its_own_name(world: World) -> None:
    chosen = choose("two@1/kind", out=world.folder / "runs")
    assert chosen.model_id == "two@1/kind"
    assert {"two@1/kind", "two/kind"} <= chosen.names


def test_a_gate_of_one_task_that_was_forged_is_not_shown(world: World) -> None:
    path = world.run.task("kind").gate
    before = path.read_text(encoding="utf-8")
    path.write_text(before.replace("tuned ", "tuned 0.99 FORGED "), encoding="utf-8")
    try:
        world.luthier("report", world.run.path).fails(2, "is not made of what the gate.json of its tasks say")
    finally:
        path.write_text(before, encoding="utf-8")
    world.luthier("report", world.run.path).succeeds()


def test_the_recipe_of_the_run_decides_what_a_task_trains(world: World) -> None:
    """What stands in a task's folder is for looking at: its weight there changes nothing."""
    copy = world.run.task("reply").resolved
    before = copy.read_text(encoding="utf-8")
    copy.write_text(before.replace('"weight": 0.5', '"weight": 50.0'), encoding="utf-8")
    try:
        assert [task.resolved.recipe.entry.weight for task in Context(world.run, Progress()).tasks] == [1.0, 0.5]
    finally:
        copy.write_text(before, encoding="utf-8")


def test_a_report_of_one_task_that_was_edited_takes_the_decision_away(world: World, tmp_path: Path) -> None:
    assert checked_gate(world.run, None).passed
    report = world.run.task("reply").eval_report
    before, whole = report.read_bytes(), sha256_file(report)
    report.write_bytes(before.replace(b'"seconds"', b'"seconds" '))
    try:
        with pytest.raises(RunError, match="changed since"):
            checked_gate(world.run, None)
    finally:
        report.write_bytes(before)
    assert sha256_file(report) == whole
