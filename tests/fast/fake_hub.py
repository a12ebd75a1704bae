"""A hub on this machine: as much of the Hugging Face hub's protocol as reading a data set takes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


@dataclass
class Hub:
    """One data set, with the files of each commit."""

    name: str
    files: dict[str, dict[str, bytes]]
    """Commit -> path -> content."""
    token: str = ""
    """What a request must bring; '' for a public data set."""
    url: str = ""
    asked: list[str] = field(default_factory=list)

    def tree(self, commit: str, folder: str, recursive: bool) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for path, content in self.files[commit].items():
            if folder and not path.startswith(f"{folder}/"):
                continue
            rest = path[len(folder) + 1 :] if folder else path
            parts = rest.split("/")
            for depth in range(1, len(parts)) if recursive else range(1, min(2, len(parts))):
                inner = "/".join([*([folder] if folder else []), *parts[:depth]])
                found[inner] = {"type": "directory", "path": inner, "oid": "0" * 40, "size": 0}
            if recursive or len(parts) == 1:
                found[path] = _file(path, content)
        return list(found.values())


def _file(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "oid": hashlib.sha1(content).hexdigest(), "size": len(content)}


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Answer on a free port until the end."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            self.body = self.rfile.read(int(self.headers.get("content-length", 0)))
            self.do_GET()

        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            path = unquote(asked.path)
            hub.asked.append(path)
            if hub.token and self.headers.get("authorization") != f"Bearer {hub.token}":
                return self.say(401, b"{}", **{"X-Error-Code": "RepoNotFound"})
            api, files = f"/api/datasets/{hub.name}", f"/datasets/{hub.name}/resolve/"
            if path.startswith(files):
                commit, _, name = path.removeprefix(files).partition("/")
                return self.send_file(hub.files.get(COMMITS.get(commit, commit), {}).get(name))
            if not path.startswith(api):
                return self.say(404, b"{}", **{"X-Error-Code": "RepoNotFound"})
            found = re.fullmatch(r"(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?", path.removeprefix(api))
            kind, revision, inner = found.groups() if found else (None, "?", "")
            commit = COMMITS.get(revision or "main", revision or "")
            if commit not in hub.files:
                return self.say(404, b"{}", **{"X-Error-Code": "RevisionNotFound"})
            if kind == "tree":
                return self.send_json(hub.tree(commit, inner or "", "recursive=true" in asked.query.lower()))
            if kind == "paths-info":
                return self.send_json(self.paths_info(commit))
            return self.send_json({"_id": "1", "id": hub.name, "sha": commit, "private": False, "siblings": []})

        def paths_info(self, commit: str) -> list[dict[str, Any]]:
            asked = self.body.decode()
            names = json.loads(asked)["paths"] if asked.startswith("{") else re.findall(r"paths=([^&]*)", asked)
            every = {one["path"]: one for one in hub.tree(commit, "", True)}
            return [every[unquote(name)] for name in names if unquote(name) in every]

        def send_file(self, content: bytes | None) -> None:
            if content is None:
                return self.say(404, b"", **{"X-Error-Code": "EntryNotFound"})
            first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", "bytes=0-")).groups()  # type: ignore[union-attr]
            end = min(int(last or len(content)), len(content) - 1)
            part = content[int(first) : end + 1]
            span = f"bytes {first}-{end}/{len(content)}"
            return self.say(206 if "range" in self.headers else 200, part, **{"Content-Range": span, "ETag": '"1"'})

        def send_json(self, document: Any) -> None:
            self.say(200, json.dumps(document).encode())

        def say(self, code: int, body: bytes, **headers: str) -> None:
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
