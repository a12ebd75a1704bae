"""Where a run stands: passed, refused, waiting for an approval, or approved. Read from the disk each time, checked."""

from __future__ import annotations

import hashlib
from pathlib import Path

from luthier.approval_records import Approval, ApprovalRequest, Standing
from luthier.errors import ApprovalPending, GateRefused, LuthierError, RunError
from luthier.govern.approvers import Approvers, described, read_approvers
from luthier.govern.keys import APPROVAL, REQUEST, PublicKey
from luthier.pipeline.authority import approvers_of, approvers_place, signer_of
from luthier.records import GateDecision
from luthier.store.files import sha256_file
from luthier.store.runs import RunFolder


def standing_of(run: RunFolder, gate: GateDecision) -> Standing:
    """Whether a run may be used, by its decision and by what was signed beside it.

    What was tampered with makes nothing pass, and is told as the fault; `refuse_faulty` stops for it.

    Args:
        run: the run, or one task of it, which stands where the run does.
        gate: the decision on the run.

    Raises:
        MissingExtra: something is signed and the package cryptography is not installed.
    """
    run = run.whole
    if gate.passed:
        return Standing(state="passed")
    try:
        return _standing(run, gate)
    except RunError as error:
        return Standing(state="refused", fault=error.what)


def refuse_faulty(run: RunFolder, standing: Standing) -> None:
    """Stop where request or approval were tampered with.

    Raises:
        RunError: they were.
    """
    if standing.fault:
        raise RunError(
            standing.fault,
            way_out=f"restore the files; or begin anew: luthier gate {run.path} --request REASON",
        )


def refusal(what: str, run: RunFolder, standing: Standing, *, otherwise: str = "tune further") -> LuthierError:
    """The error that says that a run may not be used: exit 3, or 4 where an approval is waited for.

    Args:
        what: the sentence that it begins with.
        run: which.
        standing: refused or waiting.
        otherwise: what else could be done than to ask for an approval.
    """
    said = f"{what}. {standing.words}" if standing.words else what
    if standing.state == "waiting":
        way_out = f"another person approves it: luthier gate {run.path} --approve --key KEY"
        return ApprovalPending(said, way_out=way_out)
    return GateRefused(said, way_out=f"{otherwise}, or ask for an approval: luthier gate {run.path} --request REASON")


def _standing(run: RunFolder, gate: GateDecision) -> Standing:
    if not run.request.is_file():
        if run.approval.is_file():
            raise RunError(f"{run.approval} approves a request that is missing", way_out="restore request.json")
        return Standing(state="refused")
    request, requester = read_request(run)
    sealed, now = sealed_approvers(run, gate), approvers_of(run.path.parent.parent)
    vouching = now or sealed  # the file of this machine knows people by the names that count here
    who = (
        vouching.described(requester, request.requested_by) if vouching else described(request.requested_by, requester)
    )
    if request.seal != gate.seal:
        return Standing(state="refused", note=f"the request of {who} was about another decision")
    asked = {"reason": request.reason, "requested_by": who, "requested_at": request.requested_at}
    waiting = Standing(state="waiting", **asked)
    if not run.approval.is_file():
        return waiting
    approval, approver = _read_approval(run)
    if approval.seal != gate.seal or approval.request_sha256 != sha256_file(run.request):
        return waiting.model_copy(update={"note": f"an approval by {approval.approved_by} was of another request"})
    name = _refuse_unfit(run, request, approval, approver, sealed)
    by = f"{name} ({approver.fingerprint})"
    if why := _not_trusted_here(run, now, requester, approver, name):
        return waiting.model_copy(update={"note": f"the approval by {by} does not count here: {why}"})
    return Standing(state="approved", approved_by=by, approved_at=approval.approved_at, **asked)


def _refuse_unfit(
    run: RunFolder, request: ApprovalRequest, approval: Approval, approver: PublicKey, sealed: Approvers | None
) -> str:
    """Check that an approval, whose signature holds, may be given by this key; returns whose it is."""
    fault = ""
    name = sealed.name_of(approver) if sealed and approver in sealed.may_approve else ""
    if (approval.reason, approval.requester_key) != (request.reason, request.key):
        fault = "speaks of another reason or requester than request.json"
    elif not name or sealed is None or approval.approvers_sha256 != sealed.sha256:
        fault = f"is signed by {approver.fingerprint}, which does not stand in {run.approvers.name}"
    elif PublicKey.parse(request.key) == approver or sealed.name_of(PublicKey.parse(request.key)) == name:
        fault = "is signed by who asked for it"
    elif approval.approved_by != name:
        fault = f"names {approval.approved_by!r}, and its key is of {name!r}"
    if fault:
        raise RunError(f"{run.approval} {fault}", way_out="let somebody else approve it")
    return name


def _not_trusted_here(
    run: RunFolder, now: Approvers | None, requester: PublicKey, approver: PublicKey, name: str
) -> str:
    """Why the key of an approval is not, or is no longer, one that may approve; '' where it is.

    `name` is whose it was when the gate decided; by this machine's file it has to be the same, and not the requester's.
    """
    if now is None:
        return f"there is no approvers' file at {approvers_place(run.path.parent.parent)}"
    here = now.name_of(approver)
    if approver not in now.may_approve:
        return f"that key does not stand in {now.where}"
    if here != name:
        return f"that key is of {here!r} in {now.where}"
    return f"it is of one person with the request's, by {now.where}" if now.name_of(requester) == here else ""


def read_request(run: RunFolder) -> tuple[ApprovalRequest, PublicKey]:
    """The request beside a decision, with the key that signed it.

    Raises:
        RunError: it was changed.
    """
    signer = signer_of(run.request, REQUEST)
    request = ApprovalRequest.read(run.request)
    _refuse_unseen_signs(run.request, request)
    _refuse_other_key(run.request, request.key, signer)
    return request, signer


def _read_approval(run: RunFolder) -> tuple[Approval, PublicKey]:
    signer = signer_of(run.approval, APPROVAL)
    approval = Approval.read(run.approval)
    _refuse_unseen_signs(run.approval, approval)
    _refuse_other_key(run.approval, approval.key, signer)
    return approval, signer


def _refuse_unseen_signs(path: Path, record: ApprovalRequest | Approval) -> None:
    """What is shown to those who decide must not move their cursor, nor begin a line of its own."""
    for name, value in record.model_dump().items():
        texts = value if isinstance(value, tuple) else (value,)
        if not all(text.isprintable() for text in texts if isinstance(text, str)):
            raise RunError(f"{path}: {name} holds signs that are not shown", way_out="have it asked and signed anew")


def _refuse_other_key(path: Path, named: str, signer: PublicKey) -> None:
    if named != signer.line:
        raise RunError(f"{path} names another key than the one that signed it", way_out="have it signed anew")


def sealed_approvers(run: RunFolder, gate: GateDecision) -> Approvers | None:
    """The approvers' file as it was when the gate decided; None where there was none.

    Raises:
        RunError: the copy of it in the run folder is missing, or not the one that the decision names.
    """
    if not gate.approvers_sha256:
        return None
    if not run.approvers.is_file():
        raise RunError(f"{run.approvers} is missing, which gate.json names", way_out="luthier gate decides anew")
    content = run.approvers.read_bytes()
    if hashlib.sha256(content).hexdigest() != gate.approvers_sha256:
        raise RunError(
            f"{run.approvers} was changed: it is not the approvers' file that gate.json names", way_out="restore it"
        )
    return read_approvers(run.approvers)
