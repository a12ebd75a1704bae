"""Checkpoints are written while training goes on, say what was true at their step, and tell when they cannot be."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_train_loop import SETTINGS, run

from luthier.errors import DiskFull, NonFinite
from luthier.train import checkpoint
from luthier.train.dist import Ranks
from luthier.train_records import StepEvent

KEPT = SETTINGS.model_copy(update={"save_steps": 2, "save_total_limit": 9})


def contents(out: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {path.parent.name: load_file(path) for path in sorted(out.glob("checkpoints/*/tensors.safetensors"))}


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """No checkpoint gets to the disk before the event is set."""
    ready, real = threading.Event(), checkpoint.write

    def late(*given: Any, **more: Any) -> None:
        assert ready.wait(60), "training never went on"
        real(*given, **more)

    monkeypatch.setattr(checkpoint, "write", late)
    yield ready
    ready.set()


def test_training_goes_on_while_a_checkpoint_of_its_step_is_written(tmp_path: Path, slow_disk: threading.Event) -> None:
    slow_disk.set()
    run(tmp_path / "whole", settings=KEPT)
    slow_disk.clear()
    seen: list[tuple[int, int]] = []

    def watch(event: StepEvent, *, total_steps: int) -> None:
        seen.append((event.step, len(contents(tmp_path / "late"))))
        if event.step == 4:  # two steps after the first checkpoint was begun
            slow_disk.set()

    run(tmp_path / "late", settings=KEPT, watch=watch)
    assert seen[:4] == [(1, 0), (2, 0), (3, 0), (4, 0)]
    whole, late = contents(tmp_path / "whole"), contents(tmp_path / "late")
    assert list(late) == list(whole) == [f"step-{step:06d}" for step in (2, 4, 6, 8, 10)]
    for name, tensors in whole.items():
        assert all(torch.equal(tensor, late[name][key]) for key, tensor in tensors.items()), name


def test_a_checkpoint_that_cannot_be_written_stops_training_at_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, steps = checkpoint.write, list[int]()

    def full(folder: Path, state: checkpoint.LoopState, *given: Any, **more: Any) -> None:
        if state.step >= 4:
            raise DiskFull(f"{folder}: no space left on the disk")
        real(folder, state, *given, **more)

    def watch(event: StepEvent, *, total_steps: int) -> None:
        steps.append(event.step)

    monkeypatch.setattr(checkpoint, "write", full)
    with pytest.raises(DiskFull, match="no space left"):
        run(tmp_path, settings=KEPT, watch=watch)
    assert steps[-1] == 6
    assert list(contents(tmp_path)) == ["step-000002"]
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("at", [10, 3], ids=["of the last step", "of a stop"])
def test_nothing_is_done_before_the_last_checkpoint_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    def full(folder: Path, state: checkpoint.LoopState, *given: Any, **more: Any) -> None:
        assert state.step == at
        raise DiskFull(f"{folder}: no space left on the disk")

    monkeypatch.setattr(checkpoint, "write", full)
    with pytest.raises(DiskFull, match="no space left"):
        run(tmp_path, settings=KEPT.model_copy(update={"save_steps": 99}), stop_after=at)
    assert not (tmp_path / "adapter").exists()


def test_what_is_kept_are_the_newest(tmp_path: Path) -> None:
    run(tmp_path, settings=KEPT.model_copy(update={"save_total_limit": 3}))
    assert list(contents(tmp_path)) == ["step-000006", "step-000008", "step-000010"]


@pytest.mark.parametrize("fused", [False, True])
def test_what_is_resumed_is_where_the_parameters_are(tmp_path: Path, fused: bool) -> None:
    """A device without memory stands for an accelerator: what is left behind on the processor shows all the same.

    The fused kernel of an accelerator counts its steps there.
    """

    def of(device: str) -> tuple[dict[str, torch.nn.Parameter], torch.optim.AdamW]:
        weight = torch.nn.Parameter(torch.ones(3, device=device))
        optimizer = torch.optim.AdamW([weight], lr=0.1, foreach=True)
        optimizer.defaults["fused"] = fused  # which torch refuses for a device without memory
        weight.grad = torch.ones(3, device=device)
        return {"w": weight}, optimizer

    parameters, optimizer = of("cpu")
    optimizer.step()
    with checkpoint.Writer(tmp_path, keep=1, ranks=Ranks()) as writer:
        writer.save(checkpoint.LoopState(key="k", step=1), parameters=parameters, optimizer=optimizer, best={})
    there, other = of("meta")
    checkpoint.load_latest(tmp_path, key="k", parameters=there, optimizer=other, ranks=Ranks())
    found = {field: value.device.type for field, value in other.state[there["w"]].items()}
    assert found == {"step": "meta" if fused else "cpu", "exp_avg": "meta", "exp_avg_sq": "meta"}
    if not fused:
        other.step()


def test_what_ended_training_is_said_before_what_the_disk_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any, **more: Any) -> None:
        raise DiskFull("no space left")

    monkeypatch.setattr(checkpoint, "write", full)
    weight = {"w": torch.nn.Parameter(torch.ones(3))}
    optimizer = torch.optim.AdamW(weight.values())

    def train() -> None:
        with checkpoint.Writer(tmp_path, keep=1, ranks=Ranks()) as writer:
            writer.save(checkpoint.LoopState(key="k", step=2), parameters=weight, optimizer=optimizer, best={})
            raise NonFinite("step 3: loss nan", way_out="look")

    with pytest.raises(NonFinite, match=r"step 3: loss nan; besides, no space left\n  -> look"):
        train()
