"""Two trained runs merged into a third, as a user would: judged beside both, exported, asked; what is refused."""

from __future__ import annotations

import json
import re
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
from luthier.data.dedupe import text_key
from luthier.data.learned_before import REASON
from luthier.data.shards import Shard
from luthier.data_report import DataReport
from luthier.errors import RunError
from luthier.eval_records import EvalReport
from luthier.govern.lineage import Lineage
from luthier.pipeline.behind import learned_folders
from luthier.pipeline.parents import describe, refuse_other_contract, tuned_of
from luthier.records import GateDecision, RequestContract
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.files import sha256_file
from luthier.store.runs import RunFolder
from luthier.train_records import TrainResult
from tiny import write_model, write_recipe

__all__ = ["pytestmark"]

PAGE = (Path(__file__).parents[2] / "docs" / "merging.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class World:
    """A folder with runs half-a and half-b, which split one file in two ways, and their merge, as the page shows it."""

    folder: Path
    merged: Done

    def run(self, name: str) -> RunFolder:
        return RunFolder.open(name, out=self.folder / "runs")

    def luthier(self, *arguments: str | Path) -> Done:
        return luthier(*arguments, cwd=self.folder, LUTHIER_HOME=str(self.folder / "home"))

    def call(self, *arguments: str | Path) -> Done:
        return call(*arguments, cwd=self.folder, LUTHIER_HOME=str(self.folder / "home"))


def merging(name: str, tree: dict[str, Any], **merge: Any) -> dict[str, Any]:
    """The recipe of a merge over the rows of `tree`."""
    kept = {key: value for key, value in tree.items() if key not in ("train", "adapter", "method")}
    return {**kept, "name": name, "train": {"max_length": 128, "threads": 1}, "merge": merge}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("merging")
    path = write_recipe(folder, write_model(folder / "model"))
    tree, shown = yaml.safe_load(path.read_text()), yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])
    other = {**tree["data"], "split": {**tree["data"]["split"], "seed": 1}}
    recipes = {
        "half-a": {**tree, "name": "half-a"},
        "half-b": {**tree, "name": "half-b", "data": other, "adapter": {"type": "lora", "r": 2, "use_rslora": True}},
        "merged": merging("merged", tree, **shown["merge"]),
        "t": merging("t", {**tree, "export": ["merged"]}, runs=["half-a", "half-b"], method="ties", density=0.5),
        "g": merging("g", tree, runs=["half-a", "half-b"], method="greedy"),
        "deeper": merging("deeper", tree, runs=["merged", "half-a"]),
        "elsewhere": {**merging("elsewhere", tree, runs=["half-a"]), "model": {"name": str(folder / "model2")}},
    }
    write_model(folder / "model2", seed=5)
    for name, recipe in recipes.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    home = {"cwd": folder, "LUTHIER_HOME": str(folder / "home")}
    commands = re.search(r"```sh\n(.*?)```", PAGE, re.DOTALL)[1].splitlines()
    assert len(commands) == 3
    done = [luthier(*command.removeprefix("luthier ").split(), **home).decides() for command in commands]
    return World(folder, done[-1])


def test_the_merge_is_the_weighted_sum_and_opens_in_plain_peft(world: World) -> None:
    plain = AutoModelForCausalLM.from_pretrained
    base = dict(plain(world.folder / "model").named_parameters())
    expected = {name: parameter.detach().clone() for name, parameter in base.items()}
    for name, weight in (("half-a", 0.75), ("half-b", 0.5)):
        tuned = PeftModel.from_pretrained(plain(world.folder / "model"), world.run(name).tuned).merge_and_unload()
        for key, parameter in tuned.named_parameters():
            expected[key] += weight * (parameter.detach() - base[key].detach())
    merged = PeftModel.from_pretrained(plain(world.folder / "model"), world.run("merged").artifacts / "adapter")
    for key, parameter in merged.merge_and_unload().named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[key], rtol=1e-4, atol=1e-5)
    train = TrainResult.read(world.run("merged").train_result)
    assert train.merge is not None
    assert (train.steps, train.merge.rank, train.merge.kept, train.merge.into) == (0, 6, 1.0, "adapter")


def test_rows_that_a_parent_has_met_do_not_count(world: World) -> None:
    """half-b split the file otherwise, so it learned some of the rows that test the merge."""
    run, b = world.run("merged"), world.run("half-b")
    met = {text_key(row.text) for split in ("train", "validation") for row in Shard(b.data / f"{split}.arrow")}
    learned = {text_key(row.text) for row in Shard(b.data / "train.arrow")}
    test = list(Shard(run.data / "test.arrow"))
    by_text = {row.line for row in test if text_key(row.text) in met}
    lines = {row.line for split in ("train", "validation") for row in Shard(b.data / f"{split}.arrow")}
    customers = {(line - 2) // 2 for line in lines}
    by_group = {row.line for row in test if (row.line - 2) // 2 in customers}
    marked = {row.line for row in test if row.contaminated}
    assert by_text
    assert marked == by_text | by_group
    report = EvalReport.read(run.eval_report)
    assert report.num_items == len(test) - len(marked) > 0
    kept = Shard(run.data / "validation.arrow")
    assert not any(text_key(row.text) in learned for row in kept)
    data = DataReport.read(run.data_report)
    assert data.dropped[REASON] == sum(fate.reason == REASON for fate in data.fates) > 0
    assert data.splits["validation"].rows == len(kept)
    assert re.search(r"\d+ test rows were met by half-a/\w+ \S+, half-b/\w+ \S+; they do not count", world.merged.err)


def test_it_is_judged_beside_the_base_and_each_parent(world: World) -> None:
    run = world.run("merged")
    report = EvalReport.read(run.eval_report)
    parents = [f"parent {name}/{world.run(name).id}" for name in ("half-a", "half-b")]
    assert [one.system for one in report.systems][-4:] == ["base", *parents, "tuned"]
    against = {one.against for one in report.differences if one.metric == "accuracy"}
    assert {"base", *parents} <= against
    lines = [json.loads(line) for line in (run.eval / "predictions.jsonl").read_text().splitlines()]
    assert all({*parents, "base", "tuned"} <= line["predicted"].keys() for line in lines)
    for text in (world.merged.out, run.report.read_text(), run.card.read_text()):
        assert all(one.removeprefix("parent ") in text for one in parents)


def test_card_and_lineage_name_the_parents_by_hash_and_the_settings(world: World) -> None:
    run = world.run("merged")
    card, graph = run.card.read_text(), Lineage.model_validate_json(run.lineage.read_bytes())
    assert "Nothing was trained: 2 trained runs of this base were merged by `linear`, rank 6" in card
    weights = next(node for node in graph.nodes if node.node == "trained weights")
    assert "data/train.arrow" not in weights.made_from
    for name, weight in (("half-a", "0.75"), ("half-b", "0.5")):
        parent = world.run(name)
        sha256 = TrainResult.read(parent.train_result).weights_sha256
        assert sha256 in card
        assert f"| {name}/{parent.id} | {weight} |" in card
        node = next(node for node in graph.nodes if node.node == f"merged run: {name}/{parent.id}")
        assert node.sha256 == sha256
        assert node.node in weights.made_from
    assert "Merged by linear (rank 6) into an adapter, exactly" in run.report.read_text()
    assert "merged from" in (run.artifacts / "adapter" / "README.md").read_text()


def test_it_is_an_ordinary_run(world: World) -> None:
    gate = GateDecision.read(world.run("merged").gate)
    assert {"parity of adapter", "parity of merged", "leakage"} <= {line.line for line in gate.lines}
    assert all(line.passed for line in gate.lines if line.kind == "parity")
    again = world.luthier("run", "merged.yaml").decides()
    assert again.err.count("unchanged, not run again") == 5
    (world.folder / "asked.csv").write_text("text\nmy cello is late\nthe bow snapped\n")
    world.luthier("predict", world.run("merged").path, "asked.csv", "--output", "said.jsonl").succeeds()
    assert len((world.folder / "said.jsonl").read_text().splitlines()) == 2


def test_ties_is_written_as_whole_weights_and_a_greedy_soup_says_what_it_tried(world: World) -> None:
    done = world.luthier("train", "t.yaml", "--json").succeeds()
    assert done.document["merge"]["into"] == "weights"
    base, merged = (load_file(place / "model.safetensors") for place in (world.folder / "model", world.run("t").tuned))
    assert set(base) == set(merged)
    moved = {name for name in base if not torch.equal(base[name], merged[name])}
    assert len(moved) == 14  # the linear layers of two blocks
    greedy = world.luthier("train", "g.yaml", "--json").succeeds().document
    tried = greedy["merge"]["runs"]
    assert {one["run"].partition("/")[0] for one in tried} == {"half-a", "half-b"}
    assert tried[0]["weight"] in (0.5, 1.0)
    assert sum(one["weight"] for one in tried) == 1.0
    assert greedy["best_metric"] == "macro_f1"
    assert greedy["best_value"] == max(one["validation"] for one in tried if one["weight"])


def test_what_cannot_be_merged_is_refused(world: World) -> None:
    def check(recipe: str, *overrides: str) -> Done:
        return world.call("check", recipe, *(part for one in overrides for part in ("--set", one)))

    a = world.run("half-a")
    check("elsewhere.yaml").fails(2, "elsewhere.yaml:", "merge.runs: half-a was trained on another base")
    check("merged.yaml", "merge.runs=[half-a, nowhere]").fails(2, "'nowhere' is not a run", "runs in runs:")
    check("merged.yaml", f"merge.runs=[half-a, half-a/{a.id}]").fails(2, f"is half-a/{a.id}, which is named before")
    check("merged.yaml", "train.learning_rate=0.1").fails(2, "with merge nothing learns")
    check("merged.yaml", "merge.runs=[half-a, merged@production]").fails(2, "production")
    check("merged.yaml", "merge.runs=[half-a, merged@1]").succeeds()
    heads = a.tuned / "heads.safetensors"
    heads.touch()
    check("merged.yaml").fails(2, "classification heads of several tasks, which are not merged")
    heads.unlink()
    world.call("plan", "merged.yaml", "--probe").fails(2, "--probe trains some steps")
    world.call("doctor", "resume", "merged.yaml").fails(2, "merges runs")


def test_a_run_that_was_tampered_with_is_refused(world: World) -> None:
    b = world.run("half-b")
    parent = describe(b)
    for file in (b.tuned / "adapter_config.json", b.tuned / "adapter_model.safetensors", b.data / "train.arrow"):
        whole = file.read_bytes()
        other = whole.replace(b'"lora_alpha": ', b'"lora_alpha": 1') if file.suffix == ".json" else whole + b"x"
        ask = (lambda: learned_folders([b])) if file.suffix == ".arrow" else (lambda: tuned_of(parent))
        try:
            file.write_bytes(other)
            world.call("check", "merged.yaml").fails(2, "is not what was trained", file.name)
            with pytest.raises(RunError, match=file.name):
                ask()
        finally:
            file.write_bytes(whole)
    assert tuned_of(parent) == b.tuned


def test_runs_that_are_asked_in_other_ways_are_refused(world: World) -> None:
    contract = RequestContract.read(world.run("half-a").contract)
    for key, value in (("tokenizer_sha256", "0" * 64), ("system", "Other."), ("input", "{text}!"), ("transforms", ())):
        with pytest.raises(RunError, match=f"with another {key}"):
            refuse_other_contract(contract, "a", contract.model_copy(update={key: value}), "b")
    other_task = contract.model_copy(update={"name": "mood", "system": "Other.", "labels": ("x",)})
    refuse_other_contract(contract, "a", other_task, "b")
    head = contract.model_copy(update={"answered_by": "head", "labels": ("x", "y")})
    with pytest.raises(RunError, match="another labels"):
        refuse_other_contract(head, "a", head.model_copy(update={"labels": ("y", "z")}), "b")
    with pytest.raises(RunError, match="another answered_by"):
        refuse_other_contract(contract, "a", head, "b")


def test_what_a_merge_was_merged_from_is_known_when_it_is_merged_again(world: World) -> None:
    world.call("check", "deeper.yaml").succeeds()
    merged = world.run("merged")
    parent = describe(merged)
    assert [one.run.partition("/")[0] for one in parent.everyone()] == ["merged", "half-a", "half-b"]
    assert len(learned_folders([merged])) == 3
    assert ResolvedRecipe.read(world.run("merged").resolved).parents[1].weights_sha256 == sha256_file(
        world.run("half-b").tuned / "adapter_model.safetensors"
    )
