"""Deploy: promote, roll back and serve versions; what goes past the gate is written to the audit log."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

from luthier.approval_records import Standing
from luthier.errors import RunError
from luthier.pipeline.answers import OTHERWISE, admit, choose, open_askers, refuse_going_past
from luthier.pipeline.standing import refusal, refuse_faulty, standing_of
from luthier.pipeline.start import Say
from luthier.pipeline.verdict import audit_of, checked_gate
from luthier.store.registry import registry_of
from luthier.store.runs import RunFolder


def serve_version(
    target: str, *, host: str, port: int, keys: Path | None, allow_refused: bool, out: Path, say: Say
) -> None:
    """Serve until a signal ends it.

    Raises:
        ApprovalPending, GateRefused: the gate refused this version; see `admit`.
        MissingExtra, UserError, RunError: see the rooms.
    """
    from luthier.serve.app import create_app, require
    from luthier.serve.auth import read_keys, refuse_open_host
    from luthier.serve.server import run

    require("fastapi")
    api_keys = read_keys(keys, os.environ)
    refuse_open_host(host, has_keys=bool(api_keys))
    chosen = choose(target, out=out)
    standing = admit(chosen, allow_refused=allow_refused, actor=getpass.getuser(), say=say)
    say(f"loading {chosen.model_id}")
    app = create_app(
        open_askers(list(chosen.tasks.values())), model_id=chosen.model_id, also_called=chosen.names, api_keys=api_keys
    )
    audit_of(chosen.run.whole.path.parent.parent).append(
        "serve", actor=getpass.getuser(), subject=chosen.model_id, details={"host": host, **_by_approval(standing)}
    )
    run(app, host=host, port=port, ready=lambda url: say(f"serving {chosen.model_id} on {url}  (end with Ctrl-C)"))


def promote(name: str, *, alias: str, allow_refused: bool, out: Path) -> str:
    """Let `alias` point to a version; returns what was done, in words.

    Raises:
        ApprovalPending: the gate refused it and an approval is waited for.
        GateRefused: the gate refused it, and `allow_refused` is not set or there are approvers to be asked.
        RunError: the version is not known, its decision does not belong to its files, or an approval was tampered with.
    """
    registry = registry_of(out)
    version = registry.get(name)
    run, called = RunFolder.open(version.run, out=out), f"{version.name}@{version.version}"
    gate = checked_gate(run, version)
    standing = standing_of(run, gate)
    refuse_faulty(run, standing)
    if not standing.may_be_used and not allow_refused:
        raise refusal(f"{called} was refused by its gate", run, standing, otherwise=OTHERWISE)
    if not standing.may_be_used:
        refuse_going_past(run, standing, called)
    registry.promote(version.name, version.version, alias)
    audit_of(out).append(
        "promote",
        actor=getpass.getuser(),
        subject=called,
        details={"alias": alias, "gate_passed": gate.passed, **_by_approval(standing)},
    )
    return f"{version.name}@{alias} is now version {version.version}{_past(standing)}"


def _past(standing: Standing) -> str:
    return f" (refused by its gate, approved by {standing.approved_by})" if standing.state == "approved" else ""


def _by_approval(standing: Standing) -> dict[str, object]:
    """What the audit log says of a version that goes by an approval."""
    if standing.state != "approved":
        return {}
    return {"approved_by": standing.approved_by, "requested_by": standing.requested_by, "reason": standing.reason}


def rollback(name: str, *, alias: str, out: Path) -> str:
    """Give `alias` back to the version that had it before; returns what was done, in words."""
    if "@" in name:
        raise RunError(f"{name!r}: give the name alone", way_out="luthier registry rollback NAME --alias ALIAS")
    registry = registry_of(out)
    registry.get(name, alias)  # a name that is not known leaves no registry behind
    version = registry.rollback(name, alias)
    audit_of(out).append(
        "rollback", actor=getpass.getuser(), subject=f"{version.name}@{version.version}", details={"alias": alias}
    )
    run = RunFolder.open(version.run, out=out)
    standing = standing_of(run, checked_gate(run, version))
    said = f"{version.name}@{alias} is again version {version.version}"
    if standing.may_be_used:
        return said + _past(standing)
    return f"{said}, which `luthier serve` refuses: its gate did, and it is not approved (any more)"
