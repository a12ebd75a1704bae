"""API keys: where they come from, how they are compared, and when they may be left out."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable, Mapping
from pathlib import Path

from luthier.errors import UserError

ENVIRONMENT = "LUTHIER_API_KEYS"
"""Keys separated by commas, taken where no file is given."""


class Keys:
    """A set of API keys, held as hashes only."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._hashes = [_hash(key) for key in sorted(keys)]

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def admit(self, authorization: str) -> bool:
        """Whether the header `Authorization` carries one of the keys; takes the same time whichever it is."""
        scheme, _, token = authorization.partition(" ")
        presented = _hash(token.strip())
        matches = [hmac.compare_digest(presented, known) for known in self._hashes]
        return scheme.lower() == "bearer" and any(matches)


def read_keys(path: Path | None, environment: Mapping[str, str]) -> frozenset[str]:
    """Keys of a file, one a line with `# comments`, or of LUTHIER_API_KEYS; empty where neither is given.

    Raises:
        UserError: the file cannot be read or holds no key, or a key cannot be sent in a header. A key is never shown.
    """
    if path is None:
        return frozenset(_checked(environment.get(ENVIRONMENT, "").split(","), ENVIRONMENT))
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        way_out = "give a text file, one key a line"
        raise UserError(f"API keys: {path} cannot be read: {reason}", way_out=way_out) from error
    keys = _checked([line.partition("#")[0] for line in lines], str(path))
    if not keys:
        raise UserError(f"API keys: {path} holds no key", way_out="write one key a line, or leave the file out")
    return frozenset(keys)


def refuse_open_host(host: str, *, has_keys: bool) -> None:
    """Check that a server without keys can be reached from this machine only.

    Raises:
        UserError: it could be reached from elsewhere.
    """
    if not has_keys and not is_loopback(host):
        raise UserError(
            f"refusing to serve on {host!r} without API keys: anyone who reaches this machine could ask",
            way_out=f"give a file of keys or set {ENVIRONMENT}, or serve on 127.0.0.1",
        )


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine; no name is looked up."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _checked(candidates: Iterable[str], source: str) -> list[str]:
    keys = []
    for number, candidate in enumerate(candidates, start=1):
        key = candidate.strip()
        if not key:
            continue
        if not all("!" <= char <= "~" for char in key):
            raise UserError(
                f"API keys: key {number} of {source} has characters that a header cannot carry",
                way_out="use letters, digits and ASCII signs without blanks",
            )
        keys.append(key)
    return keys


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
