"""A tuned run teaches another one, named by version or by folder; killed while it learns it ends in the same bits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from test_kill import Bench, interrupt, pytestmark, saved

from command import luthier
from luthier.data.dedupe import text_key
from luthier.data.learned_before import REASON
from luthier.data.shards import Shard
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.files import sha256_files
from luthier.store.registry import registry_of
from luthier.store.runs import RunFolder
from luthier.train_records import TrainResult
from tiny import write_model, write_recipe

__all__ = ["pytestmark"]

SPLITS = ("train", "validation")
BY_FOLDER = ("--set", "method.teacher=whole/tiny")


class Learning(Bench):
    """Of a student, whose run is called after what its teacher is called by."""

    def run(self, out: str) -> Path:
        found = list((self.folder / out / "student").glob("[0-9a-f]*"))
        return found[0] if found else self.folder / out / "none"


def command(verb: str, *given: str, folder: Path) -> str:
    return luthier(verb, *given, cwd=folder, LUTHIER_HOME=str(folder / "home")).decides().err


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Learning:
    """A teacher of all layers, and a student of the upper one, whose frozen layer is kept on disk."""
    folder = tmp_path_factory.mktemp("taught")
    path = write_recipe(folder, write_model(folder / "model"), batch_size=4, save_steps=2, validations=2)
    recipe = yaml.safe_load(path.read_text())
    recipe["export"] = ["adapter"]
    recipe["data"]["limit"] = {"train": 60}
    recipe["data"]["split"]["seed"] = 1  # other rows than the student's are tested
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    command("run", "tiny.yaml", "--out", "whole", folder=folder)
    recipe["name"] = "student"
    recipe["method"] = {"type": "distill", "teacher": "tiny@1", "temperature": 2.0}
    recipe["adapter"] = {"type": "lora", "r": 2, "layers_to_transform": [1]}
    recipe["data"]["split"]["seed"] = 0
    (folder / "student.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    said = command("run", "student.yaml", "--out", "whole", folder=folder)
    assert re.search(r"kind: \d+ test rows were met by tiny/\w+ kind; they do not count", said)
    return Learning(folder, RunFolder.open("student", out=folder / "whole"), ("train", "student.yaml", *BY_FOLDER))


def test_the_records_of_a_taught_version_name_its_teacher(bench: Learning) -> None:
    teacher = ResolvedRecipe.read(bench.whole.resolved).teacher
    assert teacher is not None
    assert teacher.named == "tiny@1"
    learned = TrainResult.read(RunFolder.open("tiny", out=bench.folder / "whole").train_result)
    assert teacher.tuned_sha256 == learned.weights_sha256
    nodes = {node["node"]: node for node in json.loads(bench.whole.lineage.read_text())["nodes"]}
    assert nodes["teacher"]["sha256"] == teacher.sha256
    assert "teacher" in nodes["trained weights"]["made_from"]
    lines = {one["line"]: one for one in json.loads(bench.whole.gate.read_text())["lines"]}
    assert lines["license of the teacher"]["passed"]
    card = bench.whole.card.read_text()
    tuned = f"tuned from `{teacher.shape.name}`, {teacher.sha256[:12]}"
    assert f"It was taught by `tiny@1` ({tuned}; alpha 0.5, temperature 2, divergence forward_kl)." in card
    assert registry_of(bench.folder / "whole").get("student@1").name == "student"


def test_rows_that_only_the_teacher_has_learned_do_not_count(bench: Learning) -> None:
    report = json.loads(bench.whole.data_report.read_text())
    other = json.loads((RunFolder.open("tiny", out=bench.folder / "whole").data_report).read_text())
    assert report["splits"]["test"]["contaminated"] > other["splits"]["test"]["contaminated"]
    items = json.loads(bench.whole.eval_report.read_text())["num_items"]
    assert items == report["splits"]["test"]["rows"] - report["splits"]["test"]["contaminated"] > 0
    teacher = RunFolder.open("tiny", out=bench.folder / "whole")
    learned, chosen = ({text_key(row.text) for row in Shard(teacher.data / f"{split}.arrow")} for split in SPLITS)
    for row in Shard(bench.whole.data / "test.arrow"):
        assert row.contaminated or text_key(row.text) not in learned | chosen
    assert not any(text_key(row.text) in learned for row in Shard(bench.whole.data / "validation.arrow"))
    assert report["dropped"][REASON] > 0


def test_killed_while_it_learns_it_ends_in_the_same_bits_whatever_its_teacher_is_called(bench: Learning) -> None:
    interrupt(bench, "killed", saved(3), "child")
    command("train", "student.yaml", "--out", "killed", *BY_FOLDER, folder=bench.folder)
    run = RunFolder.open("student", out=bench.folder / "killed")
    assert TrainResult.read(run.train_result).resumed_from
    assert sha256_files(run.train / "adapter") == sha256_files(bench.whole.train / "adapter")
    teachers = [ResolvedRecipe.read(one.resolved).teacher for one in (run, bench.whole)]
    assert len({teacher.sha256 for teacher in teachers if teacher is not None}) == 1
