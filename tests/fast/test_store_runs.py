"""Run folders, their lock, their stages and their events."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from luthier.errors import DiskFull, RunError
from luthier.store import stages as stages_module
from luthier.store.events import EventLog
from luthier.store.files import write_atomic
from luthier.store.runs import RunFolder, lock
from luthier.store.stages import Stages


def make_run(out: Path, id: str = "one", name: str = "tickets") -> RunFolder:
    run = RunFolder.create(out, name, id)
    write_atomic(run.recipe, f"name: {name}\n")
    return run


# --- finding a run ---


def test_a_run_is_found_in_every_way_it_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path("runs")
    one, two = make_run(out, "one"), make_run(out, "two")
    assert (two.name, two.id) == ("tickets", "two")
    for where in ("runs/tickets/one", "tickets/one", str(one.path.resolve())):
        assert RunFolder.open(where).path == one.path.resolve()
    for where in ("tickets", "runs/tickets", "runs/tickets/latest", "runs/tickets/two/"):
        found = RunFolder.open(where)
        assert (found.path, found.id) == (two.path.resolve(), "two")


def test_latest_points_to_the_newest_and_an_existing_run_is_taken_up_again(tmp_path: Path) -> None:
    one = make_run(tmp_path, "one")
    make_run(tmp_path, "two")
    again = RunFolder.create(tmp_path, "tickets", "one")
    assert again.recipe.read_text() == one.recipe.read_text()
    assert RunFolder.open("tickets", out=tmp_path).id == "one"
    assert (tmp_path / "tickets" / "latest").readlink() == Path("one")
    assert sorted(path.name for path in (tmp_path / "tickets").iterdir()) == ["latest", "one", "two"]


def test_an_unknown_run_lists_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"'nothing' is not a run") as caught:
        RunFolder.open("nothing", out=tmp_path)
    assert "none, `luthier run` makes one" in caught.value.way_out
    make_run(tmp_path, "one")
    make_run(tmp_path, "two", name="mails")
    RunFolder.create(tmp_path, "mails", "unborn")
    for where in ("nothing", "mails", "tickets/three"):
        with pytest.raises(RunError) as caught:
            RunFolder.open(where, out=tmp_path)
        assert "mails/two, mails/unborn, tickets/one" in caught.value.way_out


def test_a_run_cannot_be_made_where_a_file_stands(tmp_path: Path) -> None:
    write_atomic(tmp_path / "tickets", "")
    with pytest.raises(RunError, match="cannot be written"):
        RunFolder.create(tmp_path, "tickets", "one")


# --- the lock ---

HOLDER = """
import subprocess, sys, time
from pathlib import Path
from luthier.store.runs import RunFolder, lock
with lock(RunFolder(Path(sys.argv[1]))) as fd:
    if sys.argv[2:] == ["child"]:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[fd],
                                 stdout=subprocess.DEVNULL)
        print(child.pid, flush=True)
    else:
        print("held", flush=True)
    time.sleep(60)
"""


def start_holder(run: RunFolder, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-c", HOLDER, str(run.path), *arguments]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    return holder, holder.stdout.readline().strip()


def finish(holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.communicate()


def test_the_lock_is_held_by_one_process_which_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    holder, _ = start_holder(run)
    try:
        with pytest.raises(RunError) as caught, lock(run, wait_seconds=0.2):
            pass
        assert f"in use by process {holder.pid}" in caught.value.what
        assert f"kill {holder.pid};" in caught.value.way_out
    finally:
        finish(holder)
    with lock(run, wait_seconds=5):
        assert run.lock_file.read_text() == f"{os.getpid()}\n"


def test_a_child_with_the_descriptor_keeps_the_lock_of_its_killed_parent(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    holder, child = start_holder(run, "child")
    finish(holder)
    try:
        with pytest.raises(RunError) as caught, lock(run, wait_seconds=0.2):
            pass
        assert f"process {child}" in caught.value.what if sys.platform == "linux" else "another" in caught.value.what
    finally:
        os.kill(int(child), signal.SIGKILL)
    with lock(run, wait_seconds=5):
        pass


def test_a_parent_that_leaves_while_its_child_works_does_not_take_the_lock_away(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with lock(run) as fd:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[fd])
    try:
        with pytest.raises(RunError, match="in use"), lock(run, wait_seconds=0):
            pass
    finally:
        child.kill()
        child.wait()
    with lock(run, wait_seconds=0):
        pass


def test_waiting_ends_as_soon_as_the_lock_is_free(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    holder, _ = start_holder(run)
    finish(holder)
    started = time.monotonic()
    with lock(run, wait_seconds=30):
        assert time.monotonic() - started < 5


def test_taking_the_lock_clears_away_what_a_killed_process_left(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (run.path / f".gate.json.{gone.pid}-0123abcd.tmp").touch()
    with lock(run):
        assert sorted(path.name for path in run.path.iterdir()) == [".lock", "recipe.yaml"]


# --- stages ---


def work(run: RunFolder, text: str = "result") -> list[Path]:
    """A stage that writes a file and a folder."""
    write_atomic(run.train / "weights", text)
    write_atomic(run.eval / "deep" / "numbers", text[::-1])
    return [run.train / "weights", run.eval]


def test_a_stage_is_done_for_its_key_and_its_outputs_only(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    stages = Stages(run)
    assert not stages.done("train", "key")
    assert stages.marker("train") is None
    stages.mark("train", "key", work(run), 1.5, 0.25)
    assert stages.done("train", "key")
    assert not stages.done("train", "other key")
    assert not stages.done("evaluate", "key")
    marker = stages.marker("train")
    assert marker is not None
    assert (marker.seconds, marker.peak_memory_gib, marker.reused_from) == (1.5, 0.25, "")
    assert [output.path for output in marker.outputs] == ["eval/deep/numbers", "train/weights"]


@pytest.mark.parametrize("damage", ["removed", "longer", "edited", "marker torn", "marker unknown", "cleared"])
def test_damage_makes_a_stage_undone(tmp_path: Path, damage: str) -> None:
    run = make_run(tmp_path)
    stages = Stages(run)
    stages.mark("train", "key", work(run), 1.0, 1.0)
    marker, output = run.stages / "train.json", run.eval / "deep" / "numbers"
    match damage:
        case "removed":
            output.unlink()
        case "longer":
            write_atomic(output, "longer than before")
        case "edited":
            write_atomic(output, "x" * output.stat().st_size)
        case "marker torn":
            marker.write_text(marker.read_text()[:40])
        case "marker unknown":
            marker.write_text(marker.read_text().replace("seconds", "minutes"))
        case "cleared":
            stages.clear("train")
    assert not stages.done("train", "key")
    assert stages.reuse("train", "key") is None


def test_large_files_are_told_apart_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages_module, "HASHED_BYTES", 4)
    run = make_run(tmp_path)
    stages = Stages(run)
    stages.mark("train", "key", work(run), 1.0, 1.0)
    write_atomic(run.train / "weights", "RESULT")
    assert stages.done("train", "key")
    write_atomic(run.train / "weights", "RESULTS")
    assert not stages.done("train", "key")


def test_an_output_that_is_not_there_is_our_own_mistake(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with pytest.raises(AssertionError, match="not there"):
        Stages(run).mark("train", "key", [run.train / "weights"], 1.0, 1.0)
    assert Stages(run).marker("train") is None


@pytest.mark.parametrize("linking", [True, False])
def test_a_sibling_with_the_same_key_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linking: bool) -> None:
    if not linking:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    one, two, three = (make_run(tmp_path, id) for id in ("one", "two", "three"))
    Stages(one).mark("train", "key", work(one), 2.0, 0.5)
    Stages(two).mark("train", "older key", work(two, "older"), 1.0, 1.0)
    assert Stages(two).reuse("train", "unknown key") is None
    assert Stages(two).done("train", "older key")
    assert Stages(two).reuse("train", "key") == one
    assert (two.train / "weights").read_text() == "result"
    assert (two.train / "weights").samefile(one.train / "weights") == linking
    marker = Stages(two).marker("train")
    assert marker is not None
    assert (marker.seconds, marker.peak_memory_gib, marker.reused_from) == (2.0, 0.5, "one")
    write_atomic(one.train / "weights", "one goes on")  # a rename: the link keeps what it had
    assert Stages(two).done("train", "key")
    assert Stages(three).reuse("train", "key") == two  # one was damaged; the origin is still told
    marker = Stages(three).marker("train")
    assert marker is not None
    assert marker.reused_from == "one"


def test_runs_of_other_names_are_no_siblings(tmp_path: Path) -> None:
    other, run = make_run(tmp_path, name="other"), make_run(tmp_path)
    Stages(other).mark("train", "key", work(other), 1.0, 1.0)
    assert Stages(run).reuse("train", "key") is None


def test_a_sibling_that_is_deleted_meanwhile_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = make_run(tmp_path, "one"), make_run(tmp_path, "two")
    Stages(one).mark("train", "key", work(one), 1.0, 1.0)
    link = os.link

    def link_the_first(source: Path, target: Path) -> None:
        link(source, target)
        (one.train / "weights").unlink()

    monkeypatch.setattr(os, "link", link_the_first)
    assert Stages(two).reuse("train", "key") is None
    assert Stages(two).marker("train") is None


# --- events ---


def test_events_come_back_in_order_with_their_time(tmp_path: Path) -> None:
    path = tmp_path / "new" / "events.jsonl"
    assert EventLog.read(path) == []
    log = EventLog(path, clock=lambda: datetime(2026, 3, 1, 9, 30, tzinfo=UTC))
    log.append("start", stage="train", text="two\nlines\u2028ä")
    log.append("step", loss=0.5)
    assert EventLog.read(path) == [
        {"time": "2026-03-01T09:30:00.000+00:00", "kind": "start", "stage": "train", "text": "two\nlines\u2028ä"},
        {"time": "2026-03-01T09:30:00.000+00:00", "kind": "step", "loss": 0.5},
    ]
    with pytest.raises(AssertionError, match="its own time"):
        log.append("step", time=3)


def test_a_line_torn_anywhere_costs_that_line_only(tmp_path: Path) -> None:
    whole = tmp_path / "events.jsonl"
    for step in range(3):
        EventLog(whole).append("step", step=step)
    content = whole.read_bytes()
    for end in range(len(content) + 1):
        torn = tmp_path / "torn.jsonl"
        torn.write_bytes(content[:end])
        kept = EventLog.read(torn)
        EventLog(torn).append("resumed")
        assert [event["kind"] for event in EventLog.read(torn)] == ["step"] * len(kept) + ["resumed"]
        assert len(kept) >= content[:end].count(b"\n")


def test_processes_append_without_tearing_each_other(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    script = (
        "import sys; from pathlib import Path; from luthier.store.events import EventLog\n"
        "for n in range(300): EventLog(Path(sys.argv[1])).append('step', n=n, filler='x' * n)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, str(path)]) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    events = [json.loads(line) for line in path.read_text().splitlines() if line]
    assert sorted(event["n"] for event in events) == sorted([*range(300)] * 2)


def test_events_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DiskFull, match="no space left"):
        EventLog(tmp_path / "events.jsonl").append("step")
