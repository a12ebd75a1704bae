"""What docs/gate.md says is what happens; its commands are run as they stand there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from approvals_kit import Office, office

from command import call
from luthier.govern.approvers import read_approvers
from luthier.govern.keys import APPROVAL, GATE, REQUEST
from luthier.pipeline import authority
from luthier.pipeline.approvals import approve, ask

pytest.importorskip("cryptography")
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(?:sh)?\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def approved(tmp_path_factory: pytest.TempPathFactory) -> Office:
    place = office(tmp_path_factory.mktemp("office"))
    place.run.gate.unlink()
    place.decide("ana")
    ask(place.run, "the old model is worse on every label", key=place.keys["ana"])
    approve(place.run, key=place.keys["bob"])
    return place


def test_the_file_shown_is_an_approvers_file(tmp_path: Path) -> None:
    (tmp_path / "approvers.txt").write_text(next(block for block in BLOCKS if "example.org" in block))
    assert sorted(read_approvers(tmp_path / "approvers.txt").names.values()) == ["ana", "bob"]


def test_the_key_is_made_as_shown(tmp_path: Path) -> None:
    command = next(block for block in BLOCKS if "keys new" in block).split()[1:]
    call(*command, cwd=tmp_path, LUTHIER_HOME=str(tmp_path)).succeeds()
    assert (tmp_path / "keys" / "ana").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "keys" / "ana.pub").is_file()


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="OpenSSH is not on this machine")
def test_every_signature_is_checked_by_hand_as_shown(approved: Office) -> None:
    commands = next(block for block in BLOCKS if "ssh-keygen -Y" in block).splitlines()
    said = []
    for command in commands:  # by a shell, as the page's lines are given to one: they redirect
        done = subprocess.run(command, shell=True, cwd=approved.run.path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done)
        said.append(done.stdout)
    assert "Good" in said[0]
    assert approved.keys["bob"].public.fingerprint in said[0]
    assert approved.keys["ana"].public.fingerprint in said[1]
    assert approved.gate.signed_by in said[2]
    for line in said[3].splitlines():
        assert line.split()[0] in approved.run.approval.read_text()


def test_names_and_commands_are_those_of_the_code(approved: Office) -> None:
    for name in (authority.SIGNING_KEY, authority.KEY_PASSPHRASE, authority.APPROVERS):
        assert f"`{name}`" in PAGE
    for namespace in (GATE, REQUEST, APPROVAL):
        assert f"-n {namespace} " in PAGE
    help_text = call("gate", "--help", cwd=approved.out).out
    for option in set(re.findall(r"--[a-z]+", next(block for block in BLOCKS if "--request" in block))):
        assert option in help_text
