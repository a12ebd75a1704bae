"""A strict OpenAI-compatible server on 127.0.0.1 whose model is a function; it keeps what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FIELDS = {"model": str, "messages": list, "temperature": float, "max_tokens": int}


@dataclass
class Fake:
    """What it says, and what it was asked."""

    reply: Callable[[str, str], str]
    """(system, user) -> answer."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    """Of the next answers; 200 once they are used up."""
    finish: str = "stop"
    refusal: str | None = None
    usage: bool = True
    body: bytes | None = None
    url: str = ""


def _refuse(body: dict[str, Any]) -> str:
    """Why OpenAI would refuse the request, or ''."""
    for name, value in body.items():
        if name not in FIELDS:
            return f"unknown field {name}"
        if not isinstance(value, FIELDS[name]):
            return f"{name} is a {type(value).__name__}"
    roles = [message.get("role") for message in body["messages"]]
    turns = roles[1:] if roles[0] == "system" else roles
    if turns != [*["user", "assistant"] * (len(turns) // 2), "user"]:
        return "roles"
    return "" if all(set(message) == {"role", "content"} for message in body["messages"]) else "message"


@contextmanager
def serving(reply: Callable[[str, str], str]) -> Iterator[Fake]:
    """A fake at `fake.url` while the block runs."""
    fake = Fake(reply)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.asked.append(body)
            fake.paths.append(self.path)
            fake.keys.append(self.headers.get("Authorization", ""))
            status = fake.statuses.pop(0) if fake.statuses else 200
            if not self.path.endswith("/chat/completions") or self.headers["Content-Type"] != "application/json":
                status = 404
            if problem := _refuse(body):
                status = 400
                fake.statuses.append(400)
                content = problem.encode()
            else:
                content = self._answer(body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            if status == 429:
                self.send_header("Retry-After", "7")
            self.end_headers()
            self.wfile.write(content)

        def _answer(self, body: dict[str, Any]) -> bytes:
            if fake.body is not None:
                return fake.body
            system = next((one["content"] for one in body["messages"] if one["role"] == "system"), "")
            text = fake.reply(system, body["messages"][-1]["content"])
            message = {"role": "assistant", "content": None if fake.refusal else text, "refusal": fake.refusal}
            choice = {"index": 0, "message": message, "finish_reason": fake.finish}
            usage = {"usage": {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}} if fake.usage else {}
            return json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], **usage}).encode()

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
