"""From the records of a finished run to a decision, a card, a report and a registered version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from luthier.data_report import DataReport
from luthier.errors import RunError
from luthier.eval_records import EvalReport
from luthier.govern.card import model_card
from luthier.govern.gate import combine, decide, verify_seal
from luthier.govern.lineage import lineage
from luthier.pipeline.order import ORDER
from luthier.prune_records import PruneResult
from luthier.records import Artifact, DataProfile, GateDecision, ModelShape, Plan, TrainResult, Version
from luthier.report.evidence import Evidence
from luthier.report.html import render
from luthier.report.tasks import render_tasks, tasks_card
from luthier.search_records import SearchRecord
from luthier.spec.plugins import EXPORTS
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.audit import AuditLog, AuditVerdict
from luthier.store.clock import Clock, utc_now
from luthier.store.files import sha256_file, sha256_json, write_atomic
from luthier.store.registry import registry_of
from luthier.store.runs import RunFolder, weights_sha256
from luthier.store.stages import Stages


def audit_of(out: Path) -> AuditLog:
    """The audit log beside the runs in `out`."""
    return AuditLog(out / "audit.jsonl")


def verify_audit(out: Path) -> AuditVerdict:
    """Check the audit log of `out`; where there is none and nothing was registered yet, the verdict says so.

    Raises:
        RunError: there is no log although versions are registered, or no such folder.
    """
    log = audit_of(out)
    verdict = log.verify()
    if log.path.exists() or verdict.first_broken is not None:
        return verdict
    missing = f"there is no audit log at {log.path}"
    if not out.is_dir():
        raise RunError(f"{missing}: the folder does not exist", way_out="name the folder of runs with --out")
    if versions := registry_of(out).versions():
        raise RunError(
            f"{missing}, although {len(versions)} versions are registered beside it",
            way_out=f"restore it and {log.head_path.name} from a backup; what was done cannot be checked without them",
        )
    return verdict.model_copy(update={"problem": missing})


def read_artifacts(run: RunFolder) -> tuple[Artifact, ...]:
    """What was exported; of a task that has an adapter of its own, what was exported of that.

    Raises:
        RunError: nothing was exported yet.
    """
    if not run.artifacts_index.is_file():
        raise RunError(f"{run.artifacts_index} is missing", way_out=f"luthier export {run.path}")
    found = (Artifact.model_validate(one) for one in json.loads(run.artifacts_index.read_text(encoding="utf-8")))
    own = {f"artifacts/{kind}/{run.path.name}" for kind in EXPORTS.names()}
    return tuple(one for one in found if not run.trains_alone or one.path in own)


def conclude(
    run: RunFolder, resolved: ResolvedRecipe, *, actor: str, clock: Clock = utc_now
) -> tuple[tuple[Evidence, ...], GateDecision]:
    """Decide; write gate.json, card.md, lineage.json, report.html; register; note it in the audit log.

    Of several tasks each has these files of its own, and the run those of all together. A decision that says the same
    as the one on disk leaves that one as it is, with its time and seal.

    Returns:
        The evidence of each task, and the decision on the run.
    """
    folders, now = run.tasks(resolved.names), clock()
    decisions = {
        name: _decide(folder, part, now)
        for name, folder, part in zip(resolved.names, folders, resolved.parts, strict=True)
    }
    gate, is_new = _settled(run, _together(run, resolved, decisions, now))
    evidence = []
    for folder, part, decision in zip(folders, resolved.parts, decisions.values(), strict=True):
        own = gate if folder == run else _settled(folder, decision)[0]
        evidence.append(_write_down(folder, part, own))
        if folder != run:
            write_atomic(folder.gate, own.to_json())
    if resolved.tasks:
        write_atomic(run.card, tasks_card(resolved, evidence, gate))
        write_atomic(run.report, render_tasks(evidence, gate, own_adapters=resolved.recipe.has_own_adapters))
    if is_new:
        write_atomic(run.gate, gate.to_json())
    version = registry_of(run.path.parent.parent).register(
        resolved.recipe.name,
        run.path,
        gate_passed=gate.passed,
        gate_seal=gate.seal,
        weights_sha256=TrainResult.read(run.train_result).weights_sha256,
    )
    if is_new:
        audit_of(run.path.parent.parent).append(
            "gate",
            actor=actor,
            subject=f"{version.name}@{version.version}",
            details={"passed": gate.passed, "seal": gate.seal, "run": f"{run.name}/{run.id}"},
        )
    return tuple(evidence), gate


def _decide(run: RunFolder, resolved: ResolvedRecipe, now: datetime) -> GateDecision:
    """On one task."""
    return decide(
        resolved=resolved,
        shape=ModelShape.read(run.shape),
        report=EvalReport.read(run.eval_report),
        artifacts=read_artifacts(run),
        data=DataReport.read(run.data_report),
        eval_sha256=sha256_file(run.eval_report),
        artifacts_sha256=sha256_file(run.artifacts_index),
        now=now,
    )


def _together(
    run: RunFolder, resolved: ResolvedRecipe, decisions: Mapping[str, GateDecision], now: datetime
) -> GateDecision:
    """On the run: that of its one task, or of all of them."""
    if not resolved.tasks:
        return next(iter(decisions.values()))
    return combine(
        decisions,
        recipe_sha256=resolved.sha256,
        eval_sha256=_eval_sha256(run),
        artifacts_sha256=sha256_file(run.artifacts_index),
        now=now,
        own_adapters=resolved.recipe.has_own_adapters,
    )


def _eval_sha256(run: RunFolder) -> str:
    """Of the report, or over the reports of all tasks."""
    names = ResolvedRecipe.read(run.resolved).names
    found = [sha256_file(folder.eval_report) for folder in run.tasks(names)]
    return found[0] if len(found) == 1 else sha256_json(found)


def _write_down(run: RunFolder, resolved: ResolvedRecipe, gate: GateDecision) -> Evidence:
    """Card, lineage and report of one task."""
    evidence = gather(run, resolved, gate)
    about = {
        "resolved": resolved,
        "shape": evidence.shape,
        "data": evidence.data,
        "train": evidence.train,
        "evaluation": evidence.evaluation,
        "artifacts": evidence.artifacts,
        "gate": gate,
        "pruned": evidence.pruned,
    }
    write_atomic(run.card, model_card(**about, search=evidence.search))  # type: ignore[arg-type]
    write_atomic(run.lineage, lineage(**about).to_json())  # type: ignore[arg-type]
    write_atomic(run.report, render(evidence))
    return evidence


def _settled(run: RunFolder, gate: GateDecision) -> tuple[GateDecision, bool]:
    if not run.gate.is_file():
        return gate, True
    before = GateDecision.read(run.gate)
    if not verify_seal(before):
        return gate, True
    same = before.model_dump(exclude={"decided_at", "seal"}) == gate.model_dump(exclude={"decided_at", "seal"})
    return (before, False) if same else (gate, True)


def gather(run: RunFolder, resolved: ResolvedRecipe, gate: GateDecision) -> Evidence:
    """All records of a finished run, or of a task of it, for the report."""
    stages = Stages(run.whole)
    markers = {stage.name: marker for stage in ORDER if (marker := stages.marker(stage.name)) is not None}
    shown = run.path
    if shown.is_relative_to(Path.cwd()):
        shown = shown.relative_to(Path.cwd())
    return Evidence(
        resolved=resolved,
        profile=DataProfile.read(run.profile),
        shape=ModelShape.read(run.shape),
        plan=Plan.read(run.whole.plan),
        data=DataReport.read(run.data_report),
        train=TrainResult.read(run.train_result),
        evaluation=EvalReport.read(run.eval_report),
        artifacts=read_artifacts(run),
        gate=gate,
        stage_seconds={name: marker.seconds for name, marker in markers.items() if not marker.reused_from},
        peak_memory_gib=max((marker.peak_memory_gib for marker in markers.values()), default=0.0),
        run=str(shown),
        search=SearchRecord.read(run.search) if run.search.is_file() else None,
        pruned=PruneResult.read(run.whole.pruned_result) if resolved.recipe.prune is not None else None,
    )


def checked_gate(run: RunFolder, version: Version | None) -> GateDecision:
    """The decision on disk, provided that it is whole and about this run's files as they are now.

    Raises:
        RunError: it is missing, was edited, is not the one that was registered, or the run has changed since.
    """
    gate = GateDecision.read(run.gate)
    if problem := _why_not(gate, run, version):
        raise RunError(f"{run.gate} {problem}", way_out=f"luthier gate {run.path} decides anew")
    return gate


def _why_not(gate: GateDecision, run: RunFolder, version: Version | None) -> str:
    """Why the decision may not be believed; '' where it may."""
    if not verify_seal(gate):
        return "was edited after it was sealed"
    if version is not None and version.gate_seal != gate.seal:
        return "is not the decision that was registered"
    if changed := [path for stage in ORDER for path in Stages(run).changed(stage.name)]:
        return f"is about files that have changed since: {', '.join(changed)}"
    if gate.eval_sha256 != _eval_sha256(run) or gate.artifacts_sha256 != sha256_file(run.artifacts_index):
        return "is about an evaluation or artifacts that have changed since"
    for task in run.tasks(ResolvedRecipe.read(run.resolved).names):
        if weights_sha256(task.tuned) != EvalReport.read(task.eval_report).weights_sha256:
            return "is about weights that have changed since"
    return ""
