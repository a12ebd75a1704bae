"""Consistent, keyed pseudonyms, and the encrypted mapping back, which is kept only where the user asks for it."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections.abc import Iterable, Mapping
from json import JSONDecodeError, dumps, loads
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.data.privacy.spans import SECRET_PLACEHOLDER, Span
from luthier.data.privacy.surrogates import SURROGATES, Draw, same_classes
from luthier.errors import DataError, MissingExtra, RecipeError
from luthier.store.files import disk_errors, write_all

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

KEY_VARIABLE = "LUTHIER_PRIVACY_KEY"
PASSPHRASE_VARIABLE = "LUTHIER_MAPPING_PASSPHRASE"
_KEY_FILE = "privacy.key"
_SHORTEST_KEY = 16
_TRIES = 32
_SCRYPT = {"n": 2**15, "r": 8, "p": 1}  # RFC 7914; 32 MiB, about a tenth of a second


class Pseudonyms:
    """Replaces values by surrogates; the same key, kind and value always give the same one.

    Attributes:
        mapping: (kind, value) -> surrogate, of all that were replaced so far.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.mapping: dict[tuple[str, str], str] = {}

    def of(self, kind: str, value: str) -> str:
        """The surrogate of a value; never the value itself, however it is spelled."""
        known = self.mapping.get((kind, value))
        if known is None:
            known = self.mapping[kind, value] = self._made(kind, value)
        return known

    def replace(self, text: str, spans: Iterable[Span]) -> str:
        """`text` with personal data replaced by surrogates and secrets by their placeholder."""
        for span in sorted(spans, key=lambda span: span.start, reverse=True):
            new = SECRET_PLACEHOLDER if span.is_secret else self.of(span.kind, text[span.start : span.end])
            text = text[: span.start] + new + text[span.end :]
        return text

    def _made(self, kind: str, value: str) -> str:
        make = SURROGATES.get(kind, same_classes)
        plain = _plain(value)
        for attempt in range(_TRIES):
            surrogate = make(value, Draw(self._key, _FAMILY.get(kind, kind), plain, str(attempt)))
            if _plain(surrogate) != plain:
                return surrogate
        return f"[{kind.upper()}]"  # nothing in it can change: a lone particle, a sign


_FAMILY = {"date_of_birth": "date", "location": "place", "address": "place"}


def _plain(value: str) -> str:
    """What does not count when two spellings are compared: case, blanks and separators of numbers."""
    return re.sub(r"[\s().\-/]+", "", value).casefold()


def read_key(home: Path, environment: Mapping[str, str] = os.environ) -> bytes:
    """The key of all pseudonyms: from the environment, else from a file in `home` that is made once.

    Raises:
        RecipeError: the key in the environment is too short to be one.
        DataError: the file is no key, or others may read it.
    """
    given = environment.get(KEY_VARIABLE)
    if given is not None:
        if len(given) < _SHORTEST_KEY:
            raise RecipeError(
                f"{KEY_VARIABLE} has {len(given)} characters",
                way_out=f"give at least {_SHORTEST_KEY}, drawn at random, or unset it",
            )
        return hashlib.sha256(given.encode()).digest()
    path = home / _KEY_FILE
    with disk_errors(path):
        if not path.exists():
            _make_key(path)
        if path.stat().st_mode & 0o077:
            raise DataError(f"{path}: others may read the key of pseudonyms", way_out=f"chmod 600 {path}")
        content = path.read_bytes().strip()
    if re.fullmatch(rb"[0-9a-f]{64}", content) is None:
        raise DataError(
            f"{path} is no key of pseudonyms", way_out="restore it, or delete it: the next run makes other pseudonyms"
        )
    return bytes.fromhex(content.decode())


def _make_key(path: Path) -> None:
    """Whole or not at all, and never over another's: a hard link fails where the name exists."""
    partial = _private(path, secrets.token_hex(32))
    try:
        os.link(partial, path)
    except FileExistsError:
        return  # another process was first
    finally:
        partial.unlink()


def _private(path: Path, content: str) -> Path:
    """A file beside `path` that only its owner may read, from its first byte on."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    number = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        write_all(number, content.encode())
        os.fsync(number)
    finally:
        os.close(number)
    return partial


def write_mapping(path: Path, mapping: Mapping[tuple[str, str], str], *, passphrase: str) -> None:
    """Encrypt a mapping (Fernet, its key derived by scrypt) and write it, readable for its owner only.

    Raises:
        MissingExtra: the package cryptography is not installed.
    """
    salt = secrets.token_bytes(16)
    content = dumps([[kind, value, surrogate] for (kind, value), surrogate in sorted(mapping.items())])
    token = _fernet(passphrase, salt).encrypt(content.encode(errors="surrogatepass"))
    derived = {"scrypt": _SCRYPT, "salt": b64encode(salt).decode()}
    whole = {"format": "luthier-mapping/1", "kdf": derived, "token": token.decode()}
    with disk_errors(path):
        _private(path, dumps(whole) + "\n").replace(path)


def read_mapping(path: Path, *, passphrase: str) -> dict[tuple[str, str], str]:
    """Open what `write_mapping` wrote.

    Raises:
        DataError: the file is missing, is no mapping, or the passphrase is not its own.
    """
    try:
        from cryptography.fernet import InvalidToken
    except ModuleNotFoundError as error:
        raise MissingExtra("cryptography", extra="privacy", purpose="the mapping of pseudonyms") from error
    if not path.is_file():
        raise DataError(f"{path} is missing", way_out="name the file that data.privacy.keep_mapping wrote")
    with disk_errors(path):
        content = path.read_bytes()
    try:
        whole = loads(content.decode())
        salt, token = b64decode(whole["kdf"]["salt"]), whole["token"]
        rows = loads(_fernet(passphrase, salt).decrypt(token.encode()))
        return {(kind, value): surrogate for kind, value, surrogate in rows}
    except InvalidToken as error:
        raise DataError(
            f"{path} cannot be opened: the passphrase is not its own, or the file was changed",
            way_out=f"set {PASSPHRASE_VARIABLE} to the passphrase of the run that wrote it",
        ) from error
    except (JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{path} is not a mapping of pseudonyms", way_out="name the file of keep_mapping") from error


def look_up(mapping: Mapping[tuple[str, str], str], surrogate: str | None, *, file: Path) -> list[dict[str, str]]:
    """Rows of a mapping by kind and surrogate: all, or those of one surrogate.

    Raises:
        DataError: nothing has that surrogate.
    """
    rows = [
        {"kind": kind, "surrogate": stands, "value": value}
        for (kind, value), stands in sorted(mapping.items(), key=lambda one: (one[0][0], one[1], one[0][1]))
        if surrogate is None or stands == surrogate
    ]
    if surrogate is not None and not rows:
        raise DataError(
            f"{file} has no surrogate that is spelled like that",
            way_out="copy it from the prepared data as it is there; without --surrogate all are shown",
        )
    return rows


def mapping_passphrase(environment: Mapping[str, str] = os.environ, *, opening: Path | None = None) -> str:
    """The passphrase of the mapping that is to be written, or of a file that is to be opened.

    Raises:
        RecipeError: it is not set.
    """
    passphrase = environment.get(PASSPHRASE_VARIABLE, "")
    if not passphrase and opening is not None:
        raise RecipeError(
            f"{opening} is encrypted, and {PASSPHRASE_VARIABLE} is not set",
            way_out=f"export {PASSPHRASE_VARIABLE}=... with the passphrase of the run that wrote it",
        )
    if not passphrase:
        raise RecipeError(
            f"data.privacy.keep_mapping needs a passphrase, and {PASSPHRASE_VARIABLE} is not set",
            way_out=f"export {PASSPHRASE_VARIABLE}=..., or leave keep_mapping out",
        )
    return passphrase


def _fernet(passphrase: str, salt: bytes) -> Fernet:
    try:
        from cryptography.fernet import Fernet
    except ModuleNotFoundError as error:
        raise MissingExtra("cryptography", extra="privacy", purpose="data.privacy.keep_mapping") from error
    key = hashlib.scrypt(passphrase.encode(), salt=salt, dklen=32, maxmem=2**26, **_SCRYPT)
    return Fernet(urlsafe_b64encode(key))
