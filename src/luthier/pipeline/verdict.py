"""From the records of a finished run to a decision, a card, a report and a registered version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from luthier.approval_records import Standing
from luthier.data_report import DataReport
from luthier.errors import RunError
from luthier.eval_records import EvalReport
from luthier.govern.card import Only, model_card
from luthier.govern.gate import combine, decide, joined_lines, sealed, verify_seal
from luthier.govern.keys import GATE, PrivateKey
from luthier.govern.lineage import lineage
from luthier.pipeline.authority import approvers_of, signer_of, write_signed
from luthier.pipeline.order import ORDER
from luthier.pipeline.standing import standing_of
from luthier.plan_records import Plan
from luthier.prune_records import PruneResult
from luthier.records import Artifact, DataProfile, GateDecision, ModelShape, Version
from luthier.report.evidence import Evidence
from luthier.report.html import render
from luthier.report.tasks import render_tasks, tasks_card
from luthier.search_records import SearchRecord
from luthier.spec.plugins import EXPORTS
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.audit import AuditLog, AuditVerdict
from luthier.store.clock import Clock, utc_now
from luthier.store.files import sha256_file, sha256_files, sha256_json, write_atomic
from luthier.store.registry import registry_of
from luthier.store.runs import RunFolder, weights_sha256
from luthier.store.stages import Stages
from luthier.train_records import TrainResult


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
    run: RunFolder, resolved: ResolvedRecipe, *, actor: str, key: PrivateKey | None = None, clock: Clock = utc_now
) -> tuple[tuple[Evidence, ...], GateDecision]:
    """Decide; write gate.json, card.md, lineage.json, report.html; register; note it in the audit log.

    Of several tasks each has these files of its own, and the run those of all together. A decision that says the same
    as the one on disk leaves that one as it is, with its time and seal, and so leaves a request and an approval valid.

    Args:
        run: whose stages are done.
        resolved: its recipe.
        actor: who is named in the audit log.
        key: signs gate.json, where one is configured.
        clock: of the decision.

    Returns:
        The evidence of each task, and the decision on the run.
    """
    folders, now, approvers = run.tasks(resolved.names), clock(), approvers_of(run.path.parent.parent)
    decisions = {
        name: _decide(folder, part, now)
        for name, folder, part in zip(resolved.names, folders, resolved.parts, strict=True)
    }
    decision = sealed(
        _together(run, resolved, decisions, now),
        approvers_sha256=approvers.sha256 if approvers else "",
        signed_by=key.public.fingerprint if key else "",
    )
    gate, is_new = _settled(run, decision)
    if approvers is not None and gate.approvers_sha256 == approvers.sha256:
        write_atomic(run.approvers, approvers.content)
    if resolved.tasks:
        for folder, own in zip(folders, decisions.values(), strict=True):
            write_atomic(folder.gate, _settled(folder, own)[0].to_json())
    evidence = write_pages(run, resolved, gate)
    if is_new and key is not None:
        write_signed(run.gate, gate.to_json(), key, GATE)
    elif is_new:
        run.gate_signature.unlink(missing_ok=True)
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
            details={
                "passed": gate.passed,
                "seal": gate.seal,
                "run": f"{run.name}/{run.id}",
                "approvers_sha256": gate.approvers_sha256,
                "signed_by": gate.signed_by,
            },
        )
    return evidence, gate


def write_pages(run: RunFolder, resolved: ResolvedRecipe, gate: GateDecision) -> tuple[Evidence, ...]:
    """Write card, lineage and report of each task, and of several those of the run; returns what they show."""
    folders, standing = run.tasks(resolved.names), standing_of(run, gate)
    decisions = [gate] if folders == [run] else [GateDecision.read(folder.gate) for folder in folders]
    evidence = tuple(
        _write_down(folder, part, decision, standing)
        for folder, part, decision in zip(folders, resolved.parts, decisions, strict=True)
    )
    if resolved.tasks:
        write_atomic(run.card, tasks_card(resolved, evidence, gate, standing))
        own = resolved.recipe.has_own_adapters
        write_atomic(run.report, render_tasks(evidence, gate, standing, own_adapters=own))
    return evidence


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


def _write_down(run: RunFolder, resolved: ResolvedRecipe, gate: GateDecision, standing: Standing) -> Evidence:
    """Card, lineage and report of one task."""
    evidence = gather(run, resolved, gate, standing)
    about = {
        "resolved": resolved,
        "shape": evidence.shape,
        "data": evidence.data,
        "train": evidence.train,
        "evaluation": evidence.evaluation,
        "artifacts": evidence.artifacts,
        "gate": gate,
    }
    only = Only(evidence.search, evidence.pruned, standing)
    write_atomic(run.card, model_card(**about, only=only))  # type: ignore[arg-type]
    write_atomic(run.lineage, lineage(**about, pruned=evidence.pruned).to_json())  # type: ignore[arg-type]
    write_atomic(run.report, render(evidence))
    return evidence


_AUTHORITY = {"decided_at", "seal", "approvers_sha256", "signed_by"}


def _settled(run: RunFolder, gate: GateDecision) -> tuple[GateDecision, bool]:
    """The decision that holds, and whether it is a new one: that on disk stays where it says the same.

    Who may approve is part of a refusal, until somebody did: another approvers' file is another decision, which an
    earlier request does not speak of.
    """
    if not run.gate.is_file():
        return gate, True
    before = GateDecision.read(run.gate)
    if not verify_seal(before) or _signature_fault(run, before):
        return gate, True
    if before.model_dump(exclude=_AUTHORITY) != gate.model_dump(exclude=_AUTHORITY):
        return gate, True
    signed_enough = bool(before.signed_by) or not gate.signed_by
    if before.passed:
        stays = signed_enough
    else:
        same_approvers = before.approvers_sha256 == gate.approvers_sha256
        state = standing_of(run, before).state
        stays = state == "approved" or (same_approvers and (signed_enough or state == "waiting"))
    return (before, False) if stays else (gate, True)


def gather(run: RunFolder, resolved: ResolvedRecipe, gate: GateDecision, standing: Standing) -> Evidence:
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
        standing=standing,
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
    if fault := _signature_fault(run, gate):
        return fault
    if version is not None and version.gate_seal != gate.seal:
        return "is not the decision that was registered"
    if changed := [path for stage in ORDER for path in Stages(run).changed(stage.name)]:
        return f"is about files that have changed since: {', '.join(changed)}"
    if gate.eval_sha256 != _eval_sha256(run) or gate.artifacts_sha256 != sha256_file(run.artifacts_index):
        return "is about an evaluation or artifacts that have changed since"
    for one in read_artifacts(
        run
    ):  # the index is sealed; markers of stages are not, and know large files by size alone
        found = sha256_files(run.path / one.path)
        if odd := sorted(name for name in {*found, *one.sha256} if found.get(name) != one.sha256.get(name)):
            return f"is about files that have changed since: {one.path}/{odd[0]}"
    resolved = ResolvedRecipe.read(run.resolved)
    folders = dict(zip(resolved.names, run.tasks(resolved.names), strict=True))
    if resolved.tasks:
        own = {name: GateDecision.read(folder.gate) for name, folder in folders.items()}
        edited = [name for name, decision in own.items() if not verify_seal(decision)]
        if edited or joined_lines(own, own_adapters=resolved.recipe.has_own_adapters) != gate.lines:
            more = f"; that of {edited[0]} was edited" if edited else ""
            return f"is not made of what the gate.json of its tasks say{more}"
    for task in folders.values():
        if weights_sha256(task.tuned) != EvalReport.read(task.eval_report).weights_sha256:
            return "is about weights that have changed since"
    return ""


def _signature_fault(run: RunFolder, gate: GateDecision) -> str:
    """What is wrong with the signature of a decision that says it is signed; '' where nothing is."""
    if not gate.signed_by:
        return ""
    try:
        signer = signer_of(run.gate, GATE)
    except RunError as error:
        return f"says that it is signed, and {error.what}"
    return "" if signer.fingerprint == gate.signed_by else f"is signed by another key than {gate.signed_by}"
