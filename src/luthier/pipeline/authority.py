"""Whose keys count here: the user's own, which signs, and those of the approvers' file."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from luthier.errors import RunError, UserError
from luthier.govern.approvers import Approvers, read_approvers
from luthier.govern.keys import PrivateKey, PublicKey, is_locked, read_key, verify
from luthier.store.files import write_atomic
from luthier.store.home import place_of

SIGNING_KEY = "LUTHIER_SIGNING_KEY"
"""Private key that signs decisions, requests and approvals: a file, or the name of a key of `luthier keys new`."""

KEY_PASSPHRASE = "LUTHIER_KEY_PASSPHRASE"
"""Its passphrase; asked for on the terminal where this is not set."""

APPROVERS = "LUTHIER_APPROVERS"
"""The approvers' file of this machine; where it is not set, that beside the registry."""


def keys_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where `luthier keys new` puts keys."""
    return place_of(environment) / "keys"


def own_key(given: str | None, environment: Mapping[str, str] = os.environ) -> PrivateKey | None:
    """The key that was named, else that of LUTHIER_SIGNING_KEY; None where neither is.

    Raises:
        MissingExtra: a package is not installed.
        UserError: there is no such key, or it cannot be opened.
    """
    named = given or environment.get(SIGNING_KEY, "")
    if not named:
        return None
    path, folder = Path(named).expanduser(), keys_folder(environment)
    if not path.exists() and path.name == named and (folder / named).is_file():
        path = folder / named
    elif not path.exists():
        known = sorted(one.stem for one in folder.glob("*.pub"))
        raise UserError(
            f"there is no key {named!r} ({'--key' if given else SIGNING_KEY})",
            way_out=f"name a file, or one of {folder}: {', '.join(known) or 'none yet, `luthier keys new` makes one'}",
        )
    return read_key(path, passphrase=_passphrase(path, environment) if is_locked(path) else "")


def new_passphrase(environment: Mapping[str, str] = os.environ) -> str:
    """For a new key: that of LUTHIER_KEY_PASSPHRASE, else typed twice.

    Raises:
        UserError: neither is there, or what was typed differs.
    """
    given = environment.get(KEY_PASSPHRASE, "")
    if not given and sys.stdin.isatty():
        given = getpass.getpass("passphrase: ")
        if given != getpass.getpass("the same again: "):
            raise UserError("what was typed differs", way_out="run the same command again")
    if not given:
        raise UserError("--passphrase: none was given", way_out=f"type one, or export {KEY_PASSPHRASE}=...")
    return given


def _passphrase(path: Path, environment: Mapping[str, str]) -> str:
    if given := environment.get(KEY_PASSPHRASE, ""):
        return given
    if not sys.stdin.isatty():
        raise UserError(
            f"{path} has a passphrase, and there is no terminal to ask for it",
            way_out=f"export {KEY_PASSPHRASE}=..., or name a key without one",
        )
    return getpass.getpass(f"passphrase of {path}: ")


def approvers_place(out: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """Where the approvers' file of this machine is: as LUTHIER_APPROVERS says, else beside the registry in `out`."""
    named = environment.get(APPROVERS)
    if named == "":
        raise RunError(f"{APPROVERS} is set, and empty", way_out="name the approvers' file, or unset it")
    return Path(named).expanduser() if named else out / "approvers.txt"


def approvers_of(out: Path, environment: Mapping[str, str] = os.environ) -> Approvers | None:
    """Who may approve here; None where no file says so.

    Raises:
        RunError: LUTHIER_APPROVERS names none, or the file is not one.
    """
    path = approvers_place(out, environment)
    if APPROVERS not in environment and not os.path.lexists(path):  # a link to nothing is not the same as no file
        return None
    return read_approvers(path)


def write_signed(path: Path, content: str, key: PrivateKey, purpose: str) -> None:
    """Write a file and the signature over its bytes, which stands beside it; the file comes last."""
    write_atomic(signature_of(path), key.sign(content.encode("utf-8"), purpose))
    write_atomic(path, content)


def signer_of(path: Path, purpose: str) -> PublicKey:
    """The key that signed a file for this purpose.

    Raises:
        MissingExtra: the package cryptography is not installed.
        RunError: the signature is missing, or does not fit the file or the purpose.
    """
    signature = signature_of(path)
    try:
        armoured = signature.read_bytes().decode("ascii")
    except FileNotFoundError as error:
        raise RunError(f"{signature} is missing", way_out="restore it, or have the file signed anew") from error
    except UnicodeDecodeError as error:
        raise RunError(f"{signature} is not a signature", way_out="restore it, or have it signed anew") from error
    return verify(armoured, path.read_bytes(), purpose, where=signature)


def signature_of(path: Path) -> Path:
    """Where the signature over a file stands: 'gate.json.sig'."""
    return path.with_name(f"{path.name}.sig")
