"""Two tasks, an adapter for each over one base: killed in the second, and ended as if each had been alone."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_kill import Bench, interrupt, saved
from test_tasks import write_replies

from command import Done, luthier
from luthier.data.shards import Shard
from luthier.errors import RunError
from luthier.eval_records import EvalReport
from luthier.pipeline.answers import choose, open_asker, open_askers
from luthier.pipeline.order import up_to
from luthier.pipeline.report import write_report
from luthier.pipeline.verdict import checked_gate, read_artifacts
from luthier.plan_records import Plan
from luthier.records import GateDecision
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.runs import RunFolder, weights_file, weights_sha256
from luthier.store.stages import Stages
from luthier.train_records import TrainResult
from tiny import write_messages, write_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="finds the child of a process under /proc"),
]

TASKS = ("kind", "reply")


def write_recipes(folder: Path) -> None:
    """`own.yaml` of both tasks, and `reply.yaml` of one of them alone."""
    kind = {"name": "kind", "path": "messages.csv", "task": "classification", "input": "{text}", "label": "kind",
            "method": {"type": "classify"}, "split": {"test": 0.15, "validation": 0.3}}  # fmt: skip
    reply = {"name": "reply", "path": "replies.jsonl", "task": "generation", "input": "{question}", "label": "reply",
             "limit": {"test": 6}}  # fmt: skip
    shared: dict[str, Any] = {
        "model": {"name": str(folder / "model")},
        "adapter": {"r": 4},
        "evaluate": {"resamples": 200, "baselines": ["base"]},
        "export": ["adapter", "merged"],
        "train": {
            "num_train_epochs": 2, "max_length": 96, "batch_size": 4, "micro_batch_tokens": 256, "threads": 1,
            "validations": 3, "learning_rate": 0.01, "save_steps": 2,
        },
    }  # fmt: skip
    rows = {
        "split": {"test": 0.2, "validation": 0.1},
        "labels": {"review": False},
        "privacy": {"profile": "fast"},
        "leakage": {"near": False},
    }
    own = {
        "name": "own",
        "objective": {"non_regression": {"general.perplexity": "<= 99x"}},
        "data": {"train": [kind, reply], **rows},
        "multi_task": {"adapters": "per_task"},
    }
    (folder / "own.yaml").write_text(yaml.safe_dump({**own, **shared}, sort_keys=False), encoding="utf-8")
    alone = {"name": "alone", "data": {"train": [reply], **rows}, **shared}
    (folder / "reply.yaml").write_text(yaml.safe_dump(alone, sort_keys=False), encoding="utf-8")


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
    """A run that was killed while its second task trained, and was begun again."""
    folder = tmp_path_factory.mktemp("own")
    write_model(folder / "model")
    write_messages(folder / "messages.csv")
    write_replies(folder / "replies.jsonl")
    write_recipes(folder)
    home = str(folder / "home")
    bench = Bench(folder, RunFolder(folder / "runs" / "own" / "latest"), ("run", "own.yaml"))
    code, _ = interrupt(bench, "runs", lambda run: saved(5)(run / "tasks" / "reply"), "both")
    assert code == -signal.SIGKILL
    return World(folder, luthier("run", "own.yaml", "--json", cwd=folder, LUTHIER_HOME=home).succeeds())


def test_the_one_that_was_killed_ends_with_the_bits_of_its_training_alone(world: World) -> None:
    """Beside another task, in the same process after it, and begun again: none of that is seen in it."""
    assert "task kind is trained already" in world.done.err
    own = {name: TrainResult.read(world.run.task(name).train_result) for name in TASKS}
    assert own["kind"].resumed_from == ()
    assert own["reply"].resumed_from
    world.luthier("train", "reply.yaml").succeeds()
    alone = RunFolder.open("alone", out=world.folder / "runs")
    ours, theirs = weights_file(world.run.task("reply").tuned), weights_file(alone.tuned)
    assert ours.read_bytes() == theirs.read_bytes()
    result = TrainResult.read(alone.train_result)
    assert (own["reply"].best_step, own["reply"].best_value) == (result.best_step, result.best_value)
    assert [(event.kind, event.step, event.loss, event.metrics) for event in own["reply"].history] == [
        (event.kind, event.step, event.loss, event.metrics) for event in result.history
    ]
    whole, plan = TrainResult.read(world.run.train_result), Plan.read(world.run.plan)
    assert whole.trainable_parameters == sum(one.trainable_parameters for one in own.values())
    chosen = next(one for one in plan.candidates if one.technique == plan.chosen)
    assert chosen.trainable_parameters == whole.trainable_parameters
    assert any("export merged writes a whole model for each task" in note for note in plan.notes)


def test_gate_card_and_report_speak_of_each_adapter(world: World) -> None:
    gate = GateDecision.read(world.run.gate)
    lines = [line.line for line in gate.lines]
    for name in TASKS:
        own = {f"{name}: general.perplexity", f"{name}: parity of adapter", f"{name}: parity of merged"}
        assert own <= set(lines)
        trained = TrainResult.read(world.run.task(name).train_result)
        report = EvalReport.read(world.run.task(name).eval_report)
        assert report.weights_sha256 == trained.weights_sha256 == weights_sha256(world.run.task(name).tuned)
        made = read_artifacts(world.run.task(name))
        assert [one.path for one in made] == [f"artifacts/adapter/{name}", f"artifacts/merged/{name}"]
        assert {one.made_from for one in made} == {trained.weights_sha256}
        said = f"kept at step {trained.best_step} of {trained.steps}"
        assert said in world.run.card.read_text(encoding="utf-8")
        assert said in world.run.report.read_text(encoding="utf-8")
        assert f"step {trained.best_step}" in world.run.task(name).card.read_text(encoding="utf-8")
    assert len(read_artifacts(world.run)) == 4
    assert checked_gate(world.run, None).passed
    before = world.run.report.read_text(encoding="utf-8")
    write_report(str(world.run.path))
    assert world.run.report.read_text(encoding="utf-8") == before
    resolved = ResolvedRecipe.read(world.run.resolved)
    assert all(
        Stages(world.run).done(stage.name, stage.key(world.run, resolved)) for stage in up_to("export", resolved)
    )


def test_each_artifact_opens_in_plain_tools_and_says_what_is_served(world: World) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    ids = [5, 9, 20, 41]
    kinds: dict[str, Any] = {"kind": AutoModelForSequenceClassification, "reply": AutoModelForCausalLM}
    askers = open_askers([world.run.task(name) for name in TASKS])
    for name, kind in kinds.items():
        more = {"num_labels": 3} if name == "kind" else {}
        base = kind.from_pretrained(world.folder / "model", **more)
        adapted = PeftModel.from_pretrained(base, str(world.run.artifacts / "adapter" / name)).eval()
        merged = kind.from_pretrained(world.run.artifacts / "merged" / name).eval()
        engine: Any = askers[name].engine
        ours = engine.class_logits(ids, name) if name == "kind" else engine.logits(ids)
        for plain in (adapted, merged):
            with torch.no_grad():
                theirs = plain(input_ids=torch.tensor([ids])).logits[0].numpy()
            assert abs(theirs - ours).max() < 1e-4 * abs(ours).max()


def test_one_adapter_after_the_other_is_asked_as_if_it_were_alone(world: World) -> None:
    from fastapi.testclient import TestClient

    from luthier.serve.app import create_app

    chosen = choose("own@1", out=world.folder / "runs")
    askers = open_askers(list(chosen.tasks.values()))
    held = [{tensor.data_ptr() for tensor in asker.engine.model.parameters()} for asker in askers.values()]  # type: ignore[attr-defined]
    alone = {name: open_asker(world.run.task(name)) for name in TASKS}
    of_base = len(list(alone["reply"].engine.model.parameters())) - len(held[1] - held[0])  # type: ignore[attr-defined]
    assert len(held[0] & held[1]) == of_base, "the base is in memory once"
    client = TestClient(
        create_app(askers, model_id=chosen.model_id, also_called=chosen.names), base_url="http://127.0.0.1"
    )
    assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["own@1/kind", "own@1/reply"]
    text = Shard(world.run.task("kind").data / "test.arrow")[0].text

    def labels() -> dict[str, float]:
        said = client.post("/v1/classify", json={"input": text, "model": "own@1/kind"}).json()
        found: dict[str, float] = said["data"][0]["probabilities"]
        return found

    def writes() -> str:
        asked = {"model": "own@1/reply", "messages": [{"role": "user", "content": "where is my bow?"}]}
        found: str = client.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]["content"]
        return found

    first = labels(), writes(), labels(), writes()
    assert first[:2] == first[2:]
    assert first[0] == alone["kind"].answer_text(text).probabilities
    assert first[1] == alone["reply"].answer_text("where is my bow?").text


def test_a_task_that_is_asked_alone_says_what_the_evaluation_saw(world: World) -> None:
    one = choose("own@1/kind", out=world.folder / "runs").one_task()
    asker = open_asker(one)
    kept = [json.loads(line) for line in (one.eval / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    for row, seen in zip(Shard(one.data / "test.arrow"), kept, strict=True):
        said = asker.answer_text(row.text)
        assert said.probabilities == pytest.approx(seen["probabilities"]["tuned"], abs=1e-6)
        assert said.label == seen["predicted"]["tuned"]


@pytest.mark.parametrize("name", TASKS)
def test_an_adapter_that_was_changed_takes_the_decision_away(world: World, name: str) -> None:
    file = weights_file(world.run.task(name).tuned)
    before = file.read_bytes()
    file.write_bytes(before[:-4] + bytes(4))
    try:
        with pytest.raises(RunError, match="changed since"):
            checked_gate(world.run, None)
    finally:
        file.write_bytes(before)
    assert checked_gate(world.run, None).passed
