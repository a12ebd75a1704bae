"""A guard that lets no socket leave this machine."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable
from typing import Any

from luthier.errors import UserError


class NetworkRefused(UserError, OSError):
    """Something tried to reach another machine while offline."""


def is_offline() -> bool:
    """Whether `--offline` or LUTHIER_OFFLINE=1 is in force."""
    return os.environ.get("LUTHIER_OFFLINE", "") not in ("", "0")


def guard() -> None:
    """From now on, connecting or sending anywhere but to this machine, and looking up names, raises NetworkRefused."""
    if getattr(socket.socket, "guarded_by_luthier", False):
        return
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex
    sendto, sendmsg = socket.socket.sendto, socket.socket.sendmsg

    def checked_connect(self: socket.socket, address: Any) -> None:
        _refuse(self.family, address)
        connect(self, address)

    def checked_connect_ex(self: socket.socket, address: Any) -> int:
        _refuse(self.family, address)
        return connect_ex(self, address)

    def checked_sendto(self: socket.socket, data: Any, *rest: Any) -> int:
        _refuse(self.family, rest[-1])
        return sendto(self, data, *rest)

    def checked_sendmsg(self: socket.socket, buffers: Any, *rest: Any) -> int:
        if len(rest) > 2 and rest[2] is not None:
            _refuse(self.family, rest[2])
        return sendmsg(self, buffers, *rest)

    patched: Any = socket.socket
    patched.connect, patched.connect_ex = checked_connect, checked_connect_ex
    patched.sendto, patched.sendmsg = checked_sendto, checked_sendmsg
    patched.guarded_by_luthier = True
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr"):
        setattr(socket, name, _checked_lookup(getattr(socket, name)))


def _checked_lookup(lookup: Callable[..., Any]) -> Callable[..., Any]:
    def checked(host: Any, *rest: Any, **more: Any) -> Any:
        if host is not None and not is_here(host.decode() if isinstance(host, bytes) else str(host)):
            raise NetworkRefused(
                f"offline: {host!r} was to be looked up", way_out="drop --offline, or fetch what is needed first"
            )
        return lookup(host, *rest, **more)

    return checked


def _refuse(family: int, address: Any) -> None:
    if family in (socket.AF_INET, socket.AF_INET6) and not is_here(str(address[0])):
        raise NetworkRefused(
            f"offline: a connection to {address[0]} was refused",
            way_out="drop --offline, or fetch what is needed first",
        )


def is_here(host: str) -> bool:
    """Whether a host is this machine itself."""
    if host in ("", "localhost"):
        return True
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return found.is_loopback or found.is_unspecified
