"""Answers of its own, verified by rules: the recipe, the run, what it says of rewards, and a kill on the way."""

from __future__ import annotations

import csv
from typing import Any

import pytest
import yaml
from test_kill import Bench, interrupt, pytestmark, saved

from command import luthier
from luthier.eval_records import EvalReport
from luthier.records import GateDecision, RequestContract
from luthier.store.events import EventLog
from luthier.store.runs import RunFolder
from luthier.train_records import TrainResult
from tiny import write_model

__all__ = ["pytestmark"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Any number is right, so that a model of drawn weights writes some answers that are."""
    folder = tmp_path_factory.mktemp("sums")
    with (folder / "sums.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ask", "say"])
        writer.writerows([[f"{n} and {n * 7 % 11} more", f"that is\n#### {n + n * 7 % 11}"] for n in range(60)])
    rewards = [{"type": "number", "tolerance": 1e12, "weight": 3.0}, {"type": "exact"}]
    entry = {
        "name": "sums", "path": "sums.csv", "input": "{ask}", "label": "say", "task": "generation", "rewards": rewards,
        "license": "MIT",
    }  # fmt: skip
    recipe: dict[str, Any] = {
        "name": "sums",
        "objective": {"targets": {"sums.reward": ">= 0.01"}, "non_regression": {"general.perplexity": "<= 9x"}},
        "model": {"name": str(write_model(folder / "model"))},
        "data": {"train": [entry], "split": {"test": 0.3, "validation": 0.15}, "privacy": {"profile": "fast"}},
        "method": {"type": "grpo", "num_generations": 4, "max_completion_length": 12, "beta": 0.02},
        "adapter": {"type": "lora", "r": 4},
        "train": {
            "max_length": 96, "batch_size": 8, "micro_batch_tokens": 256, "threads": 1, "save_steps": 2,
            "validations": 2, "learning_rate": 0.02, "num_train_epochs": 2,
        },
        "evaluate": {"resamples": 200},
        "export": ["adapter"],
    }  # fmt: skip
    (folder / "sums.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    done = luthier("run", "sums.yaml", "--out", "out", cwd=folder, LUTHIER_HOME=str(folder / "home"))
    assert done.code in (0, 3), done
    return Bench(folder, RunFolder.open("sums", out=folder / "out"), ("train", "sums.yaml"))


@pytest.fixture
def run(bench: Bench) -> RunFolder:
    return bench.whole


def test_steps_and_validations_tell_of_rewards_and_weights_are_chosen_by_them(run: RunFolder) -> None:
    events = [one for one in EventLog.read(run.events) if one["kind"] in ("step", "validation")]
    assert all(0.0 <= one["metrics"]["reward"] <= 1.0 for one in events)
    assert any(one["metrics"]["reward"] > 0 for one in events)
    assert TrainResult.read(run.train_result).best_metric == "reward"


def test_base_and_tuned_are_compared_by_reward_in_every_file(run: RunFolder) -> None:
    report = EvalReport.read(run.eval_report)
    systems = {one.system: one.metrics for one in report.systems}
    assert 0.0 <= systems["base"]["reward"].point <= 1.0
    gap = next(one for one in report.differences if (one.metric, one.against) == ("reward", "base"))
    assert gap.interval.point == pytest.approx(systems["tuned"]["reward"].point - systems["base"]["reward"].point)
    assert "reward" in report.headline
    assert any(line.line == "sums.reward" for line in GateDecision.read(run.gate).lines)
    for page in (run.report.read_text(), run.card.read_text()):
        assert "reward" in page


def test_killed_while_it_trains_it_ends_in_the_same_bits(bench: Bench, run: RunFolder) -> None:
    interrupt(bench, "cut", saved(5), "both")
    luthier("train", "sums.yaml", "--out", "cut", cwd=bench.folder, LUTHIER_HOME=str(bench.folder / "home")).succeeds()
    cut = TrainResult.read(RunFolder(bench.run("cut")).train_result)
    assert cut.resumed_from
    assert cut.weights_sha256 == TrainResult.read(run.train_result).weights_sha256


def test_a_row_that_cannot_be_verified_is_found_before_anything_is_trained(bench: Bench) -> None:
    rows = (bench.folder / "sums.csv").read_text().replace("#### 9", "#### nine")
    (bench.folder / "odd.csv").write_text(rows)
    luthier(
        "prepare", "sums.yaml", "--out", "odd", "--set", "data.train.0.path=odd.csv",
        "--set", "data.train.0.rewards=[{type: number, marked: true}]", cwd=bench.folder,
        LUTHIER_HOME=str(bench.folder / "home"),
    ).fails(2, "line ", "the expected answer has no number")  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["data.train.0.rewards=null"], ("method grpo learns from what verifies answers", "docs/rewards.md")),
        (["adapter={type: full}"], ("method.beta holds the model to its base",)),
        (["data.train.0.task=classification", "method={type: sft}", "objective={}"], ("verify free answers",)),
        (["data.train.0.rewards=[{type: judge}]"], ("judge",)),
        (["data.train.0.rewards=[{type: sql, database: CREATE}]"], ("database cannot be made",)),
        (["data.train.0.roles_to_train=[user, assistant]"], ("roles_to_train", "answers of its own")),
        (["data.train.0.mask_history=true"], ("mask_history", "answers of its own")),
        (["data.canaries={count: 4}"], ("data.canaries", "answers of its own")),
        (["train.cache_trunk=true", "adapter.layers_to_transform=[1]"], ("train.cache_trunk",)),
        (
            ["method.max_completion_length=49"],
            ("is more than half of train.max_length (48)", "set train.max_length to 98"),
        ),
        (["train.neftune_noise_alpha=5"], ("method.beta measures how far",)),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(
    bench: Bench, changes: list[str], words: tuple[str, ...]
) -> None:
    given = [part for change in changes for part in ("--set", change)]
    luthier("check", "sums.yaml", *given, cwd=bench.folder, LUTHIER_HOME=str(bench.folder / "home")).fails(2, *words)


def test_what_is_asked_may_write_as_much_as_what_learned(bench: Bench) -> None:
    given = ("--set", "method.max_completion_length=40")
    luthier(
        "prepare", "sums.yaml", "--out", "long", *given, cwd=bench.folder, LUTHIER_HOME=str(bench.folder / "home")
    ).succeeds()
    assert RequestContract.read(RunFolder.open("sums", out=bench.folder / "long").contract).max_new_tokens == 40


def test_the_curve_of_training_is_that_of_rewards(run: RunFolder) -> None:
    page = run.report.read_text()
    assert "reward: mean of the answers that were written" in page
    assert "negative log-likelihood" not in page
