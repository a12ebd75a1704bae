"""Keys, hosts, ports and signals."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import httpx
import pytest
from echo_engine import asker

from luthier.errors import MissingExtra, UserError
from luthier.serve.app import create_app
from luthier.serve.auth import Keys, is_loopback, read_keys, refuse_open_host
from luthier.serve.server import run

HERE = Path(__file__).parent


def test_keys_come_from_a_file_with_comments(tmp_path):
    path = tmp_path / "keys"
    path.write_text("# who may ask\nsk-alice   # Alice\n\n  sk-bob\n", encoding="utf-8")
    assert read_keys(path, {"LUTHIER_API_KEYS": "unused"}) == {"sk-alice", "sk-bob"}


def test_keys_come_from_the_environment_where_no_file_is_given():
    assert read_keys(None, {"LUTHIER_API_KEYS": "sk-a, sk-b,"}) == {"sk-a", "sk-b"}
    assert read_keys(None, {}) == frozenset()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory\n  -> give a text file"),
        (b"\xff\xfe\x00", "cannot be read: it is not UTF-8 text"),
        (b"# nobody yet\n", "holds no key\n  -> write one key a line"),
        (b"sk-a\nsk b\n", "key 2 of .*keys has characters that a header cannot carry"),
    ],
)
def test_a_key_file_that_cannot_be_used_is_refused(tmp_path, content, message):
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_keys(path, {})
    assert "sk b" not in str(caught.value)


def test_only_a_whole_key_under_the_right_scheme_is_admitted():
    keys = Keys({"sk-a", "sk-b"})
    assert keys.admit("Bearer sk-a")
    assert keys.admit("bearer  sk-b")
    for wrong in ("", "sk-a", "Bearer", "Bearer ", "Basic sk-a", "Bearer sk-", "Bearer sk-a sk-b", "Bearer SK-A"):
        assert not keys.admit(wrong)
    assert not Keys([]).admit("Bearer ")
    assert bool(keys)
    assert not Keys([])


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("192.168.1.5", False),
        ("example.org", False),
        ("127.0.0.1.example.org", False),
    ],
)
def test_loopback_is_this_machine_and_nothing_else(host, own):
    assert is_loopback(host) is own


def test_an_open_host_needs_keys():
    refuse_open_host("0.0.0.0", has_keys=True)
    refuse_open_host("127.0.0.1", has_keys=False)
    app = create_app({"t": asker(1.0)}, model_id="m")
    with pytest.raises(UserError, match=r"refusing to serve on '0\.0\.0\.0' without API keys[^$]*LUTHIER_API_KEYS"):
        run(app, host="0.0.0.0", port=0)


def test_a_port_in_use_is_told_without_a_traceback():
    app = create_app({"t": asker(1.0)}, model_id="m")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"127\.0\.0\.1, port {port}: Address already in use\n  -> choose another"):
            run(app, port=port)


def test_a_port_that_is_none_is_refused():
    with pytest.raises(UserError, match="port 70000 is not between 0 and 65535"):
        run(create_app({"t": asker(1.0)}, model_id="m"), port=70_000)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_after_the_answer_under_way(number):
    program = textwrap.dedent("""
        import time
        from echo_engine import EchoEngine, asker
        from luthier.serve.app import create_app
        from luthier.serve.server import run

        class Slow(EchoEngine):
            def score(self, prompt_ids, answers):
                print("asked", flush=True)
                time.sleep(0.5)
                return super().score(prompt_ids, answers)

        made = asker(1.0)
        made.engine = Slow(1.0)
        run(create_app({"t": made}, model_id="m"), port=0, ready=lambda url: print(url, flush=True))
        print("ended", flush=True)
    """)
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        asking = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import httpx, sys; print(httpx.post(sys.argv[1], json={'input': 'g'}).status_code)",
                f"{url}/v1/classify",
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdout.readline() == "asked\n"
        server.send_signal(number)
        assert asking.communicate(timeout=30)[0] == "200\n"
        assert server.stdout.read() == "ended\n"
        assert server.wait(timeout=30) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


@pytest.mark.parametrize(("package", "call"), [("fastapi", "create_app"), ("uvicorn", "run")])
def test_a_missing_extra_is_named_with_the_command_that_installs_it(monkeypatch, package, call):
    app = create_app({"t": asker(1.0)}, model_id="m")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"needs the package '{package}'[^$]*pip install 'luthier\[serve\]'"):
        create_app({"t": asker(1.0)}, model_id="m") if call == "create_app" else run(app, port=0)


def test_the_room_is_imported_without_fastapi():
    program = (
        "import sys; sys.modules['fastapi'] = sys.modules['uvicorn'] = None; "
        "import luthier.serve.app, luthier.serve.server, luthier.serve.guard; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
