"""Who may approve: a file that names keys, in the format that OpenSSH calls ALLOWED SIGNERS (ssh-keygen(1))."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import RunError
from luthier.govern.keys import APPROVAL, KEY_TYPE, PublicKey

_NAMESPACES = re.compile(r'namespaces="([^"]*)"')


@dataclass(frozen=True)
class Approvers:
    """What an approvers' file says."""

    where: Path
    sha256: str
    """Of its bytes."""
    content: bytes
    names: dict[PublicKey, str]
    """Whose each key is, may it approve or not."""
    may_approve: frozenset[PublicKey]

    def name_of(self, key: PublicKey) -> str:
        """Whose key it is; '' for nobody's."""
        return self.names.get(key, "")

    def described(self, key: PublicKey, otherwise: str) -> str:
        """'ana (SHA256:...)'; who does not stand in the file is called what he calls himself, and that is said."""
        name = self.name_of(key)
        return f"{name} ({key.fingerprint})" if name else described(otherwise, key)

    def others(self, key: PublicKey) -> set[str]:
        """Who could approve what this key asks for: all but its owner."""
        return {self.names[one] for one in self.may_approve if one != key and self.names[one] != self.name_of(key)}


def read_approvers(path: Path) -> Approvers:
    """Read the file: one key a line, `NAME ssh-ed25519 AAAA...`; `#` begins a comment.

    Of the options that the format knows, `namespaces` is taken; the others would have to be obeyed, and are refused.

    Raises:
        RunError: it is missing, or a line is not so; the message names the line.
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-8")
    except FileNotFoundError as error:
        raise RunError(
            f"there is no approvers' file at {path}",
            way_out="write one, a line `NAME ssh-ed25519 AAAA...` for each key",
        ) from error
    except OSError as error:
        raise RunError(f"{path}: the approvers' file cannot be read: {error.strerror}", way_out="let it be") from error
    except UnicodeDecodeError as error:
        raise RunError(f"{path} is not UTF-8 text", way_out="write one key a line, as ssh-keygen does") from error
    names: dict[PublicKey, str] = {}
    may_approve: set[PublicKey] = set()
    for number, written in enumerate(text.split("\n"), start=1):  # as ssh-keygen does, at no other sign
        line = written.removesuffix("\r")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            if not line.replace("\t", " ").isprintable():
                raise ValueError("the line holds signs that are not shown")
            name, key, usable = _parse(line.strip())
            if key in names:
                raise ValueError(f"the same key stands there as {names[key]!r}")
        except ValueError as error:
            raise RunError(
                f"{path}:{number}: {error}", way_out="write a line as `NAME ssh-ed25519 AAAA...`; see docs/gate.md"
            ) from error
        names[key] = name
        if usable:
            may_approve.add(key)
    if not may_approve:
        raise RunError(f"{path} names no key that may approve", way_out="write a line `NAME ssh-ed25519 AAAA...`")
    return Approvers(path, hashlib.sha256(content).hexdigest(), content, names, frozenset(may_approve))


def _parse(line: str) -> tuple[str, PublicKey, bool]:
    """Name, key, and whether it may approve."""
    name, _, rest = line.partition(" ")
    if re.search(r"[*?!,\"]", name):
        raise ValueError(f"the name {name!r} is a pattern; an approval is one person's, write one name")
    options, found, key = rest.lstrip().partition(KEY_TYPE)
    options = options.strip()
    if not found:
        raise ValueError(f"there is no {KEY_TYPE} key behind {name!r}, and only that type is used")
    usable = True
    if options:
        given = _NAMESPACES.fullmatch(options)
        if given is None:
            raise ValueError(f"the options {options!r} are not supported, except namespaces")
        usable = APPROVAL in given[1].split(",")
    return name, PublicKey.parse(found + key), usable


def described(name: str, key: PublicKey) -> str:
    """Of somebody whose name nothing but himself vouches for."""
    return f"{name} (as he calls himself, {key.fingerprint})"
