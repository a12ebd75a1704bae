"""Ranks are started together, started again when they die, and end with one voice and one exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.rendezvous import RendezvousClosedError

import luthier
from luthier.errors import LuthierError, OutOfMemory, RankLost, Stopped, UserError
from luthier.launch import torchrun
from luthier.launch.child import StageFailed
from luthier.launch.ranks import is_first, leave_word, ranks_here
from luthier.launch.torchrun import rendezvous, verdict
from luthier.spec.launch import Launch
from luthier.store.runs import RunFolder, lock

# Found before the real `luthier.cli`: what each rank does, and the agent as it is. No torch, so that ranks are quick.
CLI = """
import os, signal, sys, time
from pathlib import Path
from luthier.errors import DataError, Stopped
from luthier.launch.child import be_parent, die_on_signals, die_with_parent
from luthier.launch.ranks import leave_word
kind, stage, run = sys.argv[1:4]
run = Path(run)
if kind == "_ranks":
    from luthier.launch.child import StageFailed
    from luthier.launch.torchrun import work_together
    from luthier.errors import LuthierError
    from luthier.spec.launch import Launch
    die_with_parent(every_seconds=0.05)
    be_parent()
    say = lambda line: print(line, file=sys.stderr, flush=True)
    try:
        work_together(stage, run, Launch.model_validate_json(sys.argv[4]), say=say)
    except StageFailed as error:
        sys.exit(error.exit_code)
    except LuthierError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)
    sys.exit(0)
die_on_signals()
die_with_parent(every_seconds=0.05)
rank, again = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
def stop(number, frame):
    leave_word(Stopped("stopped with a checkpoint"))
    (run / f"stopped{rank}").touch()
    sys.exit(5)
if stage == "wait":
    signal.signal(signal.SIGTERM, stop)
keys = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "MASTER_ADDR", "GLOO_SOCKET_IFNAME")
(run / f"seen{rank}.{again}").write_text(" ".join([str(os.getpid()), *(os.environ[key] for key in keys)]))
while rank == "1" and not (run / f"seen0.{again}").exists():  # else the other may be ended before it was seen
    time.sleep(0.01)
if rank == "1" and (stage == "die" or (stage == "die-once" and again == "0")):
    os.kill(os.getpid(), signal.SIGKILL)
if rank == "1" and stage == "decide":
    leave_word(DataError("row 7 is bad", way_out="mend it"))
    sys.exit(2)
if stage in ("wait", "decide") or (stage, again) == ("die-once", "0") or stage == "die":
    time.sleep(60)
"""
PARENT = """
import sys
from pathlib import Path
from luthier.errors import LuthierError
from luthier.launch.child import run_stage
from luthier.spec.launch import Launch
from luthier.store.runs import RunFolder, lock
run = RunFolder(Path(sys.argv[2]))
launch = Launch(type="torchrun", nproc_per_node=2, max_restarts=1)
with lock(run) as fd:
    try:
        run_stage(sys.argv[1], run.path, lock_fd=fd, threads=4, offline=True, launch=launch)
    except LuthierError as error:
        sys.exit(error.exit_code)
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    package = tmp_path / "fake" / "luthier"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"__path__.append({str(Path(luthier.__file__).parent)!r})\n")
    (package / "cli.py").write_text(CLI)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    return RunFolder.create(tmp_path / "runs", "r", "1")


def start(run: RunFolder, stage: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PARENT, stage, str(run.path)], text=True, stderr=subprocess.PIPE)


def seen(run: RunFolder) -> dict[str, list[str]]:
    """'RANK.START' -> process and environment."""
    return {path.name.removeprefix("seen"): path.read_text().split() for path in run.path.glob("seen*")}


def wait_for(condition: Any, what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def exists(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def is_clean(run: RunFolder) -> bool:
    return not list(run.path.glob(".ranks*"))


@pytest.mark.slow
def test_ranks_are_started_with_their_share_of_the_threads_and_stay_on_this_machine(run: RunFolder) -> None:
    parent = start(run, "done")
    assert (parent.wait(60), parent.communicate()[1]) == (0, "")
    found = seen(run)
    assert {name: values[1:] for name, values in found.items()} == {
        f"{rank}.0": [str(rank), "2", "2", "2", "localhost", "lo"] for rank in (0, 1)
    }
    assert is_clean(run)


@pytest.mark.slow
def test_a_rank_that_dies_is_started_again_with_the_others(run: RunFolder) -> None:
    parent = start(run, "die-once")
    said = parent.communicate(timeout=60)[1]
    assert parent.returncode == 0
    assert set(seen(run)) == {"0.0", "1.0", "0.1", "1.1"}
    assert said == (
        "  warning: rank 1 was killed (signal 9); start 1 of 1 again, "
        "the same command goes on from the last checkpoint\n"
    )


@pytest.mark.slow
def test_a_rank_that_dies_too_often_is_a_lack_of_memory(run: RunFolder) -> None:
    parent = start(run, "die")
    said = parent.communicate(timeout=60)[1]
    assert parent.returncode == 6
    assert "error: stage 'die': rank 1 was killed (signal 9); most often the kernel does this" in said
    assert said.count("error: ") == 1
    assert not any(exists(int(values[0])) for values in seen(run).values())
    assert is_clean(run)


@pytest.mark.slow
def test_a_rank_that_ends_by_its_own_decision_is_not_started_again_and_says_why_once(run: RunFolder) -> None:
    parent = start(run, "decide")
    said = parent.communicate(timeout=60)[1]
    assert (parent.returncode, said) == (2, "error: row 7 is bad\n  -> mend it\n")
    assert set(seen(run)) == {"0.0", "1.0"}


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["the parent", "one rank"])
def test_a_signal_to_stop_reaches_every_rank_and_the_end_is_theirs(run: RunFolder, whom: str) -> None:
    parent = start(run, "wait")
    wait_for(lambda: len(seen(run)) == 2 and all(seen(run).values()), "the ranks did not start")
    if whom == "the parent":
        parent.send_signal(signal.SIGTERM)
    else:
        os.kill(int(seen(run)["1.0"][0]), signal.SIGTERM)
    said = parent.communicate(timeout=60)[1]
    assert (parent.returncode, said) == (5, "error: stopped with a checkpoint\n")
    assert (run.path / "stopped0").exists()
    assert (run.path / "stopped1").exists()


@pytest.mark.slow
def test_ranks_die_with_the_command_that_started_them(run: RunFolder) -> None:
    parent = start(run, "wait")
    wait_for(lambda: len(seen(run)) == 2 and all(seen(run).values()), "the ranks did not start")
    parent.kill()
    parent.communicate()
    wait_for(lambda: not any(exists(int(values[0])) for values in seen(run).values()), "ranks live on")

    def is_taken_up() -> bool:  # the lock is free; what they left is cleared away once the system has buried the agent
        with lock(run, wait_seconds=5):
            return is_clean(run)

    wait_for(is_taken_up, "something is left")


def failed(exitcode: int, **word: Any) -> Any:
    return SimpleNamespace(exitcode=exitcode, error_file_data=word)


def judged(*failures: Any, stop_asked: bool = False) -> tuple[LuthierError, list[str]]:
    said: list[str] = []
    return verdict("train", dict(enumerate(failures)), stop_asked=stop_asked, say=said.append), said


def test_one_error_stands_for_all() -> None:
    early, late = ({"exit_code": 2, "message": f"{n}", "timestamp": str(n)} for n in (1, 2))
    error, said = judged(failed(2, **late), failed(-9), failed(2, **early))
    assert (type(error), error.exit_code, said) == (StageFailed, 2, ["error: 1"])
    error, said = judged(failed(5), failed(-9), failed(-15))
    assert (type(error), said) == (OutOfMemory, [])
    assert "rank 1 was killed (signal 9);" in str(error)
    assert "launch.nproc_per_node" in error.way_out
    error, _ = judged(failed(-11), failed(5))
    assert (type(error), str(error).splitlines()[0]) == (LuthierError, "stage 'train': rank 0 was killed (signal 11)")
    error, _ = judged(failed(1), failed(5))
    assert "rank 0 ended with exit code 1" in str(error)
    error, _ = judged(failed(5), failed(5))
    assert "rank 0 ended with exit code 5, rank 1 ended" in str(error)
    error, _ = judged(failed(-15), failed(-15), stop_asked=True)
    assert (type(error), error.exit_code) == (Stopped, 5)


def test_an_error_is_left_for_the_agent_where_there_is_one(tmp_path: Path) -> None:
    place = {"TORCHELASTIC_ERROR_FILE": str(tmp_path / "error.json")}
    assert not leave_word(UserError("x"), {})
    assert leave_word(RankLost("x"), place)
    assert not (tmp_path / "error.json").exists()
    assert leave_word(UserError("x", way_out="y"), place)
    assert '"exit_code": 2' in (tmp_path / "error.json").read_text()


def test_what_a_process_knows_of_the_others() -> None:
    assert (is_first({}), ranks_here({})) == (True, 1)
    assert (is_first({"RANK": "1"}), ranks_here({"LOCAL_WORLD_SIZE": "4"})) == (False, 4)


def test_machines_meet_where_the_recipe_says_and_one_machine_meets_itself() -> None:
    alone = rendezvous(Launch(nproc_per_node=2))
    assert (alone.endpoint, alone.min_nodes, alone.max_nodes, alone.local_addr) == ("localhost:0", 1, 1, "localhost")
    assert alone.run_id != rendezvous(Launch(nproc_per_node=2)).run_id
    two = Launch(nnodes=2, rdzv_endpoint="first:29400")
    assert (rendezvous(two).endpoint, rendezvous(two).min_nodes, rendezvous(two).local_addr) == ("first:29400", 2, None)
    assert rendezvous(two).run_id == rendezvous(two).run_id
    assert rendezvous(two).get_as_int("join_timeout") == 15 * 60


def test_machines_that_do_not_meet_are_an_end_that_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Alone:
        def __init__(self, *given: Any, **more: Any) -> None:
            pass

        def run(self) -> None:
            raise RendezvousClosedError("closed")

    monkeypatch.setattr(torchrun, "_Agent", Alone)
    monkeypatch.setattr(torchrun, "worker_spec", lambda *given: None)
    for name in ("TORCHELASTIC_SIGNALS_TO_HANDLE", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")  # so that it is as it was afterwards
    launch = Launch(nnodes=2, rdzv_endpoint="first:29400")
    with pytest.raises(Stopped, match="the machines did not meet at first:29400, or one of them gave up: closed"):
        torchrun.work_together("train", tmp_path, launch, say=print)
    assert not list(tmp_path.iterdir())


def test_a_machine_too_many_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalElasticAgent, "run", lambda self, role: None)
    agent = object.__new__(torchrun._Agent)
    agent._rdzv_handler = SimpleNamespace(shutdown=lambda: True)
    with pytest.raises(Stopped, match="the other machines were complete without this one"):
        agent.run()


def test_a_signal_before_there_are_ranks_ends_the_agent() -> None:
    agent = object.__new__(torchrun._Agent)
    agent._pcontext = None
    with pytest.raises(Stopped, match="stopped before the ranks had started"):
        agent._stop(signal.SIGTERM, None)
    assert agent.stop_asked
