"""One run of the whole pipeline on a tiny model, by its command line; then everything that is promised about a run."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from command import COMMAND, Done, call, environment, luthier
from luthier.data.contract import Renderer
from luthier.data.goldens import read_goldens
from luthier.data.shards import Shard
from luthier.data_report import DataReport
from luthier.engines.ask import Asker
from luthier.engines.protocol import Score
from luthier.eval_records import EvalReport, Look
from luthier.govern.gate import sealed, verify_seal
from luthier.plan_records import Plan
from luthier.records import DataProfile, GateDecision, ModelShape, RequestContract
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.audit import AuditLog
from luthier.store.events import EventLog
from luthier.store.files import sha256_file, sha256_files
from luthier.store.registry import Registry
from luthier.store.runs import RunFolder
from luthier.store.stages import Stages
from luthier.train_records import TrainResult
from tiny import write_model, write_recipe

pytestmark = pytest.mark.slow

STAGES = ("base", "prepare", "train", "evaluate", "export")
REFUSED = ["--set", "objective.targets={kind.accuracy: '>= 0.999'}"]


@dataclass(frozen=True)
class World:
    """A folder with model, data, recipe and the runs made of it."""

    folder: Path
    first: Done
    run: RunFolder

    @property
    def out(self) -> Path:
        return self.folder / "runs"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def luthier(self, *arguments: str | Path) -> Done:
        return luthier(*arguments, cwd=self.folder, LUTHIER_HOME=str(self.folder / "home"))

    def call(self, *arguments: str | Path) -> Done:
        """The same in this process, for what starts no stage."""
        return call(*arguments, cwd=self.folder, LUTHIER_HOME=str(self.folder / "home"))

    def newest(self) -> RunFolder:
        return RunFolder.open("tiny", out=self.out)

    def contents(self) -> dict[str, str]:
        """All that stands in the run folder; who locked it last does not count."""
        return {name: found for name, found in sha256_files(self.run.path).items() if name != ".lock"}

    def copy(self, out: Path, run: RunFolder | None = None) -> RunFolder:
        """The run with registry and audit log in another place, to be spoiled; the other runs stay here."""
        run = run or self.run
        others = [one.name for one in run.path.parent.iterdir() if one.name not in ("latest", run.id)]
        shutil.copytree(self.out, out, symlinks=True, ignore=lambda folder, names: others)
        return RunFolder(out / "tiny" / run.id)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    recipe = write_recipe(folder, write_model(folder / "model"))
    text = recipe.read_text().replace("'>= 0.2'", "'>= 0.02'")  # a target that random weights can meet
    recipe.write_text(text)
    first = luthier("run", "tiny.yaml", "--json", cwd=folder, LUTHIER_HOME=str(folder / "home"))
    first.succeeds()
    return World(folder, first, RunFolder.open("tiny", out=folder / "runs"))


@pytest.fixture(scope="module")
def refused(world: World) -> tuple[Done, RunFolder]:
    """The same recipe with a target out of reach."""
    done = world.call("run", "tiny.yaml", *REFUSED)
    assert done.code == 3
    return done, world.newest()


@pytest.fixture(scope="module")
def resampled(world: World) -> tuple[Done, RunFolder]:
    """The same recipe with another key of the evaluation."""
    return world.luthier("run", "tiny.yaml", "--set", "evaluate.resamples=300").succeeds(), world.newest()


# --- one run ---


def test_everything_is_in_the_run_folder(world: World) -> None:
    run = world.run
    files = [
        run.recipe,
        run.resolved,
        run.profile,
        run.shape,
        run.plan,
        run.data_report,
        run.contract,
        run.goldens,
        run.train_result,
        run.eval_report,
        run.artifacts_index,
        run.gate,
        run.card,
        run.lineage,
        run.report,
        run.events,
        *(run.data / name for name in ("train.arrow", "validation.arrow", "test.arrow", "findings.jsonl")),
        *(run.train / "adapter" / name for name in ("adapter_model.safetensors", "adapter_config.json")),
        *(
            run.artifacts / "adapter" / name
            for name in ("adapter_model.safetensors", "contract.json", "tokenizer.json")
        ),
        *(run.artifacts / "merged" / name for name in ("model.safetensors", "config.json", "chat_template.jinja")),
        run.eval / "predictions.jsonl",
        *(run.stages / f"{stage}.json" for stage in STAGES),
    ]
    assert [str(file) for file in files if not file.is_file()] == []
    assert run.recipe.read_text() == (world.folder / "tiny.yaml").read_text()
    assert (world.out / "tiny" / "latest").resolve() == run.path.resolve()
    assert not [path for path in run.path.rglob("*") if path.suffix in (".tmp", ".old", ".bin", ".pt", ".pkl")]


def test_the_json_of_a_run_is_one_document_and_progress_is_elsewhere(world: World) -> None:
    document = world.first.document
    assert (
        EvalReport.model_validate_json(world.run.eval_report.read_bytes()).headline
        == document["evaluation"]["headline"]
    )
    assert document["gate"]["passed"] is True
    assert (world.folder / document["run"]).resolve() == world.run.path.resolve()
    for stage in STAGES:
        assert f"{stage}: " in world.first.err
    assert re.search(r"training: \d+ of \d+, \d+ tokens/s", world.first.err)


def test_every_record_is_read_back_as_it_was_written(world: World) -> None:
    run = world.run
    records: list[tuple[Path, type[Any]]] = [
        (run.resolved, ResolvedRecipe),
        (run.profile, DataProfile),
        (run.shape, ModelShape),
        (run.plan, Plan),
        (run.data_report, DataReport),
        (run.contract, RequestContract),
        (run.train_result, TrainResult),
        (run.eval_report, EvalReport),
        (run.gate, GateDecision),
    ]
    for path, kind in records:
        record = kind.read(path)
        assert isinstance(record, BaseModel)
        assert record.to_json() == path.read_text(encoding="utf-8"), path
        assert "NaN" not in path.read_text() or kind in (EvalReport, TrainResult), path
    assert read_goldens(run.goldens)
    assert [event["kind"] for event in EventLog.read(run.events)].count("stage_done") == len(STAGES)
    steps = [event for event in TrainResult.read(run.train_result).history if event.kind == "step"]
    logged = [event for event in EventLog.read(run.events) if event["kind"] == "step"]
    assert [event["loss"] for event in logged] == [event.loss for event in steps]


def test_hashes_lead_from_the_weights_to_the_gate(world: World) -> None:
    run = world.run
    gate, evaluation, train = (
        GateDecision.read(run.gate),
        EvalReport.read(run.eval_report),
        TrainResult.read(run.train_result),
    )
    weights = sha256_file(run.train / "adapter" / "adapter_model.safetensors")
    assert weights == train.weights_sha256 == evaluation.weights_sha256
    assert weights == sha256_file(run.artifacts / "adapter" / "adapter_model.safetensors")
    assert gate.eval_sha256 == sha256_file(run.eval_report)
    assert gate.artifacts_sha256 == sha256_file(run.artifacts_index)
    assert ResolvedRecipe.read(run.resolved).sha256.startswith(run.id)
    for artifact in json.loads(run.artifacts_index.read_text()):
        assert artifact["sha256"] == sha256_files(run.path / artifact["path"])
        assert artifact["made_from"] == weights


def test_the_report_needs_nothing_but_itself(world: World) -> None:
    page = world.run.report.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    assert not re.findall(r"""(?:src|href|action|data)\s*=\s*["'](?!#|data:)""", page)
    assert not re.findall(r"<(?:script|link|iframe|object|embed|img)\b|@import|url\((?!#|data:)", page)
    assert EvalReport.read(world.run.eval_report).mistakes[0].text in page.replace("&#39;", "'").replace("&amp;", "&")


def test_the_same_command_again_runs_nothing_and_changes_nothing(world: World) -> None:
    before, audited = world.contents(), AuditLog(world.out / "audit.jsonl").entries()
    done = world.luthier("run", "tiny.yaml").succeeds()
    for stage in STAGES:
        assert f"{stage}: unchanged, not run again" in done.err
    assert world.contents() == before
    assert AuditLog(world.out / "audit.jsonl").entries() == audited
    assert [one.version for one in Registry(world.out / "registry.sqlite").versions()] == [1]


def test_every_verb_works_from_the_run_folder_alone(world: World, tmp_path: Path) -> None:
    before = world.contents()
    for verb in ("prepare", "train", "evaluate", "export", "gate", "report", "run"):
        done = call(verb, world.run.path, "--json", cwd=tmp_path).succeeds()
        assert done.document
        assert "unchanged, not run again" in done.err or verb == "report"
    changed = {name for name, found in world.contents().items() if before[name] != found}
    assert changed <= {"report.html"}  # which names the run as it is reached from here
    assert not list(tmp_path.iterdir())


# --- what changes, and what is taken over ---


def test_another_seed_is_another_run_that_takes_over_what_does_not_depend_on_it(world: World) -> None:
    done, run = world.call("prepare", "tiny.yaml", "--set", "train.seed=1").succeeds(), world.newest()
    assert run.id != world.run.id
    assert f"prepare: the same work was done by run {world.run.id}" in done.err
    marker = Stages(run).marker("prepare")
    assert marker is not None
    assert marker.reused_from == world.run.id
    assert sha256_files(run.data) == sha256_files(world.run.data)
    assert not run.train.exists()


def test_a_key_of_the_evaluation_leaves_the_training_alone(world: World, resampled: tuple[Done, RunFolder]) -> None:
    done, run = resampled
    for stage in ("prepare", "train", "export"):
        assert f"{stage}: the same work was done by run" in done.err
    assert "evaluate: evaluating" in done.err
    assert EvalReport.read(run.eval_report).resamples == 300
    looks = [EvalReport.read(one.eval_report).look for one in (run, world.run)]
    assert looks[0] == looks[1] == Look(number=1, test_sha256=looks[0].test_sha256 if looks[0] else "")
    assert TrainResult.read(run.train_result) == TrainResult.read(world.run.train_result)


def test_another_chat_template_of_the_base_is_another_base(world: World, tmp_path: Path) -> None:
    model = shutil.copytree(world.model, tmp_path / "model")
    template = model / "chat_template.jinja"
    template.write_text("{# another #}" + template.read_text())
    done = world.luthier("prepare", "tiny.yaml", "--set", f"model.name={model}", "--json").succeeds()
    assert "prepare: preparing the data" in done.err
    assert done.document["contract_sha256"] != DataReport.read(world.run.data_report).contract_sha256
    run = world.newest()
    template.write_text(template.read_text() + " ")
    world.call("train", run.path).fails(
        2, "the base model at", "has changed since this run was made", "run the recipe again"
    )


def flip(path: Path) -> None:
    """Change one bit near the end; the size stays."""
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.unlink()  # the file may be shared with another run
    path.write_bytes(content)


def test_an_edited_file_is_noticed_and_made_anew(world: World, tmp_path: Path) -> None:
    run = world.copy(tmp_path / "runs")
    files = [
        "data/test.arrow",
        "data/contract.json",
        "train/adapter/adapter_model.safetensors",
        "train/adapter/adapter_config.json",
        "eval/report.json",
        "artifacts/merged/config.json",
        "artifacts/adapter/adapter_model.safetensors",
    ]
    for file in files:
        original = (run.path / file).read_bytes()
        flip(run.path / file)
        for verb in (["report"], ["serve", "--port", "0"], ["registry", "promote", "--out", tmp_path / "runs"]):
            target = "tiny@1" if verb[0] == "registry" else run.path
            world.call(*verb, target).fails(2, "gate.json is about", "changed since", f"luthier gate {run.path}")
        (run.path / file).write_bytes(original)
    world.call("report", run.path).succeeds()
    for file in files[:1] + files[2:4] + files[5:]:
        flip(run.path / file)
    shutil.rmtree(run.artifacts / "merged")
    done = world.luthier("gate", run.path).succeeds()
    assert [name for name in STAGES if f"{name}: unchanged" in done.err] == ["base", "evaluate"]
    same = {
        name: found
        for name, found in sha256_files(run.path).items()
        if name.startswith(("data", "train/adapter", "artifacts"))
    }
    before = world.contents()
    assert {name for name, found in same.items() if before[name] != found} <= {"data/findings.jsonl"}


# --- the gate, the registry, the audit log ---


def test_run_prints_a_refusal_as_a_result_and_exits_3_as_gate_does(
    world: World, refused: tuple[Done, RunFolder]
) -> None:
    done, run = refused
    assert "REFUSED" in done.out
    assert "error: the gate refused" in done.err
    assert "kind.accuracy" in done.out
    for stage in STAGES:
        assert f"{stage}: " in done.err
        assert f"{stage}: the same work was done" in done.err
    gate = world.call("gate", run.path, "--json")
    assert gate.code == 3
    assert gate.document["passed"] is False
    assert "error: the gate refused" in gate.err
    assert "kind.accuracy" in gate.err
    assert "Traceback" not in gate.err
    passed = world.call("gate", world.run.path, "--json").succeeds()
    document = dict(passed.document)
    assert document.pop("standing")["state"] == "passed"
    assert document == json.loads(world.run.gate.read_text())


def test_a_refused_version_is_neither_promoted_nor_served(world: World, refused: tuple[Done, RunFolder]) -> None:
    run = refused[1]
    world.call("serve", run.path, "--port", "0").fails(3, "is refused by its gate", "kind.accuracy", "--allow-refused")
    version = next(
        one
        for one in Registry(world.out / "registry.sqlite").versions("tiny")
        if Path(one.run).resolve() == run.path.resolve()
    )
    world.call("registry", "promote", f"tiny@{version.version}").fails(3, "was refused by its gate")
    world.call("serve", f"tiny@{version.version}", "--port", "0").fails(3, "is refused by its gate")


def test_a_refused_run_goes_on_by_a_request_and_an_approval(
    world: World, refused: tuple[Done, RunFolder], tmp_path: Path
) -> None:
    pytest.importorskip("cryptography")
    run = world.copy(tmp_path / "runs", refused[1])
    lines = [world.call("keys", "new", name, "--json").succeeds().document["line"] for name in ("ana", "bob")]
    (tmp_path / "runs" / "approvers.txt").write_text("\n".join(lines) + "\n")
    asked = world.call("gate", run.path, "--request", "no other one is there", "--key", "ana", "--json")
    assert asked.code == 4
    assert asked.document["standing"]["state"] == "waiting"
    assert "error: the gate refused" in asked.err
    for verb in ("gate", "run"):
        again = world.call(verb, run.path)
        assert (again.code, "waits for an approval" in again.err) == (4, True)
    world.call("gate", run.path, "--approve", "--key", "ana").fails(2, "who asked for this approval")
    (tmp_path / "asked.csv").write_text("text\nmy cello is late\n")
    world.luthier("predict", run.path, tmp_path / "asked.csv", "-o", tmp_path / "said").succeeds()  # asks no gate
    before = sha256_files(run.path / "train")
    world.call("gate", run.path, "--approve", "--key", "bob").succeeds()
    for verb in ("gate", "run", "report"):
        assert "bob (SHA256:" in world.call(verb, run.path).succeeds().out
    assert sha256_files(run.path / "train") == before
    world.call("audit", "verify", "--out", tmp_path / "runs").succeeds()


def test_promote_and_rollback_move_an_alias(world: World, resampled: tuple[Done, RunFolder]) -> None:
    world.call("registry", "promote", "tiny@1").succeeds()
    other = resampled[1]
    versions = Registry(world.out / "registry.sqlite").versions("tiny")
    number = next(one.version for one in versions if Path(one.run).resolve() == other.path.resolve())
    said = world.call("registry", "promote", f"tiny@{number}").succeeds()
    assert said.out == f"tiny@production is now version {number}\n"
    listed = {one["version"]: one for one in world.call("registry", "ls", "--json").document}
    assert listed[number]["aliases"] == ["production"]
    assert listed[1]["aliases"] == []
    assert listed[1]["gate_passed"] is True
    assert world.call("registry", "rollback", "tiny").succeeds().out == "tiny@production is again version 1\n"
    world.call("registry", "rollback", "tiny").fails(2, "no other version held it before")
    actions = [(entry.action, entry.subject) for entry in AuditLog(world.out / "audit.jsonl").entries()]
    assert ("gate", "tiny@1") in actions
    assert actions[-3:] == [("promote", "tiny@1"), ("promote", f"tiny@{number}"), ("rollback", "tiny@1")]


def test_audit_verify_finds_an_edited_line(world: World, tmp_path: Path) -> None:
    world.copy(tmp_path / "runs")
    world.call("audit", "verify", "--out", tmp_path / "runs").succeeds()
    log = tmp_path / "runs" / "audit.jsonl"
    log.write_text(log.read_text().replace('"passed": true', '"passed": false', 1))
    done = world.call("audit", "verify", "--out", tmp_path / "runs", "--json")
    assert done.code == 2
    assert done.document["first_broken"] == 1
    assert "entry 1 is broken" in done.err
    world.call("gate", tmp_path / "runs" / "tiny" / world.run.id).succeeds()  # nothing new to be noted


@pytest.mark.parametrize("what", ["passed", "seal"])
def test_an_edited_decision_is_not_believed(
    world: World, refused: tuple[Done, RunFolder], tmp_path: Path, what: str
) -> None:
    run = world.copy(tmp_path / "runs", refused[1])
    gate = json.loads(run.gate.read_text())
    gate["passed"] = True
    for line in gate["lines"]:
        line["passed"] = True
    if what == "seal":  # even one who knows how seals are made
        gate = sealed(GateDecision.model_validate(gate), approvers_sha256="", signed_by="").model_dump(mode="json")
        assert verify_seal(GateDecision.model_validate(gate))
    run.gate.write_text(json.dumps(gate))
    problem = "was edited after it was sealed" if what == "passed" else "is not the decision that was registered"
    world.call("serve", run.path, "--port", "0").fails(2, "gate.json", problem, "luthier gate")
    assert world.call("gate", run.path).code == 3
    world.call("serve", run.path, "--port", "0").fails(3, "is refused by its gate")


# --- asking: evaluation, predict and the server say the same ---


@pytest.fixture(scope="module")
def judged(world: World) -> dict[int, dict[str, Any]]:
    """What the evaluation stored of the tuned model, by line of messages.csv."""
    lines = map(json.loads, (world.run.eval / "predictions.jsonl").read_text().splitlines())
    return {
        one["line"]: {"label": one["predicted"]["tuned"], "probabilities": one["probabilities"]["tuned"]}
        for one in lines
    }


def test_predict_says_what_the_evaluation_said_and_names_faulty_rows(world: World, judged: Any, tmp_path: Path) -> None:
    rows = (world.folder / "messages.csv").read_text().splitlines()
    faulty = ['c1,"too", many, cells,here', "c1,é é nul \0 here,late", f"c1,{'x' * 900},late", "c1,\udcff,late"]
    text = "\n".join([*rows, *faulty]) + "\n"
    (tmp_path / "asked.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    done = world.luthier("predict", world.run.path, tmp_path / "asked.csv", "--json").succeeds()
    assert done.document == {"output": str(tmp_path / "asked.csv.predictions.jsonl"), "answered": 120, "faults": 4}
    said = [json.loads(line) for line in (tmp_path / "asked.csv.predictions.jsonl").read_text().splitlines()]
    assert [one["line"] for one in said] == list(range(2, len(rows) + len(faulty) + 1))
    by_line = {one["line"]: {key: one[key] for key in ("label", "probabilities")} for one in said if "label" in one}
    assert {line: by_line[line] for line in judged} == judged
    assert [one["error"] for one in said if "error" in one] == [
        "wrong_cell_count",
        "nul_character",
        "cannot_be_asked",
        "undecodable",
    ]
    assert "max_length" in said[-2]["detail"]


@pytest.fixture
def _torch_as_it_was() -> Iterator[None]:
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.usefixtures("_torch_as_it_was")
def test_predict_reads_json_lines_by_name_from_the_registry(world: World, judged: Any, tmp_path: Path) -> None:
    with (world.folder / "messages.csv").open(newline="") as file:
        rows = [{"text": row["text"], "unused": [1, None]} for row in csv.DictReader(file)]
    lines = [json.dumps(row) for row in rows] + ["{broken", "[1]", '{"other": 1}']
    (tmp_path / "asked.jsonl").write_text("\n".join(lines) + "\n")
    done = world.call("predict", "tiny@1", tmp_path / "asked.jsonl", "-o", tmp_path / "said.jsonl").succeeds()
    assert done.out == f"{tmp_path / 'said.jsonl'}: 120 answered, 3 faulty rows\n"
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert {line: said[line - 2]["label"] for line in judged} == {line: one["label"] for line, one in judged.items()}
    assert [one["error"] for one in said[120:]] == ["invalid_json", "not_an_object", "cannot_be_asked"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["is empty"]),
        ("text,kind\n", ["header and no rows"]),
        ("txt,kind\nhello,late\n", ["'text'", "did you mean 'txt'"]),
        (None, ["does not exist"]),
    ],
)
def test_predict_refuses_a_file_that_cannot_be_asked(
    world: World, tmp_path: Path, content: str | None, words: list[str]
) -> None:
    if content is not None:
        (tmp_path / "asked.csv").write_text(content)
    world.call("predict", world.run.path, tmp_path / "asked.csv").fails(2, "asked.csv", *words)
    assert not (tmp_path / "asked.csv.predictions.jsonl").exists()


@contextmanager
def serving(world: World, *arguments: str | Path) -> Iterator[str]:
    """The address of a `luthier serve` of its own; ended by SIGTERM, which must be clean."""
    server = subprocess.Popen(
        [*COMMAND, "serve", *map(str, arguments), "--port", "0"],
        cwd=world.folder,
        text=True,
        env=environment(LUTHIER_HOME=str(world.folder / "home")),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stderr is not None
    said: list[str] = []
    try:
        for line in server.stderr:
            said.append(line)
            if match := re.search(r"serving \S+ on (http://\S+)", line):
                yield match[1]
                break
        else:
            pytest.fail(f"the server ended: {said}")
        server.send_signal(signal.SIGTERM)
        out, err = server.communicate(timeout=30)
        assert (server.returncode, out, "Traceback" in err) == (0, "", False), err
    finally:
        server.kill()
        server.wait()


def test_the_server_says_what_the_evaluation_said(world: World, judged: Any, refused: tuple[Done, RunFolder]) -> None:
    """Of a version that was refused and has the same weights: one start shows what is written about that too."""
    with (world.folder / "messages.csv").open(newline="") as file:
        texts = {line: row["text"] for line, row in enumerate(csv.DictReader(file), start=2)}
    log = AuditLog(world.out / "audit.jsonl")
    before, gate = len(log.entries()), GateDecision.read(refused[1].gate)
    name = next(
        f"tiny@{one.version}"
        for one in Registry(world.out / "registry.sqlite").versions()
        if one.gate_seal == gate.seal
    )
    with (
        serving(world, name, "--allow-refused") as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        assert [model.id for model in client.models.list()] == [name]
        assert httpx.get(f"{address}/health").json() == {"status": "ok", "model": name}
        for line, expected in judged.items():
            completion = client.chat.completions.create(model=name, messages=[{"role": "user", "content": texts[line]}])
            assert completion.choices[0].message.content == expected["label"]
        answer = httpx.post(
            f"{address}/v1/classify", json={"input": [texts[line] for line in judged]}, timeout=60
        ).json()
        assert [{key: one[key] for key in ("label", "probabilities")} for one in answer["data"]] == list(
            judged.values()
        )
        with pytest.raises(openai.BadRequestError, match="max_length"):
            client.chat.completions.create(model=name, messages=[{"role": "user", "content": "x" * 2000}])
    entries = log.entries()[before:]
    assert [(entry.action, entry.subject) for entry in entries] == [("serve_refused", name), ("serve", name)]
    assert entries[0].details["seal"] == gate.seal
    assert "kind.accuracy" in entries[0].details["lines"]
    assert log.verify().first_broken is None


class Recorder:
    """An engine that keeps the ids it is asked with and finds every answer equally likely."""

    name = "recorder"

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def score(self, prompt_ids: Sequence[int], answers: Sequence[Sequence[int]]) -> list[Score]:
        self.asked.append(list(prompt_ids))
        return [Score(-1.0, False) for _ in answers]

    def generate(self, prompt_ids: Sequence[int], *, max_new_tokens: int, stop_ids: Sequence[int]) -> list[int]:
        self.asked.append(list(prompt_ids))
        return [5]

    def each(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return map(function, items)


def test_the_same_text_becomes_the_same_ids_wherever_it_is_asked(world: World, tmp_path: Path) -> None:
    from starlette.testclient import TestClient
    from transformers import AutoTokenizer

    from luthier.evals.score import score
    from luthier.pipeline.answers import predict
    from luthier.pipeline.named import Named, opened
    from luthier.pipeline.progress import Progress
    from luthier.serve.app import create_app

    run, contract = world.run, RequestContract.read(world.run.contract)
    examples = [*Shard(run.data / "test.arrow"), *Shard(run.data / "train.arrow")]
    with (world.folder / "messages.csv").open(newline="") as file:
        raw = {line: row["text"] for line, row in enumerate(csv.DictReader(file), start=2)}
    asked_by: dict[str, list[list[int]]] = {"the shards": [example.prompt_ids for example in examples]}

    def recorded(where: str, ask: Callable[[Asker], object]) -> None:
        recorder = Recorder()
        ask(Asker(contract, Renderer.open(run.contract, world.model / "tokenizer.json"), recorder))  # type: ignore[arg-type]
        asked_by[where] = recorder.asked

    def by_file(asker: Asker) -> None:
        (tmp_path / "f.jsonl").write_text("".join(json.dumps({"text": raw[one.line]}) + "\n" for one in examples))
        predict(
            asker,
            opened(Named(str(tmp_path / "f.jsonl")), offline=True),
            output=tmp_path / "o.jsonl",
            progress=Progress(),
        )

    def by_server(asker: Asker) -> None:
        client = TestClient(create_app({"t": asker}, model_id="m"), base_url="http://127.0.0.1")
        assert client.post("/v1/classify", json={"input": [raw[one.line] for one in examples]}).status_code == 200

    def by_chat(asker: Asker) -> None:
        client = TestClient(create_app({"t": asker}, model_id="m"), base_url="http://127.0.0.1")
        for one in examples:
            body = {"model": "m", "messages": [{"role": "user", "content": raw[one.line]}]}
            assert client.post("/v1/chat/completions", json=body).status_code == 200

    recorded("the evaluation", lambda asker: score(asker, examples, tick=lambda done, total: None))
    recorded("predict", by_file)
    recorded("the server", by_server)
    recorded("a chat with the server", by_chat)
    for form in ("adapter", "merged"):
        tokenizer = AutoTokenizer.from_pretrained(run.artifacts / form)
        asked_by[f"transformers on {form}"] = [
            list(
                tokenizer.apply_chat_template(
                    [{"role": "system", "content": contract.system}, {"role": "user", "content": one.text}],
                    tokenize=True,
                    add_generation_prompt=True,
                    return_dict=False,
                )
            )
            for one in examples
        ]
    asked_by["the evaluation"] = asked_by["the evaluation"][:: len(asked_by["the evaluation"]) // len(examples)]
    for where, asked in asked_by.items():
        assert asked == asked_by["the shards"], where
