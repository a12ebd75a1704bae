"""Offline, no socket leaves this machine, whatever way it is asked; what stays here works."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from luthier.errors import UserError
from luthier.launch.offline import NetworkRefused, guard, is_offline

FAR, FAR6 = ("192.0.2.1", 9), ("2001:db8::1", 9, 0, 0)  # reserved for documentation: RFC 5737, RFC 3849

OPEN: list[socket.socket] = []


@pytest.fixture(autouse=True)
def _guarded() -> Iterator[None]:
    guard()
    guard()  # a second time changes nothing
    yield
    while OPEN:
        OPEN.pop().close()


def sent(kind: int, family: int = socket.AF_INET) -> socket.socket:
    found = socket.socket(family, kind)
    found.settimeout(2)
    OPEN.append(found)
    return found


OUTWARD: dict[str, Callable[[], object]] = {
    "tcp": lambda: sent(socket.SOCK_STREAM).connect(FAR),
    "tcp, error as number": lambda: sent(socket.SOCK_STREAM).connect_ex(FAR),
    "tcp 6": lambda: sent(socket.SOCK_STREAM, socket.AF_INET6).connect(FAR6),
    "tcp 6, mapped": lambda: sent(socket.SOCK_STREAM, socket.AF_INET6).connect(("::ffff:192.0.2.1", 9)),
    "tcp, private network": lambda: sent(socket.SOCK_STREAM).connect(("10.0.0.1", 80)),
    "tcp, link-local": lambda: sent(socket.SOCK_STREAM).connect(("169.254.169.254", 80)),
    "tcp by name": lambda: sent(socket.SOCK_STREAM).connect(("example.org", 80)),
    "create_connection": lambda: socket.create_connection(FAR, timeout=2),
    "udp sendto": lambda: sent(socket.SOCK_DGRAM).sendto(b"x", FAR),
    "udp sendto with flags": lambda: sent(socket.SOCK_DGRAM).sendto(b"x", 0, FAR),
    "udp sendmsg": lambda: sent(socket.SOCK_DGRAM).sendmsg([b"x"], [], 0, FAR),
    "udp connect": lambda: sent(socket.SOCK_DGRAM).connect(FAR),
    "udp broadcast": lambda: sent(socket.SOCK_DGRAM).sendto(b"x", ("<broadcast>", 9)),
    "getaddrinfo": lambda: socket.getaddrinfo("example.org", 443),
    "getaddrinfo, bytes": lambda: socket.getaddrinfo(b"example.org", 443),
    "getaddrinfo, keywords": lambda: socket.getaddrinfo(host="example.org", port=443),
    "gethostbyname": lambda: socket.gethostbyname("example.org"),
    "gethostbyname_ex": lambda: socket.gethostbyname_ex("example.org"),
    "gethostbyaddr": lambda: socket.gethostbyaddr("192.0.2.1"),
    "asyncio": lambda: asyncio.run(asyncio.open_connection(*FAR)),
}


@pytest.mark.parametrize("way", OUTWARD)
def test_no_way_leads_out(way: str) -> None:
    with pytest.raises(
        NetworkRefused, match=r"offline: .*\n  -> drop --offline, or fetch what is needed first"
    ) as caught:
        OUTWARD[way]()
    assert isinstance(caught.value, UserError)
    assert isinstance(caught.value, OSError)  # what libraries catch when there is no network
    assert caught.value.exit_code == 2


def test_libraries_see_a_missing_network() -> None:
    with pytest.raises(urllib.error.URLError, match="offline"):
        urllib.request.urlopen("http://192.0.2.1/", timeout=2)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.8.9.1"])
def test_tcp_to_this_machine_works(host: str) -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]

        def serve() -> None:
            with server.accept()[0] as asked:
                asked.sendall(b"here")

        answer = threading.Thread(target=serve)
        answer.start()
        with socket.create_connection((host, port), timeout=5) as client:
            assert client.recv(4) == b"here"
        answer.join()


def test_udp_pipes_and_lookups_of_this_machine_work(tmp_path: Path) -> None:
    with sent(socket.SOCK_DGRAM) as server, sent(socket.SOCK_DGRAM) as client:
        server.bind(("127.0.0.1", 0))
        client.sendto(b"a", server.getsockname())
        client.sendmsg([b"b"], [], 0, server.getsockname())
        client.connect(server.getsockname())
        client.sendmsg([b"c"])
        assert [server.recv(1) for _ in range(3)] == [b"a", b"b", b"c"]
    with sent(socket.SOCK_STREAM) as closed:
        closed.bind(("127.0.0.1", 0))
        assert sent(socket.SOCK_STREAM).connect_ex(closed.getsockname()) == errno.ECONNREFUSED
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "s"))
        server.listen()
        client.connect(str(tmp_path / "s"))
    assert socket.gethostbyname("localhost") == "127.0.0.1"
    assert socket.getaddrinfo(None, 80)
    assert socket.getaddrinfo("::1", 80)


@pytest.mark.parametrize(("value", "offline"), [("1", True), ("yes", True), ("0", False), ("", False), (None, False)])
def test_what_switches_it_on(monkeypatch: pytest.MonkeyPatch, value: str | None, offline: bool) -> None:
    monkeypatch.delenv("LUTHIER_OFFLINE")
    if value is not None:
        monkeypatch.setenv("LUTHIER_OFFLINE", value)
    assert is_offline() == offline


@pytest.mark.parametrize("how", ["option", "environment"])
def test_the_command_line_refuses_the_network_from_its_first_step(tmp_path: Path, how: str) -> None:
    (tmp_path / "d.csv").write_text("text,label\n" + "".join(f"text number {n},{'ab'[n % 2]}\n" for n in range(40)))
    (tmp_path / "r.yaml").write_text("name: r\nmodel: owner/luthier-none\ndata: d.csv\n")
    environment = {key: value for key, value in os.environ.items() if key not in ("LUTHIER_OFFLINE", "HF_HUB_OFFLINE")}
    environment |= {"HF_HOME": str(tmp_path / "hub"), "LUTHIER_HOME": str(tmp_path / "home")}
    environment |= {"LUTHIER_OFFLINE": "1"} if how == "environment" else {}
    command = [sys.executable, "-m", "luthier.cli", "check", str(tmp_path / "r.yaml")]
    command += ["--offline"] if how == "option" else []
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "error: hub model 'owner/luthier-none' cannot be had offline" in done.stderr
    assert "Traceback" not in done.stderr
