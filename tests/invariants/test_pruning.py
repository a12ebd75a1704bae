"""A base pruned and healed by its whole self, as a user would run it: judged, exported, asked; what is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from test_kill import pytestmark
from transformers import AutoModelForCausalLM

from command import Done, call, luthier
from luthier.eval_records import EvalReport
from luthier.govern.lineage import Lineage
from luthier.models.shape import read_shape
from luthier.models.source import ModelSource
from luthier.prune_records import PruneResult
from luthier.records import GateDecision
from luthier.store.runs import RunFolder
from luthier.train_records import TrainResult
from tiny import write_model, write_recipe

__all__ = ["pytestmark"]

SECTION = {"layers": {"remove": 1}, "mlp": {"keep": 0.5, "by": "taylor"}, "heads": {"keep": 0.5}, "tokens": 512}


@dataclass(frozen=True)
class World:
    folder: Path
    done: Done

    @property
    def run(self) -> RunFolder:
        return RunFolder.open("tiny", out=self.folder / "out")

    def call(self, *arguments: str | Path) -> Done:
        return call(*arguments, cwd=self.folder, LUTHIER_HOME=str(self.folder / "home"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A pruned base that learns from the whole one; and the same pruned for a head, of which all weights learn."""
    folder = tmp_path_factory.mktemp("pruning")
    path = write_recipe(folder, write_model(folder / "model", num_hidden_layers=4), num_train_epochs=1)
    tree: dict[str, Any] = yaml.safe_load(path.read_text())
    tree |= {
        "prune": SECTION,
        "export": ["merged", "gguf_f32"],
        "method": {"type": "distill", "teacher": str(folder / "model")},
    }
    tree["evaluate"] = {"resamples": 200, "baselines": ["base"]}
    path.write_text(yaml.safe_dump(tree))
    head = {**tree, "method": {"type": "classify"}, "adapter": {"type": "full"}, "name": "head", "export": ["merged"]}
    (folder / "head.yaml").write_text(yaml.safe_dump(head))
    done = luthier("run", "tiny.yaml", "--out", "out", "--json", cwd=folder, LUTHIER_HOME=str(folder / "home"))
    assert done.code in (0, 3), done  # the gate decides by what so few rows prove
    return World(folder, done)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=torch.arange(3, 40).view(1, -1)).logits
    return found


def test_the_export_is_a_plain_smaller_model_that_says_what_learned(world: World) -> None:
    run, plain = world.run, AutoModelForCausalLM.from_pretrained
    merged: Any = plain(run.artifacts / "merged")
    config = merged.config
    assert (config.num_hidden_layers, config.intermediate_size) == (3, 32)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 8)
    learned = PeftModel.from_pretrained(plain(run.pruned_model), str(run.tuned))
    assert torch.allclose(logits(merged), logits(learned), atol=1e-5)
    ids = torch.arange(3, 20).view(1, -1)
    given = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    assert merged.generate(ids, **given).tolist() == merged.generate(ids, use_cache=False, **given).tolist()
    parity = [line for line in GateDecision.read(run.gate).lines if line.kind == "parity"]
    assert parity
    assert all(line.passed for line in parity)


def test_what_went_is_told_with_its_scores(world: World) -> None:
    run = world.run
    told = PruneResult.read(run.pruned_result)
    document = json.loads(world.done.out)
    assert document["pruned"] == told.model_dump(mode="json")
    assert told.layers is not None
    assert len(told.layers.scores) == 4
    assert told.layers.removed[0] == min(range(4), key=told.layers.scores.__getitem__)
    scores = load_file(run.pruned / "scores.safetensors")
    stays = [layer for layer in range(4) if layer not in told.layers.removed]
    assert sorted(scores) == sorted(
        f"{part}.{what}.{layer}" for part in ("mlp", "heads") for what in ("scores", "kept") for layer in stays
    )
    for layer in stays:
        score, kept = scores[f"mlp.scores.{layer}"], scores[f"mlp.kept.{layer}"].tolist()
        assert len(kept) == 32
        assert score[kept].min() >= max(float(score[j]) for j in range(64) if j not in kept)
    whole, left = (
        sum(one.numel() for one in AutoModelForCausalLM.from_pretrained(place).parameters())
        for place in (world.folder / "model", run.pruned_model)
    )
    assert (told.parameters_before, told.parameters_after) == (whole, left)
    assert read_shape(ModelSource("m", "folder", run.pruned_model)).num_parameters == left
    for text in (run.card.read_text(), run.report.read_text()):
        assert told.words in text.replace("&#39;", "'")
    assert (
        "pruned before that to 3 layers, 32 feed-forward channels and 2 heads a layer"
        in (run.artifacts / "merged" / "README.md").read_text()
    )


def test_the_original_is_the_base_of_every_comparison(world: World) -> None:
    report = EvalReport.read(world.run.eval_report)
    assert [one.system for one in report.systems][-3:] == ["base", "pruned", "tuned"]
    points = {one.system: one.metrics["perplexity"].point for one in report.systems if "perplexity" in one.metrics}
    assert len(set(points.values())) == 3
    assert {"base", "pruned"} <= {one.against for one in report.differences}
    graph = {one.node: one for one in Lineage.model_validate_json(world.run.lineage.read_bytes()).nodes}
    told = PruneResult.read(world.run.pruned_result)
    assert graph["pruned/model"].sha256 == told.weights_sha256
    assert "data/train.arrow" in graph["pruned/model"].made_from
    assert "data/test.arrow" not in graph["pruned/model"].made_from
    assert "pruned/model" in graph["trained weights"].made_from


def test_the_same_command_does_nothing_again(world: World) -> None:
    again = world.call("run", "tiny.yaml", "--out", "out")
    assert again.err.count("unchanged, not run again") == 6


def test_a_head_heals_it_too_with_all_weights(world: World) -> None:
    world.call("train", "head.yaml", "--out", "out").succeeds()
    run = RunFolder.open("head", out=world.folder / "out")
    world.call("evaluate", run.path).succeeds()
    assert run.tuned.name == "model"
    result, told = TrainResult.read(run.train_result), PruneResult.read(run.pruned_result)
    assert result.trainable_parameters == told.parameters_after + 3 * 32
    systems = {one.system: one.metrics for one in EvalReport.read(run.eval_report).systems}
    assert "log_loss" in systems["pruned"], "it has no head, and is asked in words as the base is"
    (world.folder / "asked.csv").write_text("text\nmy cello is late\n")
    world.call("predict", run.path, "asked.csv", "--output", "said.jsonl").succeeds()
    assert len((world.folder / "said.jsonl").read_text().splitlines()) == 1


def test_a_pruned_base_that_is_gone_is_missed_by_name(world: World) -> None:
    (world.folder / "asked.csv").write_text("text\nmy cello is late\n")
    kept = world.run.pruned_model.rename(world.run.pruned / "elsewhere")
    try:
        world.call("predict", world.run.path, "asked.csv", "--output", "said.jsonl").fails(
            2, "the pruned base", "train"
        )
    finally:
        kept.rename(world.run.pruned_model)
    world.call("predict", world.run.path, "asked.csv", "--output", "said.jsonl").succeeds()


def test_a_pruned_run_neither_teaches_nor_is_merged_but_by_its_export(world: World) -> None:
    tree: dict[str, Any] = yaml.safe_load((world.folder / "tiny.yaml").read_text())
    kept = {key: tree[key] for key in ("name", "objective", "data", "model", "train")}
    for name, more in {
        "taught": {"method": {"type": "distill", "teacher": str(world.run.path)}},
        "merged": {"merge": {"runs": [str(world.run.path)]}, "train": {"max_length": 128}},
    }.items():
        (world.folder / f"{name}.yaml").write_text(yaml.safe_dump({**kept, "name": name, **more}))
        world.call("plan", f"{name}.yaml", "--out", "out").fails(2, "that was pruned (prune)", "merged")
    student = {**kept, "name": "again", "model": {"name": str(world.run.artifacts / "merged")}}
    (world.folder / "again.yaml").write_text(yaml.safe_dump({**student, "prune": {"layers": {"remove": 1}}}))
    document = json.loads(world.call("plan", "again.yaml", "--out", "out", "--json").succeeds().out)
    assert any(note.startswith("prune: 1 of 3 layers") for note in document["notes"])


def test_another_seed_learns_on_what_was_left_for_the_first(world: World) -> None:
    home = {"LUTHIER_HOME": str(world.folder / "home")}
    done = luthier("train", "tiny.yaml", "--set", "train.seed=9", "--out", "out", cwd=world.folder, **home).succeeds()
    assert "prune: the same work was done by run" in done.err
