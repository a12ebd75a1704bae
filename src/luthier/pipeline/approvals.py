"""Past the gate by two people: one asks and says why, another one approves; both sign, and the audit log keeps it."""

from __future__ import annotations

import getpass
import hashlib
from pathlib import Path

from luthier.approval_records import Approval, ApprovalRequest, Standing
from luthier.errors import LuthierError, RunError, UserError
from luthier.govern.approvers import Approvers
from luthier.govern.keys import APPROVAL, REQUEST, PrivateKey
from luthier.pipeline.authority import SIGNING_KEY, approvers_of, approvers_place, write_signed
from luthier.pipeline.standing import read_request, refusal, refuse_faulty, sealed_approvers, standing_of
from luthier.pipeline.verdict import audit_of, checked_gate, write_pages
from luthier.records import GateDecision, Version
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.clock import Clock, stamp, utc_now
from luthier.store.files import sha256_file
from luthier.store.registry import registry_of
from luthier.store.runs import RunFolder, lock


def ask(run: RunFolder, reason: str, *, key: PrivateKey | None, clock: Clock = utc_now) -> Standing:
    """Ask that a run is used although its gate refused it; signed, in request.json.

    A request that waits is replaced, and so are files that were tampered with; an approval of it is taken away.

    Args:
        run: as `luthier gate` has just decided on it.
        reason: why.
        key: the requester's.
        clock: of the request.

    Raises:
        RunError: the decision does not belong to the files.
        UserError: there is nothing to ask for, no reason or key was given, or nobody could approve it.
    """
    reason = " ".join(reason.split())
    if not reason:
        raise UserError("--request needs a reason", way_out='say why, e.g. --request "the old model is worse still"')
    if not reason.isprintable():
        raise UserError("--request: the reason holds signs that are not shown", way_out="write it in plain text")
    with lock(run):
        gate, version = _decision(run)
        if (state := standing_of(run, gate).state) in ("passed", "approved"):
            raise UserError(f"{run.path}: the gate's decision needs no request, it is {state}", way_out="just use it")
        mine = _needed(key)
        approvers = _approvers(run, gate)
        if not approvers.others(mine.public):
            raise UserError(
                f"nobody could approve this: {approvers.where} names no key but that of the requester",
                way_out="add the key of somebody else, and decide anew: luthier gate RUN",
            )
        called = getpass.getuser()
        if not called.isprintable():
            raise UserError(f"the name of this user, {called!r}, holds signs that are not shown", way_out="set LOGNAME")
        request = ApprovalRequest(
            run=f"{run.name}/{run.id}",
            seal=gate.seal,
            not_met=tuple(line.line for line in gate.lines if not line.passed),
            reason=reason,
            requested_by=called,
            key=mine.public.line,
            requested_at=stamp(clock),
        )
        details = {
            "seal": gate.seal,
            "reason": reason,
            "requested_by": approvers.described(mine.public, request.requested_by),
            "request_sha256": _sha256(request),
        }
        _note(run, version, "request", details)
        for old in (run.approval, run.approval_signature):
            old.unlink(missing_ok=True)
        write_signed(run.request, request.to_json(), mine, REQUEST)
        return _shown(run, gate)


def approve(run: RunFolder, *, key: PrivateKey | None, clock: Clock = utc_now) -> Standing:
    """Approve what was asked for; signed, in approval.json. No stage is run for it.

    Raises:
        RunError: the decision does not belong to the files, or something was tampered with.
        UserError: there is nothing to approve, no key was given, or it is not one that may approve this.
    """
    with lock(run):
        gate, version = _decision(run)
        standing = standing_of(run, gate)
        refuse_faulty(run, standing)
        if standing.state in ("passed", "approved"):
            raise UserError(f"{run.path}: there is nothing to approve, it is {standing.state}", way_out="just use it")
        if standing.state == "refused":
            note = f" ({standing.note})" if standing.note else ""
            raise UserError(
                f"{run.path}: nobody has asked for an approval{note}",
                way_out=f"somebody else asks first: luthier gate {run.path} --request REASON",
            )
        mine = _needed(key)
        approvers, (request, requester) = _approvers(run, gate), read_request(run)
        name = approvers.name_of(mine.public) if mine.public in approvers.may_approve else ""
        if not name:
            raise UserError(
                f"the key {mine.public.fingerprint} ({mine.where}) may not approve: it does not stand in "
                f"{approvers_place(run.path.parent.parent)} as it was when the gate decided",
                way_out="let somebody approve who does; or add it, decide anew with `luthier gate`, and ask again",
            )
        if mine.public == requester or name == approvers.name_of(requester):
            raise UserError(
                f"the key {mine.public.fingerprint} is that of {name}, who asked for this approval",
                way_out=f"somebody else has to approve it: {', '.join(sorted(approvers.others(requester)))}",
            )
        approval = Approval(
            run=f"{run.name}/{run.id}",
            seal=gate.seal,
            request_sha256=sha256_file(run.request),
            reason=request.reason,
            requester_key=request.key,
            approved_by=name,
            key=mine.public.line,
            approvers_sha256=approvers.sha256,
            approved_at=stamp(clock),
        )
        details = {
            "seal": gate.seal,
            "reason": request.reason,
            "requested_by": standing.requested_by,
            "approved_by": approvers.described(mine.public, name),
            "approvers_sha256": approvers.sha256,
            "request_sha256": approval.request_sha256,
            "approval_sha256": _sha256(approval),
        }
        _note(run, version, "approve", details)
        write_signed(run.approval, approval.to_json(), mine, APPROVAL)
        return _shown(run, gate)


def refused(run: RunFolder, gate: GateDecision, standing: Standing) -> LuthierError:
    """The error with which `luthier gate` and `run` end where a run may not be used."""
    lines = ", ".join(line.line for line in gate.lines if not line.passed)
    return refusal(
        f"the gate refused {run.path}: {lines}", run, standing, otherwise="see gate.json and report.html there"
    )


def standing_in(version: Version) -> Standing:
    """Of a registered version, for a list; a run whose files are gone is as it was registered."""
    run = RunFolder(Path(version.run))
    if not run.gate.is_file():
        return Standing(state="passed" if version.gate_passed else "refused", note=f"{run.gate} is missing")
    try:
        gate = GateDecision.read(run.gate)
    except RunError as error:
        return Standing(state="refused", fault=error.what)
    if gate.seal != version.gate_seal:
        return Standing(state="refused", fault=f"{run.gate} is not the decision that was registered")
    return standing_of(run, gate)


def _decision(run: RunFolder) -> tuple[GateDecision, Version]:
    """The decision on disk, with the version that it was registered for."""
    known = registry_of(run.path.parent.parent).versions(run.name)
    found = [one for one in known if Path(one.run).resolve() == run.path.resolve()]
    if not found:
        raise RunError(f"{run.path} is not registered", way_out=f"luthier gate {run.path} decides and registers it")
    return checked_gate(run, found[-1]), found[-1]


def _needed(key: PrivateKey | None) -> PrivateKey:
    if key is None:
        raise UserError(
            "no key to sign with was named",
            way_out=f"--key FILE (e.g. ~/.ssh/id_ed25519, or a name of `luthier keys new`), or set {SIGNING_KEY}",
        )
    return key


def _approvers(run: RunFolder, gate: GateDecision) -> Approvers:
    """Who may approve, by the file as it was when the gate decided."""
    out = run.path.parent.parent
    sealed = sealed_approvers(run, gate)
    if sealed is None:
        there = approvers_of(out) is not None
        raise UserError(
            f"nobody may approve: there was no approvers' file at {approvers_place(out)} when the gate decided",
            way_out=f"decide anew: luthier gate {run.path}" if there else "write one; docs/gate.md says how",
        )
    return sealed


def _note(run: RunFolder, version: Version, action: str, details: dict[str, str]) -> None:
    """Write it to the audit log, before it counts."""
    audit_of(run.path.parent.parent).append(
        action, actor=getpass.getuser(), subject=f"{version.name}@{version.version}", details=details
    )


def _shown(run: RunFolder, gate: GateDecision) -> Standing:
    """Card and report say where the run stands now."""
    write_pages(run, ResolvedRecipe.read(run.resolved), gate)
    return standing_of(run, gate)


def _sha256(record: ApprovalRequest | Approval) -> str:
    return hashlib.sha256(record.to_json().encode("utf-8")).hexdigest()
