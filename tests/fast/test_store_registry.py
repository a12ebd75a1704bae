"""The registry: versions, aliases and the way back."""

from __future__ import annotations

import itertools
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.errors import DiskFull, RunError
from luthier.records import Version
from luthier.store.registry import Registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "runs" / "registry.sqlite")


def register(registry: Registry, name: str = "tickets", *, run: str = "one", passed: bool = True) -> Version:
    return registry.register(
        name, registry.path.parent / name / run, gate_passed=passed, gate_seal=f"seal of {run}", weights_sha256=run
    )


def with_versions(registry: Registry, count: int) -> Registry:
    for number in range(1, count + 1):
        register(registry, run=f"run{number}")
    return registry


def test_versions_are_numbered_for_each_name(registry: Registry) -> None:
    assert register(registry, run="one").version == 1
    assert register(registry, run="two", passed=False).version == 2
    assert register(registry, "mails").version == 1
    assert [(v.name, v.version, v.gate_passed) for v in registry.versions()] == [
        ("mails", 1, True),
        ("tickets", 1, True),
        ("tickets", 2, False),
    ]
    assert [v.version for v in registry.versions("tickets")] == [1, 2]
    assert registry.versions("unknown") == []


def test_the_same_run_with_the_same_weights_is_the_same_version(registry: Registry) -> None:
    first = register(registry, run="one", passed=False)
    register(registry, run="two")
    registry.promote("tickets", 1)
    again = register(registry, run="one", passed=True)
    assert (again.version, again.created_at, again.aliases) == (1, first.created_at, ("production",))
    assert again.gate_passed  # the gate was decided anew
    other = registry.register("tickets", Path(first.run), gate_passed=True, gate_seal="", weights_sha256="other")
    assert other.version == 3


def test_a_version_is_found_by_number_alias_or_name_alone(registry: Registry) -> None:
    with_versions(registry, 3)
    registry.promote("tickets", 2)
    registry.promote("tickets", 2, "staging")
    assert registry.get("tickets").version == 3
    assert registry.get("tickets@1").version == 1
    assert registry.get("tickets", "@1").version == 1
    assert registry.get("tickets", "production").version == 2
    assert registry.get("tickets@production").aliases == ("production", "staging")


def test_what_is_not_known_lists_what_is(registry: Registry) -> None:
    with pytest.raises(RunError, match="has no 'tickets'") as caught:
        registry.get("tickets")
    assert "it is empty; `luthier run` registers a version" in caught.value.way_out
    assert not registry.path.parent.exists()
    with_versions(registry, 2)
    with pytest.raises(RunError, match="has no 'mails'") as caught:
        registry.get("mails@production")
    assert "known: tickets" in caught.value.way_out
    for wrong in ("tickets@3", "tickets@production", "tickets@01"):
        with pytest.raises(RunError, match=f"has no {wrong}") as caught:
            registry.get(wrong)
        assert "versions: 1, 2; aliases: none" in caught.value.way_out
    with pytest.raises(RunError, match="has no tickets@3"):
        registry.promote("tickets", 3)
    with pytest.raises(RunError, match="'3' cannot be an alias"):
        registry.promote("tickets", 1, "3")
    registry.promote("tickets", 1)
    with pytest.raises(RunError) as caught:
        registry.rollback("tickets", "staging")
    assert "aliases: production" in caught.value.way_out


def test_rollback_goes_back_step_by_step(registry: Registry) -> None:
    with_versions(registry, 3)
    for version in (1, 2, 3):
        assert registry.promote("tickets", version).aliases == ("production",)
    assert registry.rollback("tickets").version == 2
    assert registry.rollback("tickets").version == 1
    with pytest.raises(RunError, match="is version 1, and no other version held it before") as caught:
        registry.rollback("tickets")
    assert "promote another version: 1, 2, 3" in caught.value.way_out
    registry.promote("tickets", 3)
    assert registry.rollback("tickets").version == 1
    with sqlite3.connect(registry.path) as db:  # the history is kept, the ways back included
        assert db.execute("SELECT version, rolled_back_at IS NOT NULL FROM promotions ORDER BY id").fetchall() == [
            (1, 0),
            (2, 1),
            (3, 1),
            (3, 1),
        ]
    db.close()


COUNTER = itertools.count()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.integers(0, 3), max_size=12))
def test_an_alias_is_a_stack_of_its_holders(registry: Registry, steps: list[int]) -> None:
    """0 rolls back; promoting the holder again changes nothing."""
    with_versions(registry, 3)
    alias = f"alias{next(COUNTER)}"
    registry.promote("tickets", 1, alias)
    stack = [1]
    for step in steps:
        if step:
            registry.promote("tickets", step, alias)
            stack += [step] if step != stack[-1] else []
        elif len(stack) > 1:
            registry.rollback("tickets", alias)
            stack.pop()
        assert registry.get("tickets", alias).version == stack[-1]


def test_registry_and_runs_move_together(registry: Registry, tmp_path: Path) -> None:
    register(registry, run="one")
    registry.path.parent.rename(tmp_path / "moved")
    moved = Registry(tmp_path / "moved" / "registry.sqlite")
    assert moved.get("tickets").run == str(tmp_path / "moved" / "tickets" / "one")
    outside = moved.register("mails", tmp_path / "far", gate_passed=True, gate_seal="", weights_sha256="")
    assert outside.run == str((tmp_path / "far").resolve())


def test_a_failed_change_is_undone(registry: Registry) -> None:
    with_versions(registry, 2)
    registry.promote("tickets", 1)
    broken = Registry(registry.path, clock=lambda: (_ for _ in ()).throw(ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        broken.promote("tickets", 2)
    assert registry.get("tickets@production").version == 1


def test_processes_register_and_promote_at_once(registry: Registry) -> None:
    script = (
        "import sys; from pathlib import Path; from luthier.store.registry import Registry\n"
        "registry = Registry(Path(sys.argv[1]))\n"
        "for n in range(5):\n"
        "    version = registry.register('x', Path(f'{sys.argv[2]}{n}'), gate_passed=True, gate_seal='',"
        " weights_sha256='')\n"
        "    registry.promote('x', version.version)\n"
    )
    command = [sys.executable, "-c", script, str(registry.path)]
    writers = [subprocess.Popen([*command, letter]) for letter in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert [version.version for version in registry.versions("x")] == list(range(1, 11))
    with sqlite3.connect(registry.path) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    db.close()


def test_a_file_that_is_no_registry_or_a_newer_one(registry: Registry) -> None:
    registry.path.parent.mkdir()
    registry.path.write_text("not a database, just a text that is long enough to be looked at " * 20)
    with pytest.raises(RunError, match="cannot be used as a registry: file is not a database") as caught:
        registry.versions()
    assert "move it away" in caught.value.way_out
    registry.path.unlink()
    with sqlite3.connect(registry.path) as db:
        db.execute("PRAGMA user_version = 2")
    db.close()
    with pytest.raises(RunError, match=r"written by a newer version of Luthier \(schema 2\)"):
        registry.versions()


def test_a_registry_on_a_full_disk(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    register(registry)
    connect = sqlite3.connect

    def tiny(*arguments: object, **options: object) -> sqlite3.Connection:
        db = connect(*arguments, **options)  # type: ignore[call-overload]
        db.execute("PRAGMA max_page_count = 1")
        return db

    monkeypatch.setattr(sqlite3, "connect", tiny)
    name_of_many_pages = "x" * 2**20
    with pytest.raises(DiskFull, match="no space left on the disk"):
        register(registry, name_of_many_pages)
    assert [version.name for version in registry.versions()] == ["tickets"]
