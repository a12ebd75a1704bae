"""Lines of progress in a log: rate, time left, and no nonsense after a resume."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from luthier.pipeline import progress
from luthier.pipeline.progress import Progress
from luthier.pipeline.training import say_sharing_is_off
from luthier.store.events import EventLog
from luthier.train_records import LossSpike, StepEvent


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def event(step: int) -> StepEvent:
    return StepEvent(
        kind="step",
        step=step,
        epoch=0.1,
        loss=2.5,
        learning_rate=0.1,
        grad_norm=1.0,
        num_tokens=400,
        computed_tokens=300,
        supervised_tokens=9,
        seconds=2.0,
        memory_gib=1.0,
    )


def test_a_resumed_run_judges_the_time_left_by_its_own_steps(clock: list[float]) -> None:
    out = io.StringIO()
    with Progress(out) as shown:
        for step in range(90, 101):
            shown.step(event(step), total_steps=200)
            clock[0] += 6.0
    lines = out.getvalue().splitlines()
    assert lines[0] == "  training: 90 of 200, 200 tokens/s, loss 2.500, useful 3 %, gradient 1, rate 1.0e-01, 1.0 GiB"
    assert "training: 93 of 200" in lines[1]
    assert "11 min left" in lines[1]  # 107 steps of 6 s


def test_items_show_their_rate_and_the_last_one_is_always_said(clock: list[float]) -> None:
    out = io.StringIO()
    with Progress(out) as shown:
        for done in range(41):
            shown("tuned model", done, 40)
            clock[0] += 0.5
    lines = out.getvalue().splitlines()
    assert lines[-1] == "  tuned model: 40 of 40, 2.0/s, done"
    assert 2 <= len(lines) <= 4


def test_a_validation_is_one_line_with_its_metrics(clock: list[float]) -> None:
    out = io.StringIO()
    with Progress(out) as shown:
        shown.step(event(7).model_copy(update={"kind": "validation", "metrics": {"macro_f1": 0.5}}), total_steps=9)
    assert out.getvalue() == "  validation after step 7: macro_f1 0.500\n"


def test_the_first_of_several_spikes_in_a_row_is_said_with_the_lines_of_its_rows(clock: list[float]) -> None:
    out = io.StringIO()
    with Progress(out) as shown:
        for step in (31, 32, 33, 40):
            lines = tuple(range(2, 22)) if step == 40 else (3, 9)
            spike = LossSpike(step=step, loss=6.2149, usual_low=1.981, usual_high=2.6, lines=lines)
            shown.step(spike, total_steps=90)
    assert out.getvalue().splitlines() == [
        "  loss spike at step 31: 6.21, usual 1.98 to 2.6; its rows stand on lines 3, 9",
        "  loss spike at step 40: 6.21, usual 1.98 to 2.6; its rows stand on lines 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, "
        "13, 14, 15, 16, 17 and 4 more",
    ]


def test_that_nothing_is_shared_is_said_and_written_down(tmp_path: Path) -> None:
    """The test of `luthier doctor resume` trains with dropout and finds the line."""
    out, log = io.StringIO(), tmp_path / "events.jsonl"
    with Progress(out) as shown:
        say_sharing_is_off(shown, EventLog(log), "dropout")
    assert "dropout is on: every row is computed by itself, what rows share is not shared" in out.getvalue()
    assert [(event["kind"], event["reason"]) for event in EventLog.read(log)] == [("sharing_off", "dropout")]
