"""A teacher is found by name, held to the student's vocabulary, and known for what it has learned."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import samples
import yaml

from command import call, paper_model
from luthier.data.shards import Example, Shard, write_shard
from luthier.errors import RecipeError
from luthier.models.shape import read_shape
from luthier.models.source import ModelSource
from luthier.pipeline.bases import model_source
from luthier.pipeline.order import STAGES
from luthier.pipeline.taught import open_teacher
from luthier.pipeline.teacher import (
    find_teacher,
    refuse_other_vocabulary,
    refuse_short_teacher,
    taught_texts,
    vocabulary_sha256,
)
from luthier.plan.make import make_plan
from luthier.records import Teacher
from luthier.spec.filler import Machine
from luthier.spec.load import LoadedRecipe, load_recipe
from luthier.spec.resolve import ResolvedRecipe, resolve
from luthier.store.registry import registry_of
from luthier.store.runs import RunFolder
from tiny import llama, write_messages, write_model


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))


def recipe(folder: Path, teacher: str, **method: Any) -> Path:
    paper_model(folder / "model")
    write_messages(folder / "messages.csv", rows=60)
    tree = {
        "name": "student",
        "model": {"name": "model"},
        "data": {
            "train": [
                {"name": "kind", "path": "messages.csv", "task": "generation", "input": "{text}", "label": "kind"}
            ]
        },
        "method": {"type": "distill", "teacher": teacher, **method},
        "train": {"max_length": 64},
    }
    (folder / "r.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return folder / "r.yaml"


def finished(folder: Path, name: str = "wise", *, method: str = "sft") -> RunFolder:
    """A run whose training has ended: an adapter of a tiny model, and three learned rows."""
    import test_train_loop

    from luthier.models.adapters import save_adapter

    base = folder / "base"
    if not base.exists():
        write_model(base, seed=0)
    run = RunFolder.create(folder / "runs", name, "0123")
    resolved = samples.resolved()
    resolved = resolved.model_copy(
        update={"recipe": resolved.recipe.model_copy(update={"method": samples.recipe(method={"type": method}).method})}
    )
    run.resolved.write_text(resolved.to_json())
    run.shape.write_text(read_shape(ModelSource("base", "folder", base)).to_json())
    run.tuned.mkdir(parents=True)
    save_adapter(test_train_loop.fresh(), run.tuned)
    from luthier.store.files import sha256_file

    result = samples.train_result().model_copy(
        update={"weights_sha256": sha256_file(run.tuned / "adapter_model.safetensors")}
    )
    run.train_result.write_text(result.to_json())
    run.data.mkdir()
    rows = [Example(n, f"g{n}", text, "a", 2, [1, 5, 2], [False, False, True]) for n, text in enumerate("abc")]
    write_shard(run.data / "train.arrow", rows)
    registry_of(folder / "runs").register(
        name, run.path, gate_passed=True, gate_seal="s", weights_sha256=result.weights_sha256
    )
    return run


def found(path: Path, out: Path) -> Teacher:
    teacher = find_teacher(load_recipe(path), out=out, offline=True, say=print)
    assert teacher is not None
    return teacher


def test_a_run_is_found_by_version_by_name_and_by_folder_and_opened_with_what_it_learned(tmp_path: Path) -> None:
    run, out = finished(tmp_path), tmp_path / "runs"
    teachers = [found(recipe(tmp_path, name), out) for name in ("wise@1", "wise/0123", "wise", str(run.path))]
    assert len({teacher.sha256 for teacher in teachers}) == 1
    assert all(Path(teacher.tuned) == run.tuned for teacher in teachers)
    model = open_teacher(teachers[0], llama(), bf16=False)
    assert any("lora_A" in name for name, _ in model.named_parameters())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training
    assert taught_texts(teachers[0]) == frozenset("abc")
    plain = found(recipe(tmp_path, "base"), out)
    assert (plain.tuned, taught_texts(plain)) == ("", frozenset())
    assert plain.sha256 != teachers[0].sha256


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda run: run.train_result.unlink(), "has not finished training"),
        (lambda run: (run.tuned / "adapter_model.safetensors").write_bytes(b"x"), "were changed since training"),
        (lambda run: shutil.rmtree(run.path.parents[2] / "base"), "is no longer at"),
    ],
    ids=["unfinished", "changed", "no base"],
)
def test_a_run_that_cannot_teach_is_refused_by_line(tmp_path: Path, break_it: Any, words: str) -> None:
    break_it(finished(tmp_path))
    with pytest.raises(RecipeError, match=rf"r\.yaml:\d+: method\.teacher 'wise@1': .*{words}"):
        found(recipe(tmp_path, "wise@1"), tmp_path / "runs")


def test_what_is_no_teacher_is_refused_by_line_with_the_ways_to_name_one(tmp_path: Path) -> None:
    finished(tmp_path, "headed", method="classify")
    out = tmp_path / "runs"
    for named, words in (
        ("headed@1", "a classification head"),
        ("nobody@1", "has no nobody|nobody"),
        ("nothing", "method.teacher 'nothing' is neither a bundled name"),
        ("owner/none", "cannot be had offline"),
    ):
        with pytest.raises(RecipeError, match=words) as caught:
            found(recipe(tmp_path, named), out)
        assert "r.yaml:" in caught.value.what
        assert "a run is NAME@1, NAME/ID or its folder" in caught.value.way_out


def test_weights_that_changed_after_the_plan_are_refused(tmp_path: Path) -> None:
    run = finished(tmp_path)
    teacher = found(recipe(tmp_path, "wise@1"), tmp_path / "runs")
    config = run.tuned / "adapter_config.json"
    before = config.read_text()
    config.write_text(before.replace('"lora_alpha"', '"lora_alpha_was"'))
    assert config.read_text() != before
    with pytest.raises(RecipeError, match=r"adapter_config\.json in .* are gone or have changed"):
        open_teacher(teacher, llama(), bf16=False)
    assert found(recipe(tmp_path, "wise@1"), tmp_path / "runs").sha256 != teacher.sha256
    config.write_text(before)
    (run.tuned / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(RecipeError, match="are gone or have changed"):
        open_teacher(teacher, llama(), bf16=False)
    (run.data / "train.arrow").unlink()
    with pytest.raises(RecipeError, match=r"train\.arrow is gone"):
        taught_texts(teacher)


def other_words(folder: Path) -> Path:
    """A model like the other one with two tokens exchanged."""
    paper_model(folder)
    tree = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tree["model"]["vocab"]
    one, other = list(vocabulary)[100:102]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(tree), encoding="utf-8")
    return folder


def test_another_vocabulary_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    other_words(tmp_path / "stranger")
    recipe(tmp_path, "stranger")
    done = call("run", "r.yaml", "--out", "runs", cwd=tmp_path, LUTHIER_HOME=str(tmp_path / "home"))
    done.fails(2, "method.teacher 'stranger' has another vocabulary than the model", "the same tokens")
    assert not (tmp_path / "runs").exists()


def test_how_a_text_is_cut_does_not_count_but_every_token_does(tmp_path: Path) -> None:
    same, other = paper_model(tmp_path / "same"), other_words(tmp_path / "other")
    again = paper_model(tmp_path / "again")
    tree = json.loads((again / "tokenizer.json").read_text(encoding="utf-8"))
    tree["model"]["merges"] = tree["model"]["merges"][1:]
    (again / "tokenizer.json").write_text(json.dumps(tree), encoding="utf-8")
    assert vocabulary_sha256(again) == vocabulary_sha256(same) != vocabulary_sha256(other)
    shapes = [read_shape(ModelSource(path.name, "folder", path)) for path in (same, other)]
    with pytest.raises(RecipeError, match="'other' has another vocabulary"):
        refuse_other_vocabulary(shapes[0], Teacher(named="other", shape=shapes[1]))
    refuse_other_vocabulary(shapes[0], Teacher(named="same", shape=shapes[0]))
    assert model_source(shapes[0]).path == same


def planned(teacher: Teacher | None, method: dict[str, Any], **sections: Any) -> tuple[ResolvedRecipe, Any]:
    loaded = LoadedRecipe(samples.recipe(method=method, **sections), Path("r.yaml"), "", ())
    profile, shape = samples.profile(), samples.shape()
    resolved = resolve(loaded, profile, shape, machine=Machine(threads=1), data_sha256={}, luthier_version="0")
    resolved = resolved.model_copy(update={"teacher": teacher})
    return resolved, make_plan(resolved, profile, shape, matmul_gflops=50.0)


def test_the_plan_counts_the_teachers_pass_and_its_weights() -> None:
    big = samples.shape().model_copy(update={"sha256": "big", "num_parameters": 2 * samples.shape().num_parameters})
    other = Teacher(named="big", shape=big)
    same = Teacher(named="same@1", shape=samples.shape(), tuned="/somewhere", tuned_sha256="t")
    _, plain = planned(None, {"type": "sft"})
    taught, plan = planned(other, {"type": "distill", "teacher": "big"})
    _, of_same = planned(same, {"type": "distill", "teacher": "same@1"})
    assert plan.prediction.train_seconds > 1.2 * plain.prediction.train_seconds
    weights = big.num_parameters * 4 / 2**30
    more = plan.prediction.train_memory_gib - of_same.prediction.train_memory_gib
    assert more == pytest.approx(weights, rel=0.05)
    (own,) = [one for one in plan.candidates if one.technique == plan.chosen]
    assert own.why == "a teacher says more of each token than the answer alone"
    assert "from what big finds likely there" in own.speaks_for
    assert "license" in own.speaks_against
    moved = taught.model_copy(
        update={"teacher": other.model_copy(update={"shape": big.model_copy(update={"path": "x"})})}
    )
    assert moved.sha256 == taught.sha256
    assert taught.model_copy(update={"teacher": same}).sha256 != taught.sha256
    with pytest.raises(RecipeError, match="positions of the teacher 'big'"):
        refuse_short_teacher(
            taught.model_copy(
                update={"teacher": Teacher(named="big", shape=big.model_copy(update={"max_positions": 9}))}
            )
        )


def test_another_teacher_makes_stages_run_again(tmp_path: Path) -> None:
    resolved, _ = planned(Teacher(named="t", shape=samples.shape()), {"type": "distill", "teacher": "t"})
    other = resolved.model_copy(
        update={"teacher": Teacher(named="t", shape=samples.shape(), tuned="x", tuned_sha256="y")}
    )
    run = RunFolder(tmp_path)
    for name in ("base", "prepare"):
        assert STAGES[name].inputs(run, resolved) != STAGES[name].inputs(run, other)


def test_rows_that_the_teacher_learned_do_not_count(tmp_path: Path) -> None:
    from luthier.data.across import mark_seen
    from luthier.data_report import DataReport

    run = finished(tmp_path)
    rows = [replace(row, text=text) for row, text in zip(Shard(run.data / "train.arrow"), "axb", strict=True)]
    write_shard(run.data / "test.arrow", rows)
    report = samples.data_report()
    run.data_report.write_text(report.to_json())
    teacher = found(recipe(tmp_path, "wise@1"), tmp_path / "runs")
    assert mark_seen(run.data, taught_texts(teacher)) == 2
    assert [row.contaminated for row in Shard(run.data / "test.arrow")] == ["exact", "", "exact"]
    told = DataReport.read(run.data_report).splits["test"]
    assert told.contaminated == report.splits["test"].contaminated + 2
    assert mark_seen(run.data, taught_texts(teacher)) == 0
