"""The runs that stand behind a run: what it was merged from, who taught it, and so on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from luthier.spec.resolve import ResolvedRecipe
from luthier.store.runs import RunFolder


def runs_behind(runs: Iterable[RunFolder]) -> dict[str, RunFolder]:
    """NAME/ID -> run: these, those that they were merged from, those that taught them, and whoever stands behind those.

    What any of them learned, these have met.
    """
    found: dict[str, RunFolder] = {}
    waiting = list(runs)
    while waiting:
        run = waiting.pop()
        name = f"{run.name}/{run.id}"
        if name in found:
            continue
        found[name] = run
        resolved = ResolvedRecipe.read(run.resolved)
        waiting += [RunFolder(Path(parent.path)) for parent in resolved.parents]
        waiting += [
            RunFolder(Path(part.teacher.tuned).parent.parent)
            for part in resolved.parts
            if part.teacher is not None and part.teacher.tuned
        ]
    return found
