"""Whoever stands behind a run has learned for it, however far behind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from luthier.errors import RunError
from luthier.pipeline import behind
from luthier.pipeline.behind import runs_behind
from luthier.store.runs import RunFolder


def test_parents_teachers_and_those_behind_them_are_found_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def tuned_of(name: str) -> str:
        return str(tmp_path / name / "1/train/adapter")

    def of(
        *, merged: tuple[str, ...] = (), taught: tuple[str, ...] = (), base: str = "some-hub/name", exported: str = ""
    ) -> SimpleNamespace:
        return SimpleNamespace(
            recipe=SimpleNamespace(model=SimpleNamespace(name=base)),
            file=lambda name: tmp_path / name,
            parents=[SimpleNamespace(path=str(tmp_path / name / "1")) for name in merged],
            parts=[SimpleNamespace(teacher=None)]
            + [
                SimpleNamespace(
                    teacher=SimpleNamespace(tuned=tuned_of(name), shape=SimpleNamespace(path=str(tmp_path)))
                )
                for name in taught
            ]
            + [SimpleNamespace(teacher=SimpleNamespace(tuned="", shape=SimpleNamespace(path=exported or "nowhere")))],
        )

    runs = {
        "student": of(taught=("merge",)),
        "merge": of(merged=("one", "two")),
        "one": of(taught=("old",)),
        "two": of(merged=("one",)),
        "old": of(base="before/latest/artifacts/merged"),
        "before": of(exported=str(tmp_path / "first" / "1" / "artifacts" / "merged" / "kind")),
        "first": of(),
        "stranger": of(merged=("student",)),
    }
    for name in runs:
        folder = RunFolder.create(tmp_path, name, "1")
        folder.resolved.touch()
        (folder.artifacts / "merged" / "kind").mkdir(parents=True)
        (folder.path.parent / "latest").unlink(missing_ok=True)
        (folder.path.parent / "latest").symlink_to("1")
    monkeypatch.setattr(behind.ResolvedRecipe, "read", lambda path: runs[path.parent.parent.name])
    found = runs_behind([RunFolder(tmp_path / "student" / "1")])
    assert sorted(found) == ["before/1", "first/1", "merge/1", "old/1", "one/1", "student/1", "two/1"]
    assert found["old/1"].path == tmp_path / "old" / "1"
    (tmp_path / "old" / "1" / "recipe.resolved.json").unlink()
    with pytest.raises(RunError, match="old/1 is gone, so what old/1 learned is not known"):
        runs_behind([RunFolder(tmp_path / "student" / "1")])
