"""A link by way of a proxy, and to brokers that keep nothing."""

from __future__ import annotations

import base64
import builtins
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from blindsum.protocol.errors import BlindsumError
from blindsum.runtime.mqtt import MqttLink, Will
from blindsum.runtime.ports import Outcome
from blindsum.runtime.proxy import Proxy
from tests.broker.conftest import Embedded

USER, PASSWORD = "anna", "s:e/c@ret"
CONNACK_KEEPS_NOTHING = b"\x20\x05\x00\x00\x02\x25\x00"
CONNACK_RETAIN_REFUSED = b"\x20\x03\x00\x9a\x00"


class _Tunnel(socketserver.StreamRequestHandler):
    """What both kinds of proxy do once they know where to."""

    def forward(self, host: str, port: int) -> None:
        self.server.asked.append((host, port))  # type: ignore[attr-defined]
        with socket.create_connection((host, port)) as far:
            back = threading.Thread(target=_copy, args=(far, self.connection), daemon=True)
            back.start()
            _copy(self.connection, far)


class _Http(_Tunnel):
    def handle(self) -> None:
        method, target, _ = self.rfile.readline().decode().split()
        headers = {}
        while line := self.rfile.readline().strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        scheme, _, credentials = headers.get("proxy-authorization", "").partition(" ")
        wanted = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if method != "CONNECT" or (scheme.lower(), credentials) != ("basic", wanted):
            self.wfile.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            return
        self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        host, _, port = target.rpartition(":")
        self.forward(host, int(port))


class _Socks(_Tunnel):
    """RFC 1928 with a user name and password (RFC 1929)."""

    def handle(self) -> None:
        _, count = self.rfile.read(2)
        if 2 not in self.rfile.read(count):
            self.wfile.write(b"\x05\xff")
            return
        self.wfile.write(b"\x05\x02")
        self.rfile.read(1)
        user = self.rfile.read(self.rfile.read(1)[0]).decode()
        password = self.rfile.read(self.rfile.read(1)[0]).decode()
        good = (user, password) == (USER, PASSWORD)
        self.wfile.write(b"\x01\x00" if good else b"\x01\x01")
        if not good:
            return
        *_, kind = self.rfile.read(4)
        host = socket.inet_ntoa(self.rfile.read(4)) if kind == 1 else self.rfile.read(self.rfile.read(1)[0]).decode()
        (port,) = struct.unpack(">H", self.rfile.read(2))
        self.wfile.write(b"\x05\x00\x00\x01" + bytes(6))
        self.forward(host, port)


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def embedded() -> Iterator[Embedded]:
    one = Embedded()
    one.start()
    yield one
    one.kill()


@pytest.fixture(params=["http", "socks5"])
def proxy(request: pytest.FixtureRequest) -> Iterator[Any]:
    """(URL without a user, (host, port) of everything it was asked for)"""

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), {"http": _Http, "socks5": _Socks}[request.param]) as server:
        server.asked = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield request.param, server.server_address[1], server.asked  # type: ignore[attr-defined]
        server.shutdown()


def test_link_goes_by_way_of_its_proxy_which_looks_up_the_broker(
    proxy: Any, embedded: Any, client: Callable[..., Any], wait: Callable[..., None]
) -> None:
    kind, port, asked = proxy
    way = Proxy.parse(f"{kind}://{USER}:s%3Ae%2Fc%40ret@127.0.0.1:{port}")
    assert PASSWORD not in repr(way)
    url = embedded.url.replace("127.0.0.1", "localhost")
    direct = client(embedded.url, "reader", "a/b").ready()
    through = client(url, "behind", link=MqttLink(url, "behind", proxy=way)).ready()
    assert through.send("a/b", b"hello") is Outcome.SENT
    wait(lambda: b"hello" in direct.bodies)  # at least once is what MQTT promises: a broker may say it twice
    assert set(direct.bodies) == {b"hello"}
    assert {host for host, _ in asked} == {"localhost"}


def test_proxy_that_lets_nobody_in_is_a_broker_out_of_reach(proxy: Any, embedded: Any) -> None:
    kind, port, asked = proxy
    link = MqttLink(embedded.url, "stranger", proxy=Proxy.parse(f"{kind}://{USER}:wrong@127.0.0.1:{port}"))
    link.open([], on_message=lambda _inbound: True, on_state=lambda _state: None)
    with pytest.raises(BlindsumError, match="broker-unreachable"):
        link.wait_connected(1.0)
    link.close()
    assert not asked


@pytest.mark.parametrize("url", ["ftp://proxy", "http://", "proxy:8080", "socks5://host:port", ""])
def test_proxy_address_that_is_none_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(BlindsumError, match="proxy-url-invalid"):
        Proxy.parse(url)


def test_proxy_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "socks":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BlindsumError, match="proxy-package-missing"):
        Proxy.parse("http://proxy.example")


@pytest.mark.parametrize("first", [CONNACK_KEEPS_NOTHING, CONNACK_RETAIN_REFUSED])
def test_broker_that_keeps_nothing_is_asked_to_keep_nothing(first: bytes) -> None:
    """MQTT 5's RetainAvailable 0, told at once or by refusing a last will that it should keep."""
    flags: list[int] = []
    published = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            answer = first
            with suppress(OSError):
                while not published.is_set():
                    connection, _ = server.accept()
                    with connection:
                        connection.settimeout(5.0)
                        connection.recv(4096)  # CONNECT
                        connection.sendall(answer)
                        if answer == CONNACK_RETAIN_REFUSED:
                            answer = b"\x20\x03\x00\x00\x00"
                            continue
                        packet = connection.recv(4096)
                        flags.append(packet[0])
                        published.set()

        threading.Thread(target=serve, daemon=True).start()
        link = MqttLink(f"mqtt://127.0.0.1:{server.getsockname()[1]}", "a", will=Will("a/presence"))
        link.open([], on_message=lambda _inbound: True, on_state=lambda _state: None)
        assert published.wait(10.0)
        link.close()
    assert flags[0] >> 4 == 3 and not flags[0] & 1
