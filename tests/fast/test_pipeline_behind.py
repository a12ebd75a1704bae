"""Whoever stands behind a run has learned for it, however far behind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from luthier.pipeline import behind
from luthier.pipeline.behind import runs_behind
from luthier.store.runs import RunFolder


def test_parents_teachers_and_those_behind_them_are_found_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def tuned_of(name: str) -> str:
        return str(tmp_path / name / "1/train/adapter")

    def of(*, merged: tuple[str, ...] = (), taught: tuple[str, ...] = ()) -> SimpleNamespace:
        return SimpleNamespace(
            parents=[SimpleNamespace(path=str(tmp_path / name / "1")) for name in merged],
            parts=[SimpleNamespace(teacher=None)]
            + [
                SimpleNamespace(teacher=SimpleNamespace(tuned=str(tmp_path / name / "1/train/adapter")))
                for name in taught
            ]
            + [SimpleNamespace(teacher=SimpleNamespace(tuned=""))],
        )

    runs = {
        "student": of(taught=("merge",)),
        "merge": of(merged=("one", "two")),
        "one": of(taught=("old",)),
        "two": of(merged=("one",)),
        "old": of(),
        "stranger": of(merged=("student",)),
    }
    monkeypatch.setattr(behind.ResolvedRecipe, "read", lambda path: runs[path.parent.parent.name])
    found = runs_behind([RunFolder(tmp_path / "student" / "1")])
    assert sorted(found) == ["merge/1", "old/1", "one/1", "student/1", "two/1"]
    assert found["old/1"].path == tmp_path / "old" / "1"
