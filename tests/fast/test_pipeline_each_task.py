"""Tasks that are trained in turn, each as if it were alone: what is done is not done again, what is not done is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import samples

from luthier.errors import RunError
from luthier.pipeline import behind, each_task
from luthier.pipeline.behind import as_trained
from luthier.pipeline.each_task import together, train_each
from luthier.pipeline.parents import _find
from luthier.store.runs import RunFolder, weights_file, weights_sha256
from luthier.train.dist import present
from luthier.train_records import TrainResult


@dataclass
class Bench:
    """A run of tasks whose training writes a byte, and says that it was done."""

    run: RunFolder
    names: tuple[str, ...] = ("a", "b")
    data: str = "d"
    trained: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def task(self, name: str) -> RunFolder:
        return self.run.task(name)

    def go(self, *, fails_at: str = "") -> None:
        """Train what is not trained yet."""

        def train_one(task: Any) -> None:
            name = task.run.path.name
            if name == fails_at:
                raise KeyboardInterrupt
            self.trained.append(name)
            task.run.tuned.mkdir(parents=True, exist_ok=True)
            weights_file(task.run.tuned).write_text(name)
            result = samples.train_result(weights_sha256=weights_sha256(task.run.tuned), steps=9)
            task.run.train_result.write_text(result.to_json())

        progress = SimpleNamespace(say=self.said.append)
        tasks = [SimpleNamespace(run=self.task(name), key=f"{name}:{self.data}") for name in self.names]
        context: Any = SimpleNamespace(
            run=self.run,
            resolved=SimpleNamespace(names=self.names),
            tasks=tasks,
            progress=progress,
            data_sha256=self.data,
        )
        train_each(context, present(), train_one)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(each_task, "_key", lambda task: task.key)
    run = RunFolder.create(tmp_path, "two", "1")
    run.resolved.touch()
    for name in ("a", "b"):
        run.task(name).path.mkdir(parents=True)
        run.task(name).resolved.touch()
        run.task(name).link_shared(trains_alone=True)
    return Bench(run)


def test_what_was_done_before_a_kill_is_not_done_again(bench: Bench) -> None:
    with pytest.raises(KeyboardInterrupt):
        bench.go(fails_at="b")
    assert not bench.run.train_result.exists(), "it stands for all tasks"
    bench.go()
    assert bench.trained == ["a", "b"]
    assert "task a is trained already" in bench.said
    whole = TrainResult.read(bench.run.train_result)
    assert (whole.steps, whole.best_metric, whole.history) == (18, "", ())
    assert math.isnan(whole.best_value)


@pytest.mark.parametrize("what", ["data", "weights", "result"])
def test_what_changed_since_is_trained_again(bench: Bench, what: str) -> None:
    bench.go()
    if what == "data":
        bench.data = "other"
    elif what == "weights":
        weights_file(bench.task("a").tuned).write_text("else")
    else:
        bench.task("a").train_result.unlink()
    bench.go()
    assert bench.trained == (["a", "b", "a", "b"] if what == "data" else ["a", "b", "a"])


def test_all_together_is_the_sum_of_each() -> None:
    one = samples.train_result(weights_sha256="a", stopped_early=True, peak_memory_gib=2.0)
    other = samples.train_result(weights_sha256="b", stopped_early=False, peak_memory_gib=3.0, method="classify")
    whole = together({"x": one, "y": other}, data_sha256="d")
    for name in ("steps", "trained_tokens", "supervised_tokens", "trainable_parameters", "seconds"):
        assert getattr(whole, name) == getattr(one, name) + getattr(other, name)
    assert (whole.peak_memory_gib, whole.stopped_tasks, whole.stopped_early) == (3.0, ("x",), False)
    assert whole.method == f"{one.method}, classify"
    assert whole.data_sha256 == "d"
    swapped = together({"x": other, "y": one}, data_sha256="d")
    assert len({whole.weights_sha256, swapped.weights_sha256, "a", "b"}) == 4


def test_a_task_that_trains_alone_is_laid_out_as_a_run(bench: Bench) -> None:
    bench.go()
    for name in ("a", "b"):
        task = bench.task(name)
        assert task.trains_alone
        assert task.whole == bench.run
        assert weights_file(task.tuned).read_text() == name
        assert task.artifacts.is_symlink()
    assert not bench.run.trains_alone
    shared = RunFolder.create(bench.run.path.parent.parent, "shared", "1")
    shared.resolved.touch()
    shared.task("a").path.mkdir(parents=True)
    shared.task("a").link_shared()
    assert not shared.task("a").trains_alone


def test_no_one_adapter_stands_for_such_a_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither as a teacher nor to be merged."""
    bench.go()
    own = SimpleNamespace(recipe=SimpleNamespace(has_own_adapters=True))
    monkeypatch.setattr(behind.ResolvedRecipe, "read", lambda path: own)
    with pytest.raises(RunError, match="has an adapter for each task") as caught:
        as_trained(bench.run)
    assert "artifacts/merged/TASK" in str(caught.value.way_out)
    with pytest.raises(RunError, match="is one task of a run, and whole runs are merged"):
        _find(str(bench.task("a").path), bench.run.path.parent.parent)
