"""Keys, signatures and the approvers' file against OpenSSH itself, and everything that must not be believed."""

from __future__ import annotations

import base64
import importlib.util
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.errors import MissingExtra, RunError, UserError
from luthier.govern.approvers import read_approvers
from luthier.govern.keys import APPROVAL, GATE, REQUEST, SMALL_ORDER, PublicKey, is_locked, new_key, read_key, verify

pytest.importorskip("cryptography")
MESSAGE = b'{"reason": "we need it"}\n'
needs_ssh = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="OpenSSH is not on this machine")


def ssh_keygen(*arguments: str | Path, cwd: Path, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["ssh-keygen", *map(str, arguments)], cwd=cwd, input=given, capture_output=True, check=False)


def test_a_new_pair_is_for_its_owner_alone_and_never_overwritten(tmp_path: Path) -> None:
    path, public = new_key(tmp_path / "keys", "ana", passphrase="")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.with_name("ana.pub").read_text() == f"{public.line} ana\n"
    assert not is_locked(path)
    assert read_key(path, passphrase="").public == public == PublicKey.parse(f"{public.line} a comment")
    with pytest.raises(UserError, match=r"ana exists already\n  -> give another name"):
        new_key(tmp_path / "keys", "ana", passphrase="")
    for name in ("", "../ana", "a b", "-x", "a/b", "a,b", "*"):
        with pytest.raises(UserError, match="cannot be the name of a key"):
            new_key(tmp_path / "keys", name, passphrase="")


def test_a_passphrase_encrypts_it_as_openssh_does(tmp_path: Path) -> None:
    pytest.importorskip("bcrypt")
    path, public = new_key(tmp_path, "ana", passphrase="a word")
    assert is_locked(path)
    assert read_key(path, passphrase="a word").public == public
    with pytest.raises(UserError, match="the passphrase is not its own"):
        read_key(path, passphrase="another")
    with pytest.raises(UserError, match="has a passphrase, and none was given"):
        read_key(path, passphrase="")
    if shutil.which("ssh-keygen"):
        assert ssh_keygen("-y", "-P", "a word", "-f", path, cwd=tmp_path).stdout.decode().startswith(public.line)


@needs_ssh
def test_keys_of_ssh_keygen_are_used_and_signatures_are_its_own_bytes(tmp_path: Path) -> None:
    ssh_keygen("-q", "-t", "ed25519", "-N", "", "-C", "ana@home", "-f", "own", cwd=tmp_path)
    key = read_key(tmp_path / "own", passphrase="")
    assert key.public == PublicKey.parse((tmp_path / "own.pub").read_text().strip())
    assert key.public.fingerprint.encode() in ssh_keygen("-l", "-f", "own", cwd=tmp_path).stdout
    (tmp_path / "message").write_bytes(MESSAGE)
    ssh_keygen("-Y", "sign", "-q", "-f", "own", "-n", GATE, "message", cwd=tmp_path)
    theirs = (tmp_path / "message.sig").read_text()
    assert theirs == key.sign(MESSAGE, GATE)  # Ed25519 has no randomness, so equal bytes are the same format
    assert verify(theirs, MESSAGE, GATE, where=tmp_path / "message.sig") == key.public


@needs_ssh
def test_ssh_keygen_verifies_ours_by_the_approvers_file(tmp_path: Path) -> None:
    path, public = new_key(tmp_path, "bob", passphrase="")
    (tmp_path / "a.sig").write_text(read_key(path, passphrase="").sign(MESSAGE, APPROVAL))
    (tmp_path / "approvers.txt").write_text(f"# who may\nbob {public.line}\n")
    check = ["-Y", "verify", "-f", "approvers.txt", "-I", "bob", "-n", APPROVAL, "-s", "a.sig"]
    good = ssh_keygen(*check, cwd=tmp_path, given=MESSAGE)
    assert good.returncode == 0, good
    assert public.fingerprint.encode() in good.stdout
    assert ssh_keygen(*check, cwd=tmp_path, given=MESSAGE + b" ").returncode != 0


def test_no_byte_of_message_or_signature_can_be_changed(tmp_path: Path) -> None:
    path, public = new_key(tmp_path, "ana", passphrase="")
    signature = read_key(path, passphrase="").sign(MESSAGE, REQUEST)
    assert verify(signature, MESSAGE, REQUEST, where=path) == public
    for place in range(len(MESSAGE)):
        changed = bytearray(MESSAGE)
        changed[place] ^= 1
        with pytest.raises(RunError):
            verify(signature, bytes(changed), REQUEST, where=path)
    others = 0
    for place in range(len(signature)):
        for sign in ("A", "\n", " ", "="):
            if signature[place] == sign:
                continue
            try:  # another key may stand in it: then it is not that key's
                found = verify(signature[:place] + sign + signature[place + 1 :], MESSAGE, REQUEST, where=path)
            except RunError:
                others += 1
            else:
                assert found != public, (place, sign)
    assert others > 3 * len(signature)
    for purpose in (GATE, APPROVAL):
        with pytest.raises(RunError, match="it was given for 'luthier-request', not for"):
            verify(signature, MESSAGE, purpose, where=path)
    for cut in ("", signature[:-2], signature + "\n", signature.replace("SSH", "PGP")):
        with pytest.raises(RunError, match="not a signature that counts here"):
            verify(cut, MESSAGE, REQUEST, where=path)


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (None, 0, "the key cannot be read: No such file"),
        (b"-----BEGIN RSA PRIVATE KEY-----\n", 0o600, "not a private key in the format of OpenSSH"),
        (b"ssh-ed25519 AAAA me\n", 0o600, "the public half of a key"),
        ("a key", 0o644, r"may be used by others too \(mode 0644\), so it proves nothing\n  -> chmod 600"),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\n!!\n", 0o600, "the file was changed"),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n", 0o600, "the file was changed|has a passphrase"),
    ],
)
def test_a_key_that_cannot_be_used_is_told(
    tmp_path: Path, content: bytes | str | None, mode: int, message: str
) -> None:
    path = tmp_path / "key"
    if content == "a key":
        new_key(tmp_path, "key", passphrase="")
    elif isinstance(content, bytes):
        path.write_bytes(content)
    if content is not None:
        path.chmod(mode)
    with pytest.raises(UserError, match=message):
        read_key(path, passphrase="")


@needs_ssh
def test_a_key_of_another_type_is_refused(tmp_path: Path) -> None:
    ssh_keygen("-q", "-t", "ecdsa", "-N", "", "-f", "own", cwd=tmp_path)
    with pytest.raises(UserError, match="another type than ssh-ed25519\n  -> name an Ed25519 key"):
        read_key(tmp_path / "own", passphrase="")


def test_without_its_packages_it_says_which_extra_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = new_key(tmp_path, "ana", passphrase="")
    signature = read_key(path, passphrase="").sign(MESSAGE, GATE)
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.setitem(sys.modules, name, None)
    for work in (
        lambda: new_key(tmp_path, "bob", passphrase=""),
        lambda: read_key(path, passphrase=""),
        lambda: verify(signature, MESSAGE, GATE, where=path),
    ):
        with pytest.raises(
            MissingExtra, match=r"'cryptography', which is not installed\n  -> pip install 'luthier\[app"
        ):
            work()
    assert not (tmp_path / "bob").exists()


@pytest.mark.skipif(importlib.util.find_spec("bcrypt") is not None, reason="bcrypt is installed")
def test_a_passphrase_without_bcrypt_names_it(tmp_path: Path) -> None:
    with pytest.raises(MissingExtra, match=r"'bcrypt', which is not installed\n  -> pip install 'luthier\[approvals"):
        new_key(tmp_path, "ana", passphrase="a word")


# --- the approvers' file ---

SPLITTERS = "\u2028\u2029\u0085\x0b\x0c\x1c\r"
"""Where Python ends a line and ssh-keygen does not."""


def test_an_approvers_file_is_read_as_openssh_reads_it(tmp_path: Path) -> None:
    keys = [new_key(tmp_path, name, passphrase="")[1] for name in ("ana", "bob", "eve")]
    path = tmp_path / "approvers.txt"
    path.write_text(
        f'# the board\n\nana {keys[0].line} ana@home\nbob  namespaces="git,{APPROVAL}" {keys[1].line}\n'
        f'eve namespaces="git" {keys[2].line}\n'
    )
    found = read_approvers(path)
    assert [found.name_of(key) for key in keys] == ["ana", "bob", "eve"]
    assert found.may_approve == set(keys[:2]), "eve's is known, and signs other things"
    assert found.others(keys[0]) == {"bob"}
    assert found.others(keys[2]) == {"ana", "bob"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "names no key that may approve"),
        ("*@example.org KEY", ":1: the name '\\*@example.org' is a pattern"),
        ("ana,bob KEY", "is a pattern"),
        ('ana valid-before="20270101" KEY', "are not supported, except namespaces"),
        ("ana cert-authority KEY", "are not supported"),
        ("ana ssh-rsa AAAA", "there is no ssh-ed25519 key behind 'ana'"),
        ("KEY", "there is no ssh-ed25519 key behind 'ssh-ed25519'"),
        ("ana ssh-ed25519 AAAA", "it ends too early"),
        ("ana ssh-ed25519 !!", "the key is not base64"),
        ("ana KEY\nbob KEY", ":2: the same key stands there as 'ana'"),
        ('ana namespaces="git" KEY\nbob KEY', ":2: the same key stands there as 'ana'"),
        *((f"ana KEY ana@host{sign}zed KEY", ":1: the line holds signs that are not shown") for sign in SPLITTERS),
    ],
)
def test_a_line_that_would_be_misread_is_refused(tmp_path: Path, line: str, message: str) -> None:
    key = PublicKey(bytes(range(32))).line
    (tmp_path / "approvers.txt").write_text(line.replace("KEY", key))
    with pytest.raises(RunError, match=message):
        read_approvers(tmp_path / "approvers.txt")


def test_a_key_of_another_length_is_none() -> None:
    blob = PublicKey(bytes(31)).blob
    with pytest.raises(ValueError, match="it is no ssh-ed25519 key"):
        PublicKey.of_blob(blob)
    with pytest.raises(ValueError, match="something follows its end"):
        PublicKey.parse(f"ssh-ed25519 {base64.b64encode(PublicKey(bytes(32)).blob + b'x').decode()}")


P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
ORDER = 2**252 + 27742317777372353535851937790883648493
Point = tuple[int, int]


def decoded(encoding: bytes) -> Point | None:
    """The point of RFC 8032, section 5.1.3, but for y >= p and x = 0 with a sign, which verifiers let through."""
    number = int.from_bytes(encoding, "little")
    y, sign = number % 2**255 % P, number >> 255
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    return None if x * x % P != square else (-x % P if x % 2 != sign else x, y)


def plus(one: Point, other: Point) -> Point:
    (x1, y1), (x2, y2) = one, other
    product = D * x1 * x2 * y1 * y2
    return (
        (x1 * y2 + x2 * y1) * pow(1 + product, -1, P) % P,
        (y1 * y2 + x1 * x2) * pow(1 - product, -1, P) % P,
    )


def times(count: int, point: Point) -> Point:
    total: Point = (0, 1)
    for bit in f"{count:b}":
        total = plus(total, total)
        total = plus(total, point) if bit == "1" else total
    return total


def test_the_keys_of_small_order_are_all_there_and_refused() -> None:
    points = {decoded(encoding) for encoding in SMALL_ORDER}
    assert None not in points
    assert len(points) == 8
    assert all(times(8, point) == (0, 1) for point in points if point is not None)
    found = {times(ORDER, point) for y in range(2, 40) if (point := decoded(y.to_bytes(32, "little"))) is not None}
    assert found == points, "what a multiple of the prime order leaves of a point is of small order"
    for encoding in SMALL_ORDER:
        line = PublicKey(encoding).line
        with pytest.raises(ValueError, match="small order, for which anybody can make up signatures"):
            PublicKey.parse(line)
