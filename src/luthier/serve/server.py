"""Run the app with uvicorn until a signal ends it; requests that are under way are answered first."""

from __future__ import annotations

import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from luthier.errors import UserError
from luthier.serve.app import require
from luthier.serve.auth import refuse_open_host

if TYPE_CHECKING:
    from fastapi import FastAPI

GRACE_SECONDS = 30
"""How long requests under way may take after SIGTERM."""


def run(app: FastAPI, *, host: str = "127.0.0.1", port: int = 8000, ready: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then return.

    Args:
        app: of `create_app`.
        host: address to listen on; other than loopback only with API keys.
        port: 0 takes a free one.
        ready: told the address once connections are accepted.

    Raises:
        MissingExtra: uvicorn is not installed.
        UserError: there are no keys for an open host, or the address cannot be listened on.
    """
    uvicorn = require("uvicorn")
    refuse_open_host(host, has_keys=app.state.has_keys)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    server = uvicorn.Server(config)
    with _listen(host, port) as listening, _signals_end(server):
        if ready is not None:
            ready(_url(listening))
        server.run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    way_out = "choose another --port (0 takes a free one) or --host"
    if not 0 <= port <= 65535:
        raise UserError(f"port {port} is not between 0 and 65535", way_out=way_out)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]
        raise UserError(f"cannot listen on {host}, port {port}: {reason}", way_out=way_out) from error


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ipaddress.ip_address(host).version == 6 else f"http://{host}:{port}"


@contextmanager
def _signals_end(server: Any) -> Iterator[None]:
    """SIGTERM and SIGINT end the server, not the process.

    uvicorn raises a caught signal again after its shutdown, under the handlers that it found; these make that harmless.
    They also serve in the moment before uvicorn has installed its own. Signals reach the main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
