"""Atomic writes: killed, refused or out of space at the worst instant."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import DiskFull, RunError
from luthier.store.files import (
    beside,
    disk_errors,
    process_exists,
    recover,
    sha256_file,
    sha256_files,
    sha256_json,
    write_atomic,
    write_atomic_dir,
)
from luthier.store.home import home

KILLED_AT = """
import os, signal, sys
from pathlib import Path
from luthier.store.files import write_atomic, write_atomic_dir
def die(*args, **kwargs): os.kill(os.getpid(), signal.SIGKILL)
{patch}
{action}
"""


def killed(patch: str, action: str) -> None:
    """Run `action` in a process that kills itself where `patch` says."""
    done = subprocess.run([sys.executable, "-c", KILLED_AT.format(patch=patch, action=action)], check=False)
    assert done.returncode == -signal.SIGKILL


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("data", ["text: ä \n", b"\x00\xff", "", "x" * 200_000])
def test_write_atomic_writes_exactly_that_and_leaves_nothing_else(tmp_path: Path, data: str | bytes) -> None:
    path = tmp_path / "new" / "file"
    write_atomic(path, "older")
    write_atomic(path, data)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize("instant", ["os.fsync = die", "Path.replace = die"])
def test_a_kill_before_the_rename_keeps_the_old_file(tmp_path: Path, instant: str) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")
    killed(instant, f"write_atomic(Path({str(path)!r}), 'new')")
    assert path.read_text() == "old"
    assert len(recover(tmp_path)) == 1
    assert names(tmp_path) == ["file"]


def test_a_folder_replaces_the_older_one_whole(tmp_path: Path) -> None:
    final = tmp_path / "a" / "final"
    for content in ({"one": "1", "two": "2"}, {"three": "3"}):
        with write_atomic_dir(final) as folder:
            for name, text in content.items():
                (folder / name).write_text(text)
    assert names(final) == ["three"]
    assert names(final.parent) == ["final"]


def test_a_failing_block_leaves_the_older_folder(tmp_path: Path) -> None:
    final = tmp_path / "final"
    with write_atomic_dir(final) as folder:
        (folder / "kept").write_text("kept")
    with pytest.raises(ZeroDivisionError), write_atomic_dir(final) as folder:
        (folder / "half").write_text(f"{1 // 0}")
    assert names(tmp_path) == ["final"]
    assert names(final) == ["kept"]


BUILD = """
with write_atomic_dir(Path({path!r})) as folder:
    (folder / "new").write_text("new")
"""


@pytest.mark.parametrize(
    ("instant", "survivor"),
    [
        ("os.fsync = die", "old"),
        ("import luthier.store.files as f; f._replace_folder = die", "old"),
        # after the older folder stepped aside and before the new one took its place
        (
            "rename = Path.rename\nPath.rename = lambda s, t: (rename(s, t), die()) if t.name.endswith('.old') "
            "else rename(s, t)",
            "old",
        ),
        ("import shutil; shutil.rmtree = die", "new"),
    ],
)
def test_a_kill_at_any_instant_keeps_one_whole_folder(tmp_path: Path, instant: str, survivor: str) -> None:
    final = tmp_path / "final"
    with write_atomic_dir(final) as folder:
        (folder / "old").write_text("old")
    killed(instant, BUILD.format(path=str(final)))
    recover(tmp_path)
    assert names(tmp_path) == ["final"]
    assert names(final) == [survivor]


def test_two_writers_of_one_folder_both_succeed(tmp_path: Path) -> None:
    final = tmp_path / "final"
    with write_atomic_dir(final) as one, write_atomic_dir(final) as two:
        (one / "one").write_text("1")
        (two / "two").write_text("2")
    assert names(tmp_path) == ["final"]
    assert names(final) == ["one"]  # left last


def test_recover_leaves_what_living_processes_write_and_what_it_does_not_know(tmp_path: Path) -> None:
    mine = beside(tmp_path / "file", "tmp")
    mine.touch()
    (tmp_path / ".hidden.tmp").touch()
    assert recover(tmp_path) == []
    assert len(names(tmp_path)) == 2


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_so_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")
    write = os.write

    def fills_up(fd: int, data: bytes) -> int:
        if len(data) > 4:  # the first bytes still fit
            return write(fd, data[:4])
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "write", fills_up)
    with pytest.raises(DiskFull) as caught:
        write_atomic(path, "new content")
    assert str(path) in caught.value.what
    assert "no space left" in caught.value.what
    assert "free some space" in caught.value.way_out
    assert caught.value.exit_code == 6
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


SMALL_DISK = """
import sys
from pathlib import Path
from luthier.errors import DiskFull
from luthier.store.files import write_atomic, write_atomic_dir
disk = Path(sys.argv[1])
write_atomic(disk / "file", "old")
for attempt in range(2):
    try:
        if attempt:
            write_atomic(disk / "file", "x" * 10**6)
        else:
            with write_atomic_dir(disk / "folder") as folder:
                (folder / "big").write_bytes(b"x" * 10**6)
    except DiskFull as error:
        assert str(disk) in error.what
    else:
        sys.exit("a megabyte fitted on a disk of 64 KiB")
assert [path.name for path in disk.iterdir()] == ["file"]
assert (disk / "file").read_text() == "old"
"""


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    mount = f'mount -t tmpfs -o size=64k small {tmp_path} && exec "$@"'
    unshare = ["unshare", "--mount", "--map-root-user", "sh", "-c", mount, "sh"]
    if sys.platform != "linux" or subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a small disk")
    subprocess.run([*unshare, sys.executable, "-c", SMALL_DISK, str(tmp_path)], check=True)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOTDIR])
def test_a_place_that_may_not_be_written_is_the_users(tmp_path: Path, code: int) -> None:
    with pytest.raises(RunError) as caught, disk_errors(tmp_path / "file"):
        raise OSError(code, os.strerror(code))
    assert f"{tmp_path / 'file'}: cannot be written: {os.strerror(code)}" == caught.value.what
    assert "--out" in caught.value.way_out


def test_other_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "gone")


def test_a_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written: File exists"):
        write_atomic(tmp_path / "file" / "inside", "x")
    with pytest.raises(RunError, match="Not a directory"), write_atomic_dir(tmp_path / "file"):
        pass


def test_hashes_of_files(tmp_path: Path) -> None:
    content = {"b": b"2", "a/c": b"", "a/b": b"x" * 100_000}
    for name, data in content.items():
        write_atomic(tmp_path / name, data)
    hashes = sha256_files(tmp_path)
    assert list(hashes) == sorted(content)
    assert hashes == {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    assert sha256_file(tmp_path / "b") == hashes["b"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_the_json_hash_survives_reordering_and_the_disk(content: dict[str, object]) -> None:
    reordered = dict(reversed(content.items()))
    assert sha256_json(content) == sha256_json(reordered) == sha256_json(json.loads(json.dumps(content)))
    assert sha256_json(content) != sha256_json({**content, "one more": 1})


def test_home_is_where_the_environment_says(tmp_path: Path) -> None:
    assert home({"LUTHIER_HOME": str(tmp_path / "new")}) == tmp_path / "new"
    assert (tmp_path / "new").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        home({"LUTHIER_HOME": str(tmp_path / "file")})


def test_home_is_in_the_cache_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home({}) == tmp_path / ".cache" / "luthier"


def test_a_process_that_has_ended_is_gone_though_nobody_has_asked_for_it_yet(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    left = tmp_path / f".final.{child.pid}-00000000.tmp"
    left.mkdir()
    assert process_exists(child.pid)
    assert recover(tmp_path) == []
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and still in the table of processes
    assert not process_exists(child.pid)
    assert recover(tmp_path) == [left]
    child.communicate()
    assert not process_exists(child.pid)
