"""Write the report of a finished run anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from luthier.errors import RunError
from luthier.govern.gate import joined_lines
from luthier.pipeline.standing import standing_of
from luthier.pipeline.verdict import checked_gate, gather
from luthier.records import GateDecision
from luthier.report.evidence import Evidence
from luthier.report.html import render
from luthier.report.summary import summary
from luthier.report.tasks import render_tasks, tasks_summary
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.files import write_atomic
from luthier.store.runs import RunFolder, lock


def write_report(where: str) -> tuple[Path, tuple[Evidence, ...], GateDecision]:
    """Write RUN/report.html from the records on disk; of several tasks, that of each too.

    Raises:
        RunError: the run is not finished, or its gate does not belong to its files.
    """
    run = RunFolder.open(where).whole
    with lock(run):
        resolved, gate = ResolvedRecipe.read(run.resolved), checked_gate(run, None)
        folders = run.tasks(resolved.names)
        decisions = {name: GateDecision.read(folder.gate) for name, folder in zip(resolved.names, folders, strict=True)}
        own = resolved.recipe.has_own_adapters
        if resolved.tasks and joined_lines(decisions, own_adapters=own) != gate.lines:
            raise RunError(
                f"{run.gate} is not made of what the gate.json of its tasks say",
                way_out=f"luthier gate {run.path} decides anew",
            )
        evidence, standing = [], standing_of(run, gate)
        for folder, part, decision in zip(folders, resolved.parts, decisions.values(), strict=True):
            evidence.append(gather(folder, part, decision, standing))
            write_atomic(folder.report, render(evidence[-1]))
        if resolved.tasks:
            write_atomic(run.report, render_tasks(evidence, gate, standing, own_adapters=own))
    return run.report, tuple(evidence), gate


def closing_lines(evidence: Sequence[Evidence], gate: GateDecision) -> list[str]:
    """What `luthier run` says at its end."""
    return summary(evidence[0]) if len(evidence) == 1 else tasks_summary(evidence, gate, evidence[0].standing)


def evaluation_document(evidence: Sequence[Evidence]) -> dict[str, object]:
    """The evaluation for `--json`; of several tasks, that of each by its name."""
    reports = {one.evaluation.name: one.evaluation.model_dump(mode="json") for one in evidence}
    return {"evaluation": next(iter(reports.values()))} if len(reports) == 1 else {"evaluations": reports}
