"""What stands before every request: a key, a host that is meant, and a body of bearable size. Plain ASGI."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from luthier.errors import AuthError, LuthierError, UserError
from luthier.serve.auth import Keys, is_loopback

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN_PATHS = frozenset({"/health"})
"""Answered without a key, for load balancers."""
_DRAINED = 16
"""A body is read, and thrown away, up to so many times its limit, so that the client gets to see the refusal."""


class HostRefused(UserError):
    """A server without keys was asked under a name that is not this machine's own."""

    http_status = 403


class BodyTooLarge(UserError):
    """A request body is larger than the server takes."""

    http_status = 413


class Guard:
    """Refuses before anything is parsed; hands the whole body on.

    Args:
        app: what is guarded.
        keys: that open it; with none, only requests under a loopback name are let in. A web page can make a browser
            ask any name that it lets resolve to 127.0.0.1 (DNS rebinding), but cannot forge the Host header.
        max_body_bytes: largest body.
    """

    def __init__(self, app: ASGIApp, *, keys: Keys, max_body_bytes: int) -> None:
        self._app = app
        self._keys = keys
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            if scope["path"] not in OPEN_PATHS:
                self._check(headers)
            body = await self._read(receive)
        except UserError as error:
            await _refuse(send, error)
            return
        if body is not None:
            await self._app(scope, _replay(body, receive), send)

    def _check(self, headers: dict[str, str]) -> None:
        if self._keys:
            if not self._keys.admit(headers.get("authorization", "")):
                found = "a key that is not known" if "authorization" in headers else "no key"
                raise AuthError(f"the request came with {found}", way_out="send the header 'Authorization: Bearer KEY'")
            return
        name = _host_name(headers.get("host", ""))
        if not is_loopback(name):
            raise HostRefused(
                f"this server has no API keys and answers under loopback names only, not {name[:200]!r}",
                way_out="ask http://127.0.0.1, or serve with API keys",
            )

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body; None where the client went away."""
        parts: list[bytes] = []
        size = 0
        more = True
        while more and size <= self._max_body_bytes * _DRAINED:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size <= self._max_body_bytes:
                parts.append(part)
            more = message.get("more_body", False)
        if size > self._max_body_bytes:
            raise BodyTooLarge(
                f"the request body is larger than {self._max_body_bytes} bytes", way_out="send less text at a time"
            )
        return b"".join(parts)


def error_body(error: LuthierError) -> dict[str, Any]:
    """An error in OpenAI's schema."""
    code = "invalid_api_key" if isinstance(error, AuthError) else getattr(error, "code", "") or None
    kind = "invalid_request_error" if error.http_status < 500 else "server_error"
    return {"error": {"message": str(error), "type": kind, "param": getattr(error, "param", None), "code": code}}


def _host_name(host: str) -> str:
    """Host without port: 'localhost:8000' -> 'localhost', '[::1]:8000' -> '::1'."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


async def _refuse(send: Send, error: UserError) -> None:
    content = json.dumps(error_body(error), ensure_ascii=False).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"connection", b"close"),
    ]
    if isinstance(error, AuthError):
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.http_status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
