"""Write the report of a finished run anew."""

from __future__ import annotations

from pathlib import Path

from luthier.pipeline.verdict import checked_gate, gather
from luthier.report.evidence import Evidence
from luthier.report.html import render
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.files import write_atomic
from luthier.store.runs import RunFolder, lock


def write_report(where: str) -> tuple[Path, Evidence]:
    """Write RUN/report.html from the records on disk.

    Raises:
        RunError: the run is not finished, or its gate does not belong to its files.
    """
    run = RunFolder.open(where)
    with lock(run):
        evidence = gather(run, ResolvedRecipe.read(run.resolved), checked_gate(run, None))
        write_atomic(run.report, render(evidence))
    return run.report, evidence
