"""The audit chain: every way to change it shows, every kill leaves it sound."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.errors import DiskFull, RunError
from luthier.store.audit import AuditLog, AuditVerdict
from luthier.store.files import sha256_json


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    """A log with four entries."""
    log = AuditLog(tmp_path / "audit.jsonl", clock=lambda: datetime(2026, 3, 1, tzinfo=UTC))
    for number in range(1, 5):
        log.append("registry.promote", actor="ana", subject=f"tickets@{number}", details={"from": number - 1})
    return log


def lines(log: AuditLog) -> list[bytes]:
    return log.path.read_bytes().splitlines(keepends=True)


def rewrite(log: AuditLog, changed: list[bytes]) -> AuditVerdict:
    log.path.write_bytes(b"".join(changed))
    return log.verify()


def forged(line: bytes, **changes: object) -> bytes:
    """The line with changes and a hash that fits them."""
    body = {**json.loads(line), **changes}
    del body["hash"]
    return (json.dumps({**body, "hash": sha256_json(body)}) + "\n").encode()


def test_a_log_that_nobody_touched_is_sound(log: AuditLog) -> None:
    assert log.verify() == AuditVerdict(entries=4, first_broken=None, problem="")
    entries = log.entries()
    assert [entry.seq for entry in entries] == [1, 2, 3, 4]
    assert entries[2].details == {"from": 2}
    assert entries[2].previous == entries[1].hash


def test_no_log_is_a_sound_log(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    assert log.verify() == AuditVerdict(entries=0, first_broken=None, problem="")
    assert log.entries() == []
    assert list(tmp_path.iterdir()) == []


def test_an_edited_entry(log: AuditLog) -> None:
    for number, line in enumerate(lines(log), start=1):
        changed = lines(log)
        changed[number - 1] = line.replace(b"ana", b"eve")
        verdict = rewrite(log, changed)
        assert (verdict.entries, verdict.first_broken) == (number - 1, number)
        assert verdict.problem == f"entry {number} was edited: its hash does not fit what it says"
        changed[number - 1] = line
        assert rewrite(log, changed).first_broken is None


def test_an_edited_entry_with_a_hash_that_fits(log: AuditLog) -> None:
    one, two, three, four = lines(log)
    verdict = rewrite(log, [one, forged(two, actor="eve"), three, four])
    assert (verdict.first_broken, verdict.problem) == (3, "entry 3 does not carry the hash of the entry before it")
    verdict = rewrite(log, [one, two, three, forged(four, actor="eve")])
    assert (verdict.first_broken, verdict.problem) == (4, "entry 4 is not the one that audit.head knows")


def test_a_removed_entry(log: AuditLog) -> None:
    for number in range(1, 4):
        kept = lines(log)
        removed = kept.pop(number - 1)
        verdict = rewrite(log, kept)
        assert verdict.first_broken == number
        assert verdict.problem == f"entry {number + 1} stands where entry {number} was written"
        kept.insert(number - 1, removed)
        rewrite(log, kept)


def test_a_cut_off_end(log: AuditLog) -> None:
    whole = lines(log)
    for kept in range(4):
        verdict = rewrite(log, whole[:kept])
        assert (verdict.entries, verdict.first_broken) == (kept, kept + 1)
        assert verdict.problem == f"entries {kept + 1} to 4 are missing at the end"
    log.path.unlink()
    assert log.verify().first_broken == 1


def test_reordered_and_inserted_entries(log: AuditLog) -> None:
    one, two, three, four = lines(log)
    verdict = rewrite(log, [one, three, two, four])
    assert (verdict.first_broken, verdict.problem) == (2, "entry 3 stands where entry 2 was written")
    inserted = forged(two, subject="invented")
    assert rewrite(log, [one, inserted, two, three, four]).first_broken == 3
    assert rewrite(log, [one, b"not json\n", two, three, four]).problem == "entry 2 cannot be read"
    assert rewrite(log, [one, one, two, three, four]).first_broken == 2
    last = json.loads(four)
    more = [forged(four, seq=5, previous=last["hash"])]
    more.append(forged(more[0], seq=6, previous=json.loads(more[0])["hash"]))
    verdict = rewrite(log, [one, two, three, four, *more])
    assert verdict.first_broken == 5
    assert verdict.problem == "audit.head knows of 4 entries: those after it were added later"


@pytest.mark.parametrize("head", [None, "torn {"])
def test_a_head_that_is_gone_or_torn(log: AuditLog, head: str | None) -> None:
    log.head_path.unlink()
    if head is not None:
        log.head_path.write_text(head)
    verdict = log.verify()
    assert verdict.first_broken is not None
    assert "audit.head" in verdict.problem
    with pytest.raises(RunError, match="does not end where"):
        log.append("more", actor="ana", subject="", details={})


def test_nothing_is_added_to_a_log_that_was_cut_off(log: AuditLog) -> None:
    cut = lines(log)[:-1]
    rewrite(log, cut)
    with pytest.raises(RunError) as caught:
        log.append("more", actor="ana", subject="", details={})
    assert "does not end where audit.head says" in caught.value.what
    assert "luthier audit verify" in caught.value.way_out
    assert lines(log) == cut
    with pytest.raises(RunError, match="entries 4 to 4 are missing"):
        log.entries()
    rewrite(log, [*cut, b"not json\n"])
    with pytest.raises(RunError, match="its last entry cannot be read"):
        log.append("more", actor="ana", subject="", details={})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_shows(log: AuditLog, data: st.DataObject) -> None:
    original = log.path.read_bytes()
    place = data.draw(st.integers(0, len(original) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != original[place]))
    log.path.write_bytes(original[:place] + bytes([byte]) + original[place + 1 :])
    verdict = log.verify()
    log.path.write_bytes(original)
    assert verdict.first_broken == original[:place].count(b"\n") + 1


TEXT = st.text(st.characters(codec=None, categories=("L", "N", "P", "Z", "Cc", "Cs")), max_size=8)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(details=st.dictionaries(TEXT, st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.lists(TEXT)))
def test_whatever_can_be_added_stays_sound(log: AuditLog, details: dict[str, object]) -> None:
    log.append("any", actor="ana", subject="\udcff", details=details)
    assert log.verify().first_broken is None


KILLED = """
import os, signal, sys
from pathlib import Path
import luthier.store.audit as audit
def die(*args): os.kill(os.getpid(), signal.SIGKILL)
{patch}
audit.AuditLog(Path(sys.argv[1])).append("more", actor="ana", subject="", details={{}})
"""


@pytest.mark.parametrize(
    ("patch", "entries", "problem"),
    [
        ("audit.write_all = die", 4, ""),
        (
            "audit.write_all = lambda fd, data: (os.write(fd, data[:40]), die())",
            4,
            "after entry 4 stands a line that was never finished",
        ),
        ("audit.write_atomic = die", 5, ""),
    ],
)
def test_a_kill_while_adding_leaves_a_sound_log_that_goes_on(
    log: AuditLog, patch: str, entries: int, problem: str
) -> None:
    script = KILLED.format(patch=patch)
    done = subprocess.run([sys.executable, "-c", script, str(log.path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert log.verify() == AuditVerdict(entries=entries, first_broken=None, problem=problem)
    assert len(log.entries()) == entries
    assert log.append("after", actor="ana", subject="", details={}).seq == entries + 1
    assert log.verify() == AuditVerdict(entries=entries + 1, first_broken=None, problem="")


def test_a_kill_while_adding_the_first_entry(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    for expected in (1, 2):
        script = KILLED.format(patch="audit.write_atomic = die" if expected == 1 else "")
        subprocess.run([sys.executable, "-c", script, str(log.path)], check=False)
        assert log.verify() == AuditVerdict(entries=expected, first_broken=None, problem="")


def test_processes_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    script = (
        "import sys; from pathlib import Path; from luthier.store.audit import AuditLog\n"
        "for n in range(15): AuditLog(Path(sys.argv[1])).append('x', actor='a', subject='s', details={'n': n})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, str(path)]) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert AuditLog(path).verify() == AuditVerdict(entries=30, first_broken=None, problem="")


def test_a_full_disk_leaves_a_sound_log(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write

    def fills_up(fd: int, data: bytes) -> int:
        if len(data) > 30:
            return write(fd, data[:30])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", fills_up)
        with pytest.raises(DiskFull, match="audit"):
            log.append("more", actor="ana", subject="", details={})
    assert log.verify().first_broken is None
    assert log.append("more", actor="ana", subject="", details={}).seq == 5
