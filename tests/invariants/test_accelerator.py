"""A recipe on an accelerator and on the processor: the same losses and metrics; killed, the same bits."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_kill import Bench, interrupt, saved

from command import luthier
from luthier.eval_records import EvalReport
from luthier.store.events import EventLog
from luthier.store.files import sha256_files
from luthier.store.runs import RunFolder
from luthier.train_records import TrainResult
from tiny import write_model, write_recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no NVIDIA accelerator that torch sees"),
]

EXACT = ("--set", "train.bf16=false", "--set", "train.torch_compile=false")


def words(folder: Path, recipe: dict[str, Any]) -> None:
    """Labels as words: the recipe as it is."""


def head(folder: Path, recipe: dict[str, Any]) -> None:
    recipe["method"] = {"type": "classify"}


def four_bits(folder: Path, recipe: dict[str, Any]) -> None:
    recipe["model"]["load_in_4bit"] = True


def pruned(folder: Path, recipe: dict[str, Any]) -> None:
    recipe["prune"] = {"layers": {"remove": 1}, "mlp": {"keep": 0.5, "by": "taylor"}, "heads": {"keep": 0.5}}
    recipe["export"] = ["merged"]


def pairs(folder: Path, recipe: dict[str, Any]) -> None:
    rows = [{"prompt": f"the order {n} is late", "chosen": f"sorry, {n}", "rejected": f"no {n * 3}"} for n in range(60)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe["method"] = {"type": "dpo"}
    recipe["objective"]["targets"] = {"preference.preference_accuracy": ">= 0.1"}
    recipe["data"]["train"] = [{"path": "pairs.jsonl", "license": "Apache-2.0", "synthetic": True}]
    recipe["data"]["split"] = {"test": 0.3, "validation": 0.15}
    recipe["data"]["leakage"] = {"near": False}
    recipe["data"].pop("labels")


def rewards(folder: Path, recipe: dict[str, Any]) -> None:
    rows = [{"prompt": f"{n} and {n * 7 % 11}", "completion": f"{n + n * 7 % 11}"} for n in range(60)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe["method"] = {"type": "grpo", "num_generations": 4, "max_completion_length": 12, "beta": 0.02}
    recipe["objective"]["targets"] = {"sums.reward": ">= 0.01"}
    recipe["data"]["train"] = [
        {"name": "sums", "path": "sums.jsonl", "license": "MIT", "rewards": [{"type": "number", "tolerance": 1e12}]}
    ]
    recipe["data"]["split"] = {"test": 0.3, "validation": 0.15}
    recipe["data"].pop("labels")


def begun(folder: Path, change: Any) -> Path:
    """The recipe of a case."""
    path = write_recipe(folder, write_model(folder / "model"), batch_size=4, save_steps=2, validations=2)
    recipe = yaml.safe_load(path.read_text())
    change(folder, recipe)
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def run(folder: Path, out: str, *given: str) -> RunFolder:
    done = luthier("run", "tiny.yaml", "--out", out, *given, cwd=folder, LUTHIER_HOME=str(folder / "home"))
    assert done.code in (0, 3), done.err[-3000:]  # the gate decides by what so few rows prove
    return RunFolder.open("tiny", out=folder / out)


def told(run: RunFolder, kind: str) -> list[dict[str, Any]]:
    return [event for event in EventLog.read(run.events) if event["kind"] == kind]


@pytest.mark.parametrize("change", [words, head, four_bits, pruned, pairs, rewards])
def test_losses_metrics_and_parity_are_those_of_the_processor(tmp_path: Path, change: Any) -> None:
    if change is four_bits and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    begun(tmp_path, change)
    there = run(tmp_path, "there", "--set", "train.device=cuda", *EXACT)
    here = run(tmp_path, "here", "--set", "train.device=cpu", *EXACT)
    losses = [[event["loss"] for event in told(one, "step")] for one in (there, here)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3, abs=1e-4)
    assert TrainResult.read(there.train_result).peak_memory_gib < 1.0  # of the accelerator: the model is tiny
    reports = [EvalReport.read(one.eval_report) for one in (there, here)]
    for mine, other in zip(reports[0].systems, reports[1].systems, strict=True):
        assert mine.system == other.system
        for name, metric in mine.metrics.items():
            assert metric.point == pytest.approx(other.metrics[name].point, rel=2e-3, abs=2e-3), (mine.system, name)


@pytest.mark.parametrize("change", [words, rewards])
def test_in_bf16_with_compiled_layers_it_learns_the_same_to_their_rounding(tmp_path: Path, change: Any) -> None:
    begun(tmp_path, change)
    fast = run(tmp_path, "fast", "--set", "train.device=cuda", "--set", "train.bf16=true")
    exact = run(tmp_path, "exact", "--set", "train.device=cuda", *EXACT)
    first = [told(one, "step")[0]["loss"] for one in (fast, exact)]
    assert first[0] == pytest.approx(first[1], rel=2e-2, abs=2e-2)
    if change is words:
        last = [told(one, "step")[-1]["loss"] for one in (fast, exact)]
        assert last[0] == pytest.approx(last[1], rel=0.1)


def test_killed_on_an_accelerator_it_ends_in_the_same_bits(tmp_path: Path) -> None:
    begun(tmp_path, words)
    given = ("--set", "train.device=cuda")
    whole = run(tmp_path, "whole", *given)
    bench = Bench(tmp_path, whole, ("train", "tiny.yaml", *given))
    interrupt(bench, "cut", saved(5), "both")
    again = run(tmp_path, "cut", *given)
    assert TrainResult.read(again.train_result).resumed_from
    assert sha256_files(again.train / "adapter") == sha256_files(whole.train / "adapter")
