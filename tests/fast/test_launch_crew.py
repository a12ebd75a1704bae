"""A crew of processes makes what one process makes, in order, and neither outlives it nor hides what went wrong."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.data.crew import Alone, in_parts
from luthier.errors import DataError, MissingExtra, OutOfMemory
from luthier.launch.crew import FEWEST_PARTS, ProcessCrew
from luthier.launch.offline import NetworkRefused


def doubled(part: int) -> tuple[int, int]:
    """(twice the part, who did it)."""
    return 2 * part, os.getpid()


def slow_first(part: int) -> int:
    time.sleep(0.3 if part == 0 else 0)
    return part


def faulty(part: int) -> int:
    if part == 2:
        raise DataError("row 2 is bad", way_out="mend it")
    if part == 3:
        raise MissingExtra("spacy", extra="privacy", purpose="looking")
    return part


def killed(part: int) -> int:
    if part == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return part


def reach_out(part: int) -> str:
    try:
        socket.create_connection(("198.51.100.7", 80), timeout=0.1)
    except NetworkRefused:
        return "refused"
    except OSError:
        return "tried"
    return "there"


def test_parts_come_back_in_order_from_other_processes() -> None:
    with ProcessCrew(2) as crew:
        made = list(crew.each(doubled, range(12)))
        assert list(crew.each(slow_first, range(8))) == list(range(8))
    assert [value for value, _ in made] == [value for value, _ in Alone().each(doubled, range(12))]
    assert os.getpid() not in {who for _, who in made}


def test_few_parts_and_one_worker_start_no_process() -> None:
    for workers, parts in ((2, FEWEST_PARTS - 1), (1, 20)):
        with ProcessCrew(workers) as crew:
            assert {who for _, who in crew.each(doubled, range(parts))} == {os.getpid()}


def test_parts_are_made_no_sooner_than_they_are_needed() -> None:
    asked = []

    def parts() -> Iterator[int]:
        for number in range(40):
            asked.append(number)
            yield number

    with ProcessCrew(2) as crew:
        made = crew.each(slow_first, parts())
        assert next(made) == 0
        assert len(asked) <= 2 * crew.workers + 1
        assert list(made) == list(range(1, 40))


def test_an_error_of_a_worker_is_the_same_error_here() -> None:
    with ProcessCrew(2) as crew, pytest.raises(DataError, match="row 2 is bad") as raised:
        list(crew.each(faulty, range(8)))
    assert (type(raised.value), raised.value.what, raised.value.way_out) == (DataError, "row 2 is bad", "mend it")
    with ProcessCrew(2) as crew, pytest.raises(MissingExtra, match=r"looking needs the package 'spacy'.*\n  -> pip"):
        list(crew.each(faulty, [3, 3, 3, 3]))


def test_a_killed_worker_is_a_lack_of_memory() -> None:
    with ProcessCrew(2) as crew, pytest.raises(OutOfMemory, match="one of the 2 processes that share the work"):
        list(crew.each(killed, range(20)))


def test_workers_are_as_offline_as_their_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_OFFLINE", "1")
    with ProcessCrew(2) as crew:
        assert set(crew.each(reach_out, range(6))) == {"refused"}


def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, time\n"
        "from luthier.launch.crew import ProcessCrew\n"
        "def work(part):\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    with ProcessCrew(2) as crew:\n"
        "        list(crew.each(work, range(8)))\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        parent.kill()
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{worker}").exists() for worker in workers):
            assert time.monotonic() < deadline, "workers are left"
            time.sleep(0.1)


def test_in_parts() -> None:
    assert list(in_parts([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]]
    assert list(in_parts([], 2)) == []


def test_cycles_are_still_collected_where_rows_are_held() -> None:
    program = """
import gc, weakref
from luthier.launch.collector import collect_seldom

class Node:
    pass

collect_seldom()
assert gc.get_freeze_count() > 0
held = [(n, n) for n in range(1000)]
node = Node()
node.itself, gone = node, weakref.ref(node)
del node
assert gone() is not None, "a cycle is not freed by counting"
rows = [[n] for n in range(200_000)]
assert gone() is None and len(held) == 1000
"""
    subprocess.run([sys.executable, "-c", program], check=True)
