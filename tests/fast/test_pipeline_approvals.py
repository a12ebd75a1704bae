"""A refused version is used by two people's word and no less; no byte of it can be changed without that being seen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from approvals_kit import Office, office, write_run

from command import call
from luthier.errors import GateRefused, RunError, UserError
from luthier.govern.gate import sealed, verify_seal
from luthier.govern.keys import APPROVAL, GATE, REQUEST
from luthier.pipeline.approvals import approve, ask
from luthier.pipeline.authority import own_key, write_signed
from luthier.pipeline.standing import refuse_faulty
from luthier.pipeline.verdict import audit_of, checked_gate
from luthier.records import GateDecision
from luthier.store.files import sha256_file, sha256_json

pytest.importorskip("cryptography")
REASON = "the version before is worse on every label"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an office where Ana has asked and Bob has approved, to be copied and spoiled."""
    folder = tmp_path_factory.mktemp("office")
    place = office(folder)
    ask(place.run, REASON, key=place.keys["ana"])
    approve(place.run, key=place.keys["bob"])
    return folder


@pytest.fixture
def there(made: Path, tmp_path: Path) -> Office:
    """The same, approved."""
    from luthier.govern.keys import read_key
    from luthier.store.runs import RunFolder

    shutil.copytree(made, tmp_path / "o", symlinks=True)
    keys = {name: read_key(tmp_path / "o" / "keys" / name, passphrase="") for name in ("ana", "bob", "carl", "eve")}
    out = tmp_path / "o" / "runs"
    return Office(out, RunFolder(out / "support-intents" / "1a2b3c"), keys)


@pytest.fixture
def refused(there: Office) -> Office:
    """The same, where nobody has asked yet."""
    for path in (there.run.request, there.run.approval):
        path.unlink()
        path.with_name(f"{path.name}.sig").unlink()
    return there


# --- the way past the gate ---


def test_two_people_bring_a_refused_version_past_its_gate(refused: Office) -> None:
    run, out = refused.run, refused.out.parent
    home = {"LUTHIER_HOME": str(out)}
    assert refused.standing.state == "refused"
    call("registry", "promote", "support-intents@1", cwd=out).fails(3, "was refused by its gate", "--request")
    ask(run, f"  {REASON}\n", key=refused.keys["ana"])
    assert (refused.standing.state, refused.standing.reason) == ("waiting", REASON)
    call("registry", "promote", "support-intents@1", cwd=out).fails(4, "waits for an approval", "--approve")
    call("serve", run.path, "--port", "0", cwd=out).fails(4, "is refused by its gate", REASON, "--approve")
    assert "gate WAITING" in call("registry", "ls", cwd=out).out
    assert REASON in run.report.read_text()
    assert "waits for an approval" in run.card.read_text()

    done = call("gate", run.path, "--approve", "--key", "bob", "--json", cwd=out, **home).succeeds()
    assert done.document["passed"] is False
    assert done.document["standing"]["state"] == "approved"
    assert done.document["standing"]["approved_by"] == f"bob ({refused.keys['bob'].public.fingerprint})"
    said = call("registry", "promote", "support-intents@1", cwd=out).succeeds().out
    assert "is now version 1 (refused by its gate, approved by bob" in said
    assert "gate APPROVED" in call("registry", "ls", cwd=out).out
    [listed] = call("registry", "ls", "--json", cwd=out).document
    assert (listed["gate_passed"], listed["standing"]["state"]) == (False, "approved")
    for page in (run.report.read_text(), run.card.read_text()):
        for words in (
            "pproved",
            REASON,
            refused.keys["ana"].public.fingerprint,
            refused.keys["bob"].public.fingerprint,
        ):
            assert words in page.replace("&#34;", '"')
        assert refused.gate.approvers_sha256 in page
    assert "Passed" not in run.card.read_text()
    assert '<span class="word fail">Approved.</span>' in run.report.read_text()
    assert "approved" in call("report", run.path, cwd=out).succeeds().out


def test_the_audit_log_holds_who_asked_and_who_approved(there: Office) -> None:
    entries = audit_of(there.out).entries()
    assert [entry.action for entry in entries] == ["gate", "request", "approve"]
    gate, request, approval = (entry.details for entry in entries)
    assert gate["approvers_sha256"] == sha256_file(there.approvers) == approval["approvers_sha256"]
    assert gate["seal"] == request["seal"] == approval["seal"] == there.gate.seal
    assert request["reason"] == approval["reason"] == REASON
    assert there.keys["ana"].public.fingerprint in request["requested_by"]
    assert approval["approved_by"] == f"bob ({there.keys['bob'].public.fingerprint})"
    assert approval["request_sha256"] == request["request_sha256"] == sha256_file(there.run.request)
    assert approval["approval_sha256"] == sha256_file(there.run.approval)
    call("registry", "promote", "support-intents@1", cwd=there.out.parent).succeeds()
    last = audit_of(there.out).entries()[-1]
    assert (last.details["reason"], last.details["gate_passed"]) == (REASON, False)
    call("audit", "verify", cwd=there.out.parent).succeeds()


def test_the_server_lets_an_approved_version_through_and_says_by_whom(there: Office) -> None:
    from luthier.pipeline.answers import admit, choose

    said: list[str] = []
    chosen = choose(str(there.run.path), out=there.out)
    standing = admit(chosen, allow_refused=False, actor="me", say=said.append)
    assert standing.state == "approved"
    assert "was refused by its gate" in said[0]
    assert f"bob ({there.keys['bob'].public.fingerprint}) approved that" in said[0]


def test_deciding_again_leaves_an_approval_and_adding_approvers_too(there: Office) -> None:
    seal = there.gate.seal
    assert there.decide().seal == seal
    there.allow("ana", "bob", "carl", "eve")
    assert there.decide().seal == seal
    assert there.standing.state == "approved"


def test_where_somebody_may_approve_nobody_goes_past_alone(refused: Office) -> None:
    out = refused.out.parent
    for verb in (["registry", "promote", "support-intents@1"], ["serve", refused.run.path, "--port", "0"]):
        call(*verb, "--allow-refused", cwd=out).fails(3, "names approvers, --allow-refused is not enough", "--request")
    refused.approvers.unlink()
    call("registry", "promote", "support-intents@1", "--allow-refused", cwd=out).succeeds()


# --- who may not ---


def test_who_asked_cannot_approve_whatever_he_calls_himself(refused: Office) -> None:
    run, keys = refused.run, refused.keys
    ask(run, REASON, key=keys["ana"])
    with pytest.raises(UserError, match="who asked for this approval\n  -> somebody else has to approve it: bob, carl"):
        approve(run, key=keys["ana"])
    with pytest.raises(UserError, match=r"may not approve: it does not stand in .*approvers\.txt as it was"):
        approve(run, key=keys["eve"])
    assert refused.standing.state == "waiting"


def test_two_keys_of_one_person_are_one_person(refused: Office) -> None:
    refused.approvers.write_text(
        f"ana {refused.keys['ana'].public.line}\nana {refused.keys['carl'].public.line}\n"
        f"bob {refused.keys['bob'].public.line}\n"
    )
    refused.decide()
    ask(refused.run, REASON, key=refused.keys["ana"])
    with pytest.raises(UserError, match="is that of ana, who asked"):
        approve(refused.run, key=refused.keys["carl"])
    approve(refused.run, key=refused.keys["bob"])
    assert refused.standing.state == "approved"


def test_who_adds_himself_is_another_decision(refused: Office) -> None:
    """And every page and the audit log name the hash of the file that he wrote."""
    ask(refused.run, REASON, key=refused.keys["ana"])
    seal, before = refused.gate.seal, refused.gate.approvers_sha256
    refused.allow("ana", "bob", "eve")
    with pytest.raises(UserError, match="may not approve"):
        approve(refused.run, key=refused.keys["eve"])
    refused.decide()
    assert refused.gate.seal != seal
    assert refused.gate.approvers_sha256 == sha256_file(refused.approvers) != before
    assert audit_of(refused.out).entries()[-1].details["approvers_sha256"] == refused.gate.approvers_sha256
    assert refused.gate.approvers_sha256 in refused.run.report.read_text()
    assert refused.standing.state == "refused"
    assert "was about another decision" in refused.standing.note


def test_an_approver_who_left_approves_no_longer(there: Office) -> None:
    there.allow("ana", "carl")
    assert there.standing.state == "waiting"
    assert "that key does not stand in" in there.standing.note
    there.approvers.unlink()
    assert "there is no approvers' file at" in there.standing.note
    call("registry", "promote", "support-intents@1", cwd=there.out.parent).fails(4, "does not count here")


def test_a_machine_trusts_the_file_that_it_names(
    there: Office, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LUTHIER_APPROVERS", str(tmp_path / "own"))
    with pytest.raises(RunError, match="there is no approvers' file at"):
        there.decide()
    (tmp_path / "own").write_text(f"carl {there.keys['carl'].public.line}\n")
    assert there.standing.state == "waiting"
    (tmp_path / "own").write_text(f"bob {there.keys['bob'].public.line}\n")
    assert there.standing.state == "approved"


def test_another_decision_needs_another_approval(there: Office) -> None:
    there.improve()
    with pytest.raises(RunError, match="changed since"):
        checked_gate(there.run, None)
    there.decide()
    assert there.standing.state == "refused"
    assert "was about another decision" in there.standing.note
    ask(there.run, "still needed", key=there.keys["carl"])
    assert there.standing.state == "waiting"
    approve(there.run, key=there.keys["ana"])
    assert there.standing.state == "approved"
    assert there.standing.reason == "still needed"


def test_what_cannot_be_asked_or_approved_is_told(refused: Office) -> None:
    run, keys = refused.run, refused.keys
    with pytest.raises(UserError, match="nobody has asked for an approval\n  -> somebody else asks first"):
        approve(run, key=keys["bob"])
    for reason, words in ((" \n", "needs a reason"), ("\x1b[2J", "signs that are not shown")):
        with pytest.raises(UserError, match=words):
            ask(run, reason, key=keys["ana"])
    with pytest.raises(UserError, match="no key to sign with was named\n  -> --key FILE"):
        ask(run, REASON, key=None)
    refused.allow("ana")
    refused.decide()
    with pytest.raises(UserError, match="nobody could approve this"):
        ask(run, REASON, key=keys["ana"])
    refused.approvers.unlink()
    refused.decide()
    with pytest.raises(UserError, match="there was no approvers' file at"):
        ask(run, REASON, key=keys["ana"])
    call("gate", run.path, "--approve", "--request", "x", cwd=refused.out).fails(2, "are two people's")


def test_what_is_settled_needs_nothing(there: Office, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is nothing to approve, it is approved"):
        approve(there.run, key=there.keys["carl"])
    with pytest.raises(UserError, match="needs no request, it is approved"):
        ask(there.run, REASON, key=there.keys["carl"])
    out = tmp_path / "passes"
    passing = Office(out, write_run(out, target=">= 0.1"), there.keys)
    with pytest.raises(UserError, match="is not registered"):
        ask(passing.run, REASON, key=there.keys["ana"])
    assert passing.decide().passed
    with pytest.raises(UserError, match="it is passed"):
        ask(passing.run, REASON, key=there.keys["ana"])
    with pytest.raises(UserError, match="it is passed"):
        approve(passing.run, key=there.keys["bob"])


# --- tampering ---


FILES = ("request.json", "request.json.sig", "approval.json", "approval.json.sig", "approvers.txt")


@pytest.mark.parametrize("name", FILES)
def test_no_byte_can_be_changed(there: Office, name: str) -> None:
    path = there.run.path / name
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        standing = there.standing
        assert not standing.may_be_used, (name, place)
        assert standing.fault, (name, place)
    path.write_bytes(content + b"\n")
    assert there.standing.fault
    with pytest.raises(RunError, match="begin anew: luthier gate"):
        refuse_faulty(there.run, there.standing)
    call("registry", "promote", "support-intents@1", cwd=there.out.parent).fails(2, name.removesuffix(".sig"))
    call("gate", there.run.path, "--approve", "--key", there.keys["carl"].where, cwd=there.out).fails(2, name[:7])
    path.unlink()
    assert not there.standing.may_be_used
    path.write_bytes(content)
    assert there.standing.state == "approved"


def test_what_was_tampered_with_is_asked_for_anew(there: Office) -> None:
    there.run.request.write_text(there.run.request.read_text().replace("worse", "better"))
    assert there.decide().seal == there.gate.seal
    assert "was changed after it was signed" in there.standing.fault
    assert "was changed after it was signed" in there.run.report.read_text()
    assert ask(there.run, REASON, key=there.keys["ana"]).state == "waiting"
    assert approve(there.run, key=there.keys["bob"]).state == "approved"


def test_a_seal_that_was_made_again_is_not_the_registered_one(there: Office) -> None:
    changed = there.gate.model_copy(update={"passed": True})
    forged = sealed(changed, approvers_sha256=there.gate.approvers_sha256, signed_by="")  # who knows how seals are made
    assert verify_seal(forged)
    there.run.gate.write_text(forged.to_json())
    out = there.out.parent
    call("registry", "promote", "support-intents@1", cwd=out).fails(2, "is not the decision that was registered")
    assert "gate REFUSED" in call("registry", "ls", cwd=out).out


def sign_again(place: Office, who: str, **changes: object) -> None:
    """Bob's approval, changed and signed by a key that may be another's."""
    content = json.loads(place.run.approval.read_text()) | changes
    text = json.dumps(content, indent=2) + "\n"
    place.run.approval.write_text(text)
    place.run.approval_signature.write_text(place.keys[who].sign(text.encode(), APPROVAL))


@pytest.mark.parametrize(
    ("who", "changes", "fault"),
    [
        ("eve", {}, "names another key than the one that signed it"),
        ("eve", {"key": "eve"}, "does not stand in approvers.txt"),
        ("ana", {"key": "ana", "approved_by": "ana"}, "is signed by who asked for it"),
        ("carl", {"key": "carl"}, "names 'bob', and its key is of 'carl'"),
        ("bob", {"reason": "none"}, "speaks of another reason or requester"),
        ("bob", {"requester_key": "carl"}, "speaks of another reason or requester"),
        ("bob", {"approvers_sha256": "0" * 64}, "does not stand in approvers.txt"),
        ("bob", {"seal": "0" * 64}, ""),
        ("bob", {"request_sha256": "0" * 64}, ""),
    ],
)
def test_an_approval_that_is_signed_but_wrong_does_not_count(
    there: Office, who: str, changes: dict[str, str], fault: str
) -> None:
    keys = {key: there.keys[value].public.line if value in there.keys and "key" in key else value
            for key, value in changes.items()}  # fmt: skip
    sign_again(there, who, **keys)
    assert not there.standing.may_be_used
    if fault:
        assert fault in there.standing.fault
    else:
        assert there.standing.state == "waiting"
        assert "was of another request" in there.standing.note


def test_a_signature_for_another_purpose_does_not_count(there: Office) -> None:
    content = there.run.approval.read_bytes()
    there.run.approval_signature.write_text(there.keys["bob"].sign(content, REQUEST))
    assert "it was given for 'luthier-request', not for 'luthier-approval'" in there.standing.fault


# --- gate.json signed ---


def test_a_decision_is_signed_where_a_key_is_configured(there: Office, tmp_path: Path) -> None:
    place = Office(tmp_path / "signed", write_run(tmp_path / "signed"), there.keys)
    assert not place.decide().signed_by
    seal = place.gate.seal
    assert place.decide("ana").signed_by == there.keys["ana"].public.fingerprint
    assert place.gate.seal != seal
    assert place.gate == checked_gate(place.run, None)
    assert place.decide() == place.gate == place.decide("bob")  # it stays, signed as it is
    assert audit_of(place.out).entries()[-1].details["signed_by"] == place.gate.signed_by
    assert place.gate.signed_by in place.run.report.read_text()
    assert place.gate.signed_by in place.run.card.read_text()
    signature = place.run.gate_signature.read_text()
    for wrong, words in (
        (there.keys["bob"].sign(place.run.gate.read_bytes(), GATE), "signed by another key than"),
        (there.keys["ana"].sign(b"other", GATE), "was changed after it was signed"),
        (there.keys["ana"].sign(place.run.gate.read_bytes(), APPROVAL), "it was given for"),
        ("", "not a signature"),
    ):
        place.run.gate_signature.write_text(wrong)
        with pytest.raises(RunError, match=words):
            checked_gate(place.run, None)
    place.run.gate_signature.unlink()
    with pytest.raises(RunError, match=r"gate.json.sig is missing"):
        checked_gate(place.run, None)
    place.run.gate_signature.write_text(signature)
    assert checked_gate(place.run, None)


def test_a_key_that_is_configured_later_takes_no_request_away(refused: Office) -> None:
    seal = refused.gate.seal
    ask(refused.run, REASON, key=refused.keys["ana"])
    assert refused.decide("bob").seal == seal
    assert refused.standing.state == "waiting"


def test_a_list_of_versions_shows_what_is_broken_and_goes_on(there: Office) -> None:
    there.run.gate.write_text("{")
    listed = call("registry", "ls", "--json", cwd=there.out.parent).succeeds().document
    assert listed[0]["standing"]["state"] == "refused"
    assert "is not a GateDecision" in listed[0]["standing"]["fault"]
    there.run.gate.unlink()
    listed = call("registry", "ls", "--json", cwd=there.out.parent).succeeds().document
    assert (listed[0]["standing"]["state"], "is missing" in listed[0]["standing"]["note"]) == ("refused", True)


def test_decisions_of_before_there_were_keys_keep_their_seal(there: Office) -> None:
    content = there.gate.model_dump(mode="json")
    old = {key: value for key, value in content.items() if key not in ("approvers_sha256", "signed_by")} | {"seal": ""}
    decided = GateDecision.model_validate(old | {"seal": sha256_json(old)})
    assert verify_seal(decided)
    assert not verify_seal(decided.model_copy(update={"signed_by": "SHA256:x"}))


# --- keys by the command line ---


def test_a_key_is_made_named_and_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = {"LUTHIER_HOME": str(tmp_path)}
    made = call("keys", "new", "dora", "--json", cwd=tmp_path, **home).succeeds().document
    assert made["line"].startswith("dora ssh-ed25519 AAAA")
    assert Path(made["key"]) == tmp_path / "keys" / "dora"
    shown = call("keys", "new", "emil", cwd=tmp_path, **home).succeeds().out.splitlines()
    assert shown[-1] == f"emil {(tmp_path / 'keys' / 'emil.pub').read_text().removesuffix(' emil' + chr(10))}"
    call("keys", "new", "dora", cwd=tmp_path, **home).fails(2, "exists already")
    call("keys", "new", "fay", "--passphrase", cwd=tmp_path, **home).fails(2, "LUTHIER_KEY_PASSPHRASE")
    environment = {"LUTHIER_HOME": str(tmp_path)}
    for given, more in (("dora", {}), (made["key"], {}), (None, {"LUTHIER_SIGNING_KEY": "dora"})):
        key = own_key(given, environment | more)
        assert key is not None
        assert key.public.fingerprint == made["fingerprint"]
    assert own_key(None, environment) is None
    with pytest.raises(UserError, match=r"there is no key 'nosuch'.*\n.*dora, emil"):
        own_key("nosuch", environment)


def test_a_passphrase_is_taken_from_the_environment(tmp_path: Path) -> None:
    pytest.importorskip("bcrypt")
    home = {"LUTHIER_HOME": str(tmp_path), "LUTHIER_KEY_PASSPHRASE": "a word"}
    call("keys", "new", "ana", "--passphrase", cwd=tmp_path, **home).succeeds()
    assert own_key("ana", home) is not None
    with pytest.raises(UserError, match="has a passphrase, and there is no terminal to ask for it"):
        own_key("ana", {"LUTHIER_HOME": str(tmp_path)})


def test_run_and_gate_tell_a_key_that_is_not_there_before_any_work(tmp_path: Path) -> None:
    for verb in ("run", "gate"):
        call(verb, "nosuch", cwd=tmp_path, LUTHIER_SIGNING_KEY="gone").fails(2, "there is no key 'gone' (LUTHIER_SIGN")


def test_the_exit_codes_are_those_of_the_contract() -> None:
    from luthier.errors import ApprovalPending

    assert (GateRefused.exit_code, ApprovalPending.exit_code) == (3, 4)


def test_a_broken_ledger_is_told_before_anything_is_done(tmp_path: Path) -> None:
    (tmp_path / "looks").mkdir()
    (tmp_path / "looks" / "looks.jsonl").write_text('{"action": "look"}\n')
    call("run", "support-intents", cwd=tmp_path, LUTHIER_HOME=str(tmp_path)).fails(2, "the ledger of looks was changed")
    assert not (tmp_path / "runs").exists()


def test_other_names_on_this_machine_are_no_other_people(
    there: Office, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where the version is used, that machine's file says who is who."""
    own, ana, bob = tmp_path / "own", there.keys["ana"].public.line, there.keys["bob"].public.line
    monkeypatch.setenv("LUTHIER_APPROVERS", str(own))
    own.write_text(f"bob {ana}\nbob {bob}\n")
    assert there.standing.state == "waiting"
    assert "it is of one person with the request's" in there.standing.note
    own.write_text(f"mallory {bob}\n")
    assert there.standing.state == "waiting"
    assert "that key is of 'mallory'" in there.standing.note
    own.write_text(f'bob namespaces="git" {bob}\nzed {ana}\n')
    assert "that key does not stand in" in there.standing.note
    own.write_text(f"bob {bob}\nzed {ana}\n")
    assert there.standing.state == "approved"
    assert there.standing.requested_by.startswith("zed (SHA256:")


def test_one_person_with_a_key_for_each_purpose_is_one_person(refused: Office) -> None:
    ana, carl = refused.keys["ana"].public.line, refused.keys["carl"].public.line
    bob = refused.keys["bob"].public.line
    refused.approvers.write_text(f'ana namespaces="luthier-request" {ana}\nana {carl}\nbob {bob}\n')
    refused.decide()
    ask(refused.run, REASON, key=refused.keys["ana"])
    with pytest.raises(UserError, match="ana"):
        approve(refused.run, key=refused.keys["carl"])
    assert refused.standing.state == "waiting"


@pytest.mark.parametrize("change", ["edit", "add", "take"])
def test_an_artifact_that_changed_is_not_what_was_decided_on(there: Office, change: str) -> None:
    """Whatever the markers of the stages say: they have no seal."""
    folder = there.run.path / "artifacts" / "merged"
    file = folder / "model.safetensors"
    checked_gate(there.run, None)
    if change == "edit":
        file.write_text("other weights")
    elif change == "add":
        (folder / "more.safetensors").write_text("")
    else:
        file.unlink()
    with pytest.raises(RunError, match=r"files that have changed since: artifacts/merged/mo(del|re)\.safetensors"):
        checked_gate(there.run, None)
    call("registry", "promote", "support-intents@1", cwd=there.out.parent).fails(2, "changed since")


def test_an_approvers_file_that_is_not_there_is_not_the_same_as_none(
    refused: Office, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refused.approvers.unlink()
    refused.approvers.symlink_to(tmp_path / "nowhere")
    arguments = ("registry", "promote", "support-intents@1", "--allow-refused")
    call(*arguments, cwd=refused.out.parent).fails(2, "there is no approvers' file at")
    monkeypatch.setenv("LUTHIER_APPROVERS", "")
    with pytest.raises(RunError, match="LUTHIER_APPROVERS is set, and empty"):
        refused.decide()


def test_signs_that_are_not_shown_are_signed_by_nobody(refused: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "ana\n\x1b[2Kthe gate passed")
    with pytest.raises(UserError, match="holds signs that are not shown"):
        ask(refused.run, REASON, key=refused.keys["ana"])
    monkeypatch.setenv("LOGNAME", "ana")
    ask(refused.run, REASON, key=refused.keys["ana"])
    said = json.loads(refused.run.request.read_text()) | {"reason": "r\nfake \x1b[2J line"}
    write_signed(refused.run.request, json.dumps(said), refused.keys["ana"], REQUEST)
    assert "reason holds signs that are not shown" in refused.standing.fault
