"""A stage is a child process: however it ends, the parent says so; and neither outlives the other unnoticed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.errors import LuthierError, OutOfMemory, RunError, Stopped
from luthier.launch.child import COMPUTING, SHORT_LIVED, StageFailed, StageUse, run_stage, stage_environment
from luthier.store.runs import RunFolder, lock

# Found before the real `luthier.cli` (the package's folder is put at the end of its own path): what the child does.
CLI = """
import os, signal, sys, time
from pathlib import Path
from luthier.launch.child import die_on_signals, die_with_parent
_, stage, run = sys.argv[1:]
run = Path(run)
if not stage.startswith("stubborn"):
    die_on_signals()
    die_with_parent(every_seconds=0.05)
if stage == "memory":
    block = bytes(range(256)) * 2**19  # 128 MiB
if stage.startswith("exit"):
    sys.exit(int(stage.removeprefix("exit")))
if stage.startswith("signal"):
    os.kill(os.getpid(), int(stage.removeprefix("signal")))
if stage == "checkpoint":
    def stop(number, frame):
        (run / "stopped").write_text("with a checkpoint")
        sys.exit(5)
    signal.signal(signal.SIGTERM, stop)
if stage == "done-anyway":
    def stop(number, frame):
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
if stage == "environment":
    print("to standard output", flush=True)
    from luthier.launch.child import COMPUTING, SHORT_LIVED
    keys = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE", "LUTHIER_OFFLINE", "LUTHIER_PARENT")
    keys = (*keys, *COMPUTING, *SHORT_LIVED)
    seen = [f"{key}={os.environ.get(key)}" for key in keys]
    import random  # a file of this name stands in the current folder
    seen += [f"stdin={sys.stdin.read()!r}", f"session={os.getsid(0) == os.getpid()}", f"random={random.__file__}"]
    (run / "seen").write_text(chr(10).join(seen))
if stage in ("checkpoint", "done-anyway", "wait") or stage.startswith("stubborn"):
    (run / "pid").write_text(str(os.getpid()))
    time.sleep(3 if stage.startswith("stubborn") else 60)
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    package = tmp_path / "fake" / "luthier"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"__path__.append({str(Path(luthier.__file__).parent)!r})\n")
    (package / "cli.py").write_text(CLI)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    return RunFolder.create(tmp_path / "runs", "r", "1")


def start(run: RunFolder, stage: str, **settings: Any) -> StageUse:
    with lock(run) as fd:
        return run_stage(stage, run.path, lock_fd=fd, **({"threads": 1, "offline": True} | settings))


def wait_for(condition: Any, what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def exists(pid: int) -> bool:
    """Whether a process still works; one that has ended and was not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_stage_that_is_done_tells_what_it_took(run: RunFolder) -> None:
    began = time.monotonic()
    use = start(run, "exit0")
    assert 0 < use.seconds <= time.monotonic() - began
    assert not use.stop_asked
    # The system counts what a parent held when it started the child, so a small parent asks.
    peaks = []
    for stage in ("exit0", "memory"):
        command = [sys.executable, "-c", PARENT, stage, str(run.path)]
        peaks.append(float(subprocess.run(command, capture_output=True, check=True).stdout))
    assert 0.12 < peaks[1] - peaks[0] < 0.2


@pytest.mark.parametrize("code", [1, 2, 3, 5, 6, 7, 42])
def test_an_exit_code_is_handed_on(run: RunFolder, code: int) -> None:
    with pytest.raises(StageFailed, match=f"stage 'exit{code}' ended with exit code {code}") as caught:
        start(run, f"exit{code}")
    assert caught.value.exit_code == code


@pytest.mark.parametrize(
    ("number", "error", "what", "exit_code"),
    [
        (signal.SIGKILL, OutOfMemory, r"was killed after it had used \d\.\d\d GiB; most often the kernel", 6),
        (signal.SIGTERM, Stopped, "was stopped\n  -> run the same command again", 5),
        (signal.SIGSEGV, LuthierError, r"was ended by signal 11 \(Segmentation fault\) after it had used", 1),
        (signal.SIGABRT, LuthierError, r"was ended by signal 6 \(Aborted\) after it had used", 1),
    ],
)
def test_a_signal_that_ends_the_child_is_named(
    run: RunFolder, number: int, error: type[LuthierError], what: str, exit_code: int
) -> None:
    with pytest.raises(error, match=what) as caught:
        start(run, f"signal{int(number)}")
    assert type(caught.value) is error
    assert caught.value.exit_code == exit_code
    assert caught.value.way_out


def test_a_stage_that_was_killed_says_what_would_make_that_stage_need_less(run: RunFolder) -> None:
    with pytest.raises(OutOfMemory) as caught:
        start(run, f"signal{int(signal.SIGKILL)}", less_memory="lower this key")
    assert caught.value.way_out == "lower this key, or free memory; the same command goes on from what is finished"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_parent_is_passed_on_and_the_parent_waits(run: RunFolder, number: int) -> None:
    before = signal.getsignal(number)

    def ask() -> None:
        wait_for((run.path / "pid").exists, "the child did not start")
        os.kill(os.getpid(), number)

    threading.Thread(target=ask).start()
    with pytest.raises(StageFailed) as caught:
        start(run, "checkpoint")
    assert caught.value.exit_code == 5
    assert (run.path / "stopped").read_text() == "with a checkpoint"
    assert signal.getsignal(number) == before


def test_a_child_that_cannot_do_better_is_stopped_and_one_that_was_done_is_done(run: RunFolder) -> None:
    for stage in ("wait", "done-anyway"):
        (run.path / "pid").unlink(missing_ok=True)

        def ask() -> None:
            wait_for((run.path / "pid").exists, "the child did not start")
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=ask).start()
        if stage == "wait":
            with pytest.raises(Stopped):
                start(run, stage)
        else:
            assert start(run, stage).stop_asked


def test_the_childs_surroundings(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('a file of the user shadows the standard library')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LUTHIER_OFFLINE")
    for key in COMPUTING:
        monkeypatch.setenv(key, "as the user has it")
    start(run, "environment", threads=3, offline=False)
    seen = dict(line.split("=", 1) for line in (run.path / "seen").read_text().splitlines())
    assert (seen["OMP_NUM_THREADS"], seen["MKL_NUM_THREADS"], seen["HF_HUB_OFFLINE"]) == ("3", "3", "1")
    assert (seen["LUTHIER_OFFLINE"], seen["LUTHIER_PARENT"]) == ("None", "None")
    assert (seen["stdin"], seen["session"]) == ("''", "True")
    assert {key: seen[key] for key in COMPUTING} == COMPUTING
    assert not seen["random"].startswith(str(tmp_path))
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "to standard output\n")
    assert stage_environment(threads=1, offline=True)["LUTHIER_OFFLINE"] == "1"
    assert {seen[key] for key in SHORT_LIVED} == {"None"}
    start(run, "environment", short_lived=True)
    seen = dict(line.split("=", 1) for line in (run.path / "seen").read_text().splitlines())
    assert {key: seen[key] for key in SHORT_LIVED} == SHORT_LIVED


PARENT = """
import sys
from pathlib import Path
from luthier.launch.child import run_stage
from luthier.store.runs import RunFolder, lock
run = RunFolder(Path(sys.argv[2]))
with lock(run) as fd:
    print(run_stage(sys.argv[1], run.path, lock_fd=fd, threads=1, offline=True).peak_memory_gib)
"""


def parent_of(stage: str, run: RunFolder) -> tuple[subprocess.Popen[bytes], int]:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, stage, str(run.path)])
    wait_for(lambda: (run.path / "pid").exists() and (run.path / "pid").read_text(), "the child did not start")
    return parent, int((run.path / "pid").read_text())


def test_a_child_ends_when_its_parent_is_killed(run: RunFolder) -> None:
    parent, child = parent_of("wait", run)
    assert exists(child)
    parent.kill()
    parent.wait()
    wait_for(lambda: not exists(child), "the child lives on")
    with lock(run, wait_seconds=5):
        pass


def test_a_child_whose_parent_was_gone_before_it_looked_ends_too(run: RunFolder) -> None:
    environment = os.environ | {"LUTHIER_PARENT": str(2**22 + 1)}
    command = [sys.executable, "-P", "-m", "luthier.cli", "_stage", "wait", str(run.path)]
    assert subprocess.run(command, env=environment, timeout=20, check=False).returncode == 1


def test_the_lock_is_held_as_long_as_the_child_works_though_its_parent_was_killed(run: RunFolder) -> None:
    parent, child = parent_of("stubborn", run)
    parent.kill()
    parent.wait()
    with pytest.raises(RunError, match=f"is in use by process {child}\n  -> wait"), lock(run, wait_seconds=0.1):
        pass
    os.kill(child, signal.SIGKILL)
    with lock(run, wait_seconds=5):
        pass


def test_what_torchrun_tells_other_programs_is_not_taken_for_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("PAYROLL_RANK", "7")
    made = stage_environment(threads=1, offline=True)
    assert made["PAYROLL_RANK"] == "7"
    assert not [name for name in made if name.startswith("TORCHELASTIC") or name.endswith(("LOCAL_RANK", "WORLD_SIZE"))]
    assert "RANK" not in made
    assert "GROUP_RANK" not in made
