"""Append-only audit log: each entry carries the hash of the one before, so a change to any of them shows.

Beside `audit.jsonl` stands `audit.head` with the number and hash of the last entry, so that a cut-off end shows too.
The chain has no key: who may write both files can write a new history. Against that, keep the head's hash elsewhere.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field

from luthier.errors import RunError
from luthier.records import Record
from luthier.store.clock import Clock, stamp, utc_now
from luthier.store.files import disk_errors, sha256_json, write_all, write_atomic

GENESIS = "0" * 64
"""What the first entry carries as the hash of the one before."""


class AuditEntry(Record):
    seq: int = Field(description="1 for the first entry.")
    time: str = Field(description="UTC, ISO 8601.")
    action: str = Field(description="e.g. 'registry.promote'.")
    actor: str
    subject: str = Field(description="What it was done to, e.g. 'support-intents@3'.")
    details: dict[str, Any]
    previous: str = Field(description="Hash of the entry before.")
    hash: str = Field(description="SHA-256 of this entry without this field.")


class AuditVerdict(Record):
    entries: int = Field(description="Entries that stand unbroken from the start.")
    first_broken: int | None = Field(description="Number of the first entry that is not as it was written.")
    problem: str = Field(description="In words; '' where nothing is to be said.")


class AuditHead(Record):
    """The end of the log."""

    seq: int = 0
    hash: str = GENESIS


class AuditLog:
    """Appends to `path` and checks it; processes take turns through a lock on the file."""

    def __init__(self, path: Path, *, clock: Clock = utc_now) -> None:
        self.path = path
        self.head_path = path.with_suffix(".head")
        self._clock = clock

    def append(self, action: str, *, actor: str, subject: str, details: Mapping[str, object]) -> AuditEntry:
        """Add an entry and wait until it is on disk.

        Raises:
            DiskFull: no space; the entry does not count.
            RunError: the log does not end where its head says, so adding to it would hide that.
        """
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.path, os.O_RDWR | os.O_CREAT) as fd:
                content = _read(fd)
                whole = content[: content.rfind(b"\n") + 1]
                last = self._end(whole)
                body = {
                    "seq": last.seq + 1,
                    "time": stamp(self._clock),
                    "action": action,
                    "actor": actor,
                    "subject": subject,
                    "details": dict(details),
                    "previous": last.hash,
                }
                # As it will be read back: keys are texts, tuples are lists, what is no Unicode is '?'.
                body = json.loads(json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"))
                entry = AuditEntry.model_validate({**body, "hash": sha256_json(body)})
                os.ftruncate(fd, len(whole))  # an entry that a kill tore was never acknowledged
                os.lseek(fd, 0, os.SEEK_END)
                write_all(fd, _line(entry))
                os.fsync(fd)
                write_atomic(self.head_path, AuditHead(seq=entry.seq, hash=entry.hash).to_json())
        return entry

    def entries(self) -> list[AuditEntry]:
        """All entries, oldest first.

        Raises:
            RunError: an entry is broken.
        """
        verdict = self.verify()
        if verdict.first_broken is not None:
            raise self._broken(verdict.problem)
        return [AuditEntry.model_validate_json(line) for line in self._lines()[:-1]]

    def verify(self) -> AuditVerdict:
        """Check every entry against its hash, the one before and the head."""
        last = AuditHead()
        before = last
        *lines, torn = self._lines()
        for number, line in enumerate(lines, start=1):
            if problem := _problem(line, last):
                return AuditVerdict(entries=last.seq, first_broken=number, problem=problem)
            entry = AuditEntry.model_validate_json(line)
            before, last = last, AuditHead(seq=entry.seq, hash=entry.hash)
        head = self._head()
        # A kill between writing an entry and the head leaves the head one entry behind: that is sound.
        if head in (last, before):
            problem = f"after entry {last.seq} stands a line that was never finished" if torn else ""
            return AuditVerdict(entries=last.seq, first_broken=None, problem=problem)
        first_broken, problem = self._end_problem(head, last)
        return AuditVerdict(entries=first_broken - 1, first_broken=first_broken, problem=problem)

    def _end_problem(self, head: AuditHead | None, last: AuditHead) -> tuple[int, str]:
        """Number of the first broken entry and the problem, of a sound chain that its head does not confirm."""
        if head is None:
            return max(last.seq, 1), f"{self.head_path.name} cannot be read: nothing tells where the log ended"
        if head.seq > last.seq:
            return last.seq + 1, f"entries {last.seq + 1} to {head.seq} are missing at the end"
        if head.seq < last.seq:
            return head.seq + 1, f"{self.head_path.name} knows of {head.seq} entries: those after it were added later"
        return max(last.seq, 1), f"entry {last.seq} is not the one that {self.head_path.name} knows"

    def _end(self, whole: bytes) -> AuditHead:
        """The last entry, as far as head and log agree on it."""
        last = before = AuditHead()
        if whole:
            try:
                entry = AuditEntry.model_validate_json(whole.splitlines()[-1])
            except ValueError as error:
                raise self._broken("its last entry cannot be read") from error
            last, before = AuditHead(seq=entry.seq, hash=entry.hash), AuditHead(seq=entry.seq - 1, hash=entry.previous)
        if self._head() not in (last, before):
            raise self._broken(f"it does not end where {self.head_path.name} says")
        return last

    def _head(self) -> AuditHead | None:
        """What the head says: seq 0 where there is no head yet, None where it cannot be read."""
        try:
            return AuditHead.model_validate_json(self.head_path.read_bytes())
        except FileNotFoundError:
            return AuditHead()
        except ValueError:
            return None

    def _lines(self) -> list[bytes]:
        """The whole lines, and last what stands after the final line end: empty unless a kill tore an entry."""
        if not self.path.exists():
            return [b""]
        with _locked(self.path, os.O_RDONLY) as fd:
            return _read(fd).split(b"\n")

    def _broken(self, problem: str) -> RunError:
        return RunError(
            f"{self.path}: the audit log was changed: {problem}",
            way_out=f"run `luthier audit verify`; restore both files, or move them and {self.head_path.name} away",
        )


def _problem(line: bytes, last: AuditHead) -> str:
    """What is wrong with the line that should follow `last`; '' where nothing is."""
    number = last.seq + 1
    try:
        entry = AuditEntry.model_validate_json(line)
    except ValueError:
        return f"entry {number} cannot be read"
    if _line(entry) != line + b"\n" or sha256_json(entry.model_dump(exclude={"hash"})) != entry.hash:
        return f"entry {number} was edited: its hash does not fit what it says"
    if entry.seq != number:
        return f"entry {entry.seq} stands where entry {number} was written"
    if entry.previous != last.hash:
        return f"entry {number} does not carry the hash of the entry before it"
    return ""


def _line(entry: AuditEntry) -> bytes:
    """The one way to write an entry, so that an edit of white space or order shows as well."""
    return (json.dumps(entry.model_dump()) + "\n").encode()


@contextmanager
def _locked(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH if flags == os.O_RDONLY else fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def _read(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)
