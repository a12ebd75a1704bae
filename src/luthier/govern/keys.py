"""Ed25519 keys and signatures in OpenSSH's formats, so that keys that people have can be used, and checked by hand.

A signature is what `ssh-keygen -Y sign` writes (OpenSSH, PROTOCOL.sshsig): it carries the public key, covers a hash of
the message and a namespace, and so cannot be taken for one that was given for another purpose. Ed25519: RFC 8032.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.errors import MissingExtra, RunError, UserError
from luthier.store.files import disk_errors, sync, write_all

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_TYPE = "ssh-ed25519"
GATE, REQUEST, APPROVAL = "luthier-gate", "luthier-request", "luthier-approval"
"""Namespaces: what a signature was given for."""

_EXTRA = "approvals"
_MAGIC, _VERSION = b"SSHSIG", 1
_HASHES = {b"sha512": hashlib.sha512, b"sha256": hashlib.sha256}
_BEGIN, _END, _WIDTH = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----", 70
_OPENSSH = b"-----BEGIN OPENSSH PRIVATE KEY-----"
_KEY_MAGIC = b"openssh-key-v1\0"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]*")

_YS = (
    "01" + "00" * 31, "00" * 32, "ec" + "ff" * 30 + "7f", "ed" + "ff" * 30 + "7f", "ee" + "ff" * 30 + "7f",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
)  # fmt: skip
SMALL_ORDER = frozenset(
    bytes.fromhex(y)[:31] + bytes([bytes.fromhex(y)[31] | sign << 7]) for y in _YS for sign in (0, 1)
)
"""Encodings of the eight points whose order divides 8, either sign, reduced or not: for a key that is one of them
signatures can be made up (Chalkias, Garillot, Nikolaenko 2020, "Taming the many EdDSAs", section 4 and table 2)."""


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key; two are the same where their 32 bytes are."""

    raw: bytes

    @property
    def blob(self) -> bytes:
        """As the wire has it: type and key, each with its length."""
        return _string(KEY_TYPE.encode()) + _string(self.raw)

    @property
    def line(self) -> str:
        """'ssh-ed25519 AAAA...'."""
        return f"{KEY_TYPE} {base64.b64encode(self.blob).decode()}"

    @property
    def fingerprint(self) -> str:
        """'SHA256:...', as `ssh-keygen -l` says it."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")

    @classmethod
    def parse(cls, line: str) -> PublicKey:
        """Of 'ssh-ed25519 AAAA...', a comment may follow.

        Raises:
            ValueError: it is no such key; the message says why.
        """
        kind, _, rest = line.partition(" ")
        if kind != KEY_TYPE:
            raise ValueError(f"the key type is {kind!r}, and only {KEY_TYPE} is used")
        try:
            blob = base64.b64decode(rest.split(" ")[0], validate=True)
        except binascii.Error as error:
            raise ValueError("the key is not base64") from error
        return cls.of_blob(blob)

    @classmethod
    def of_blob(cls, blob: bytes) -> PublicKey:
        """Of what `blob` gives.

        Raises:
            ValueError: it is no such key.
        """
        kind, raw = _strings(blob, 2)
        if kind != KEY_TYPE.encode() or len(raw) != 32:
            raise ValueError(f"it is no {KEY_TYPE} key")
        if raw in SMALL_ORDER:
            raise ValueError("it is a key of small order, for which anybody can make up signatures")
        return cls(raw)


@dataclass(frozen=True)
class PrivateKey:
    """A key that can sign."""

    secret: Ed25519PrivateKey
    where: Path

    @property
    def public(self) -> PublicKey:
        return PublicKey(self.secret.public_key().public_bytes_raw())

    def sign(self, message: bytes, namespace: str) -> str:
        """The signature as `ssh-keygen -Y sign -n NAMESPACE` writes it."""
        signed = self.secret.sign(_covered(message, namespace, b"sha512"))
        blob = _MAGIC + struct.pack(">I", _VERSION) + _string(self.public.blob) + _string(namespace.encode())
        blob += _string(b"") + _string(b"sha512") + _string(_string(KEY_TYPE.encode()) + _string(signed))
        return _armored(blob)


def verify(signature: str, message: bytes, namespace: str, *, where: Path) -> PublicKey:
    """The key that gave this signature over this message for this purpose.

    Args:
        signature: in OpenSSH's armour.
        message: the bytes that were signed.
        namespace: what for.
        where: its file, for the message of an error.

    Raises:
        MissingExtra: the package cryptography is not installed.
        RunError: it is no signature, or not over this message, or for another purpose.
    """
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ModuleNotFoundError as error:
        raise MissingExtra("cryptography", extra=_EXTRA, purpose=f"checking the signature {where}") from error
    try:
        key, covered, signed = _read(signature, message, namespace)
        Ed25519PublicKey.from_public_bytes(key.raw).verify(signed, covered)
    except InvalidSignature as error:
        raise RunError(
            f"{where.with_suffix('')} was changed after it was signed, or {where.name} was",
            way_out="restore both from a backup, or have it signed anew",
        ) from error
    except ValueError as error:
        raise RunError(
            f"{where} is not a signature that counts here: {error}", way_out="restore it, or have it signed anew"
        ) from error
    return key


def _read(signature: str, message: bytes, namespace: str) -> tuple[PublicKey, bytes, bytes]:
    """Key, what is covered, and the 64 bytes over it."""
    text = signature.removesuffix("\n")
    if not (text.startswith(_BEGIN + "\n") and text.endswith("\n" + _END)):
        raise ValueError(f"it does not begin with {_BEGIN} and end with {_END}")
    try:
        blob = base64.b64decode(text[len(_BEGIN) : -len(_END)].replace("\n", ""), validate=True)
    except binascii.Error as error:
        raise ValueError("it is not base64") from error
    if _armored(blob) != signature:
        raise ValueError("it is not written as ssh-keygen writes it")
    head = _MAGIC + struct.pack(">I", _VERSION)
    if not blob.startswith(head):
        raise ValueError("it is not version 1 of SSHSIG")
    key, given_for, reserved, algorithm, signed = _strings(blob[len(head) :], 5)
    if given_for != namespace.encode():
        raise ValueError(f"it was given for {given_for.decode(errors='replace')!r}, not for {namespace!r}")
    if reserved or algorithm not in _HASHES:
        raise ValueError(f"it covers a hash that is not known here ({algorithm.decode(errors='replace')!r})")
    kind, found = _strings(signed, 2)
    if kind != KEY_TYPE.encode() or len(found) != 64:
        raise ValueError(f"it was made by another kind of key than {KEY_TYPE}")
    return PublicKey.of_blob(key), _covered(message, namespace, algorithm), found


def _covered(message: bytes, namespace: str, algorithm: bytes) -> bytes:
    digest = _HASHES[algorithm](message).digest()
    return _MAGIC + _string(namespace.encode()) + _string(b"") + _string(algorithm) + _string(digest)


def _armored(blob: bytes) -> str:
    text = base64.b64encode(blob).decode()
    lines = [text[start : start + _WIDTH] for start in range(0, len(text), _WIDTH)]
    return "\n".join([_BEGIN, *lines, _END]) + "\n"


def _string(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def _strings(blob: bytes, count: int) -> list[bytes]:
    """Exactly so many strings, each behind its length.

    Raises:
        ValueError: it holds fewer, or more.
    """
    found = []
    for _ in range(count):
        length = int.from_bytes(blob[:4], "big")
        if len(blob) < 4 + length:
            raise ValueError("it ends too early")
        found.append(blob[4 : 4 + length])
        blob = blob[4 + length :]
    if blob:
        raise ValueError("something follows its end")
    return found


# --- private keys -----------------------------------------------------------------------------------------------------


def new_key(folder: Path, name: str, *, passphrase: str) -> tuple[Path, PublicKey]:
    """Make a pair in `folder`: NAME for its owner alone (mode 0600), NAME.pub beside it.

    Args:
        folder: made for its owner alone where it is missing.
        name: of the pair; also how the owner is called in the approvers' file.
        passphrase: that encrypts it, as OpenSSH does; '' for none.

    Returns:
        The private key's file, and the public key.

    Raises:
        MissingExtra: a package is not installed.
        UserError: the name cannot be one, or there is such a key.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} cannot be the name of a key", way_out="use letters, digits and . _ @ + -")
    path = folder / name
    for taken in (path, path.with_name(f"{name}.pub")):
        if taken.exists():
            raise UserError(f"{taken} exists already", way_out="give another name; a key is never overwritten")
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ModuleNotFoundError as error:
        raise MissingExtra("cryptography", extra=_EXTRA, purpose="making a key") from error
    secret = Ed25519PrivateKey.generate()
    lock: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        lock = serialization.BestAvailableEncryption(passphrase.encode())
    try:
        content = secret.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, lock)
    except UnsupportedAlgorithm as error:
        raise MissingExtra("bcrypt", extra=_EXTRA, purpose="a key with a passphrase") from error
    public = PublicKey(secret.public_key().public_bytes_raw())
    with disk_errors(path):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_new(path, content, 0o600)
        _write_new(path.with_name(f"{name}.pub"), f"{public.line} {name}\n".encode(), 0o644)
        sync(folder)
    return path, public


def _write_new(path: Path, content: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        write_all(fd, content)
        os.fsync(fd)
    finally:
        os.close(fd)


def is_locked(path: Path) -> bool:
    """Whether a private key has a passphrase.

    Raises:
        UserError: the file is no private key in OpenSSH's format, or others may read it.
    """
    return _cipher(_private_content(path), path) != b"none"


def read_key(path: Path, *, passphrase: str) -> PrivateKey:
    """Open a private key in OpenSSH's format, as `ssh-keygen -t ed25519` and `luthier keys new` write it.

    Raises:
        MissingExtra: a package is not installed.
        UserError: the file cannot be used, or the passphrase is not its own.
    """
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_ssh_private_key
    except ModuleNotFoundError as error:
        raise MissingExtra("cryptography", extra=_EXTRA, purpose="signing") from error
    content = _private_content(path)
    locked = _cipher(content, path) != b"none"
    if locked and not passphrase:
        raise UserError(f"{path} has a passphrase, and none was given", way_out="give it, or name another key")
    try:
        secret = load_ssh_private_key(content, passphrase.encode() if locked else None)
    except UnsupportedAlgorithm as error:
        if "bcrypt" in str(error):
            raise MissingExtra("bcrypt", extra=_EXTRA, purpose=f"{path}, a key with a passphrase,") from error
        raise UserError(f"{path} cannot be used: {error}", way_out="ssh-keygen -t ed25519 makes one") from error
    except ValueError as error:
        why = "the passphrase is not its own, or the file was changed" if locked else "the file was changed"
        raise UserError(f"{path} cannot be opened: {why}", way_out="check both, or name another key") from error
    if not isinstance(secret, Ed25519PrivateKey):
        raise UserError(
            f"{path} is a key of another type than {KEY_TYPE}",
            way_out="name an Ed25519 key; `ssh-keygen -t ed25519` and `luthier keys new` make one",
        )
    return PrivateKey(secret, path)


def _private_content(path: Path) -> bytes:
    try:
        mode, content = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: the key cannot be read: {error.strerror}", way_out="name another with --key"
        ) from error
    if not content.startswith(_OPENSSH):
        public = content.startswith(KEY_TYPE.encode())
        raise UserError(
            f"{path} is {'the public half of a key' if public else 'not a private key in the format of OpenSSH'}",
            way_out=f"name {path.with_suffix('')}" if public else "`luthier keys new` or `ssh-keygen` make one",
        )
    if mode & 0o077:
        raise UserError(
            f"{path} may be used by others too (mode {mode & 0o777:04o}), so it proves nothing",
            way_out=f"chmod 600 {path}, and make a new one if others had access",
        )
    return content


def _cipher(content: bytes, path: Path) -> bytes:
    """'none' where the key has no passphrase."""
    body = b"".join(line for line in content.splitlines() if not line.startswith(b"-----"))
    try:
        blob = base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise UserError(f"{path} cannot be opened: the file was changed", way_out="name another key") from error
    size = len(_KEY_MAGIC)
    length = int.from_bytes(blob[size : size + 4], "big")
    return blob[size + 4 : size + 4 + length]
