"""How a refused version comes to be used all the same: the request, the approval, and where a run stands."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from luthier.records import Record

State = Literal["passed", "refused", "waiting", "approved"]


class ApprovalRequest(Record):
    """`request.json`; the signature over its bytes stands beside it in `request.json.sig`."""

    run: str = Field(description="NAME/ID.")
    seal: str = Field(description="Of the decision that refused.")
    not_met: tuple[str, ...] = Field(description="Lines of the gate that did not pass.")
    reason: str
    requested_by: str = Field(description="User name on the requester's machine; the key is what counts.")
    key: str = Field(description="Public key that signed, as OpenSSH writes it.")
    requested_at: str = Field(description="UTC, ISO 8601.")


class Approval(Record):
    """`approval.json`; the signature over its bytes stands beside it in `approval.json.sig`."""

    run: str = Field(description="NAME/ID.")
    seal: str = Field(description="Of the decision that refused.")
    request_sha256: str = Field(description="Hash of request.json.")
    reason: str = Field(description="As the request gives it.")
    requester_key: str
    approved_by: str = Field(description="Whose key it is, by the approvers' file.")
    key: str = Field(description="Public key that signed, as OpenSSH writes it.")
    approvers_sha256: str = Field(description="Hash of the approvers' file.")
    approved_at: str = Field(description="UTC, ISO 8601.")


class Standing(Record):
    """Whether a run may be used, and by whose word; made of gate.json, request and approval, never stored."""

    state: State
    reason: str = Field("", description="Why it is to be used although the gate refused; '' where nobody asked.")
    requested_by: str = Field("", description="Name and fingerprint, e.g. 'ana (SHA256:...)'.")
    requested_at: str = ""
    approved_by: str = Field("", description="Name and fingerprint; '' where nobody approved.")
    approved_at: str = ""
    note: str = Field("", description="Why a request or an approval beside the decision does not count.")
    fault: str = Field("", description="What was tampered with; '' where nothing was.")

    @property
    def may_be_used(self) -> bool:
        return self.state in ("passed", "approved")

    @property
    def words(self) -> str:
        """A sentence on request and approval, with what does not count of them; '' where there is nothing to say."""
        said = []
        if self.state in ("waiting", "approved"):
            said.append(f"{self.requested_by} asked at {self.requested_at} to use it all the same: “{self.reason}”.")
        if self.state == "waiting":
            said.append("It waits for an approval by the key of somebody else.")
        if self.state == "approved":
            said.append(f"{self.approved_by} approved that at {self.approved_at}.")
        said += [f"{one[:1].upper()}{one[1:]}." for one in (self.note, self.fault) if one]
        return " ".join(said)
