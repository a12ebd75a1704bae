"""Object stores on this machine, each a real server of its protocol, for tests that read through HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FETCH = """
import json, sys
from luthier.data.fetch import fetch
from luthier.data.read import rows
from luthier.errors import DataError
for url in sys.argv[1:]:
    try:
        said = sum(1 for _ in rows(fetch(url, query=None, offline=False).path))
    except DataError as error:
        said = str(error)
    print(json.dumps([url, said]))
"""


def fetched(urls: list[str], *, cwd: Path, **more: str) -> dict[str, Any]:
    """Rows behind each URL, or what is said about it; by one process: to start one takes longer than to ask."""
    settings = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(cwd / "hf"), "LUTHIER_HOME": str(cwd / "home"), **more}
    command = [sys.executable, "-c", FETCH, *urls]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


@contextlib.contextmanager
def serving(command: list[str], port: int, *, log: Path, seconds: float = 30) -> Iterator[str]:
    """Run a server until it answers on `port`; stop it at the end."""
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, cwd=log.parent) as process:
        try:
            until = time.monotonic() + seconds
            while time.monotonic() < until and process.poll() is None:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                time.sleep(0.1)
            else:
                pytest.fail(f"{command[0]} did not start: {log.read_text()[-2000:]}")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """moto's server: Amazon's protocol."""
    for package in ("s3fs", "moto", "flask", "flask_cors"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'luthier[cloud]' moto flask-cors")
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with serving(command, port, log=folder / "moto.log") as url:
        yield url


@contextlib.contextmanager
def azure_server(folder: Path) -> Iterator[str]:
    """Azurite, Microsoft's own emulator of its blobs; from npm."""
    pytest.importorskip("adlfs", reason="adlfs is not installed: pip install 'luthier[cloud]'")
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("azurite-blob is not installed: npm install -g azurite")
    port = free_port()
    command = [program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence", "--silent"]
    with serving([*command, "--skipApiVersionCheck", "--disableTelemetry"], port, log=folder / "azurite.log") as url:
        yield url


@contextlib.contextmanager
def google_server(folder: Path) -> Iterator[str]:
    """An emulator of Google's storage."""
    pytest.importorskip("gcsfs", reason="gcsfs is not installed: pip install 'luthier[cloud]'")
    pytest.importorskip("gcp_storage_emulator", reason="not installed: pip install gcp-storage-emulator")
    port = free_port()
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host", "127.0.0.1", "--port", str(port)]
    with serving([*command, "--in-memory", "--default-bucket", "bucket"], port, log=folder / "google.log") as url:
        yield url
