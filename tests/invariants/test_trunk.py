"""A recipe whose upper layer alone learns, as a user would train it, interrupted while and after states are kept."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from test_kill import Bench, during, interrupt, pytestmark, saved, writing

from command import COMMAND, environment, luthier
from luthier.store.events import EventLog
from luthier.store.files import sha256_files
from luthier.store.runs import RunFolder
from luthier.train_records import TrainResult
from tiny import write_model, write_recipe

__all__ = ["pytestmark"]


class Training(Bench):
    """As far as the weights."""

    def start(self, out: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*COMMAND, "train", "tiny.yaml", "--out", out],
            cwd=self.folder,
            text=True,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=environment(LUTHIER_HOME=str(self.folder / "home")),
        )


def finish(folder: Path, out: str) -> RunFolder:
    luthier("train", "tiny.yaml", "--out", out, cwd=folder, LUTHIER_HOME=str(folder / "home")).succeeds()
    return RunFolder.open("tiny", out=folder / out)


def trunks(run: RunFolder) -> list[dict[str, object]]:
    return [event for event in EventLog.read(run.events) if event["kind"] == "trunk"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Training:
    folder = tmp_path_factory.mktemp("trunk")
    write_recipe(
        folder, write_model(folder / "model"), batch_size=2, save_steps=2, micro_batch_tokens=130, validations=1
    )
    recipe = folder / "tiny.yaml"
    recipe.write_text(recipe.read_text().replace("  r: 4\n", "  r: 4\n  layers_to_transform: [1]\n"))
    return Training(folder, finish(folder, "whole"))


def test_killed_while_the_states_are_written_and_after_it_ends_in_the_same_bits(bench: Training) -> None:
    interrupt(bench, "killed", writing("train/trunk", after=during("train")), "both")
    left = bench.run("killed") / "train" / "trunk"
    assert [path.suffix for path in left.iterdir()] == [".tmp"]
    interrupt(bench, "killed", saved(9), "child")
    (kept,) = left.iterdir()
    assert sorted(path.name for path in kept.iterdir()) == ["about.json", "states.f32"]
    run = finish(bench.folder, "killed")
    assert [event["reused"] for event in trunks(run)] == [False, True]
    assert TrainResult.read(run.train_result).resumed_from
    assert sha256_files(run.train / "adapter") == sha256_files(bench.whole.train / "adapter")
    assert not left.exists(), "what was kept for training is gone when it has ended"
