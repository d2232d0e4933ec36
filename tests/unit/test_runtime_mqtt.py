"""The link against peers on a socket that are wrong, silent or hostile. Real brokers: tests/broker."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from blindsum.protocol.errors import BlindsumError
from blindsum.runtime.endpoint import Credentials, Endpoint, Tls
from blindsum.runtime.mqtt import PACKET_OVERHEAD_SIZE, MqttLink, Will
from blindsum.runtime.packet_limit import SUSPECT_LOSSES, PacketLimit
from blindsum.runtime.paho_client import PACKET_SIZE_MAX, RECORDS_MAX, PahoClient
from blindsum.runtime.ports import Inbound, LinkState, Outcome

CONNACK_5 = b"\x20\x03\x00\x00\x00"
CONNACK_311 = b"\x20\x02\x00\x00"
WAIT_S = 20.0


class Server:
    """A listening socket that runs `serve(connection, number)` for each connection in turn."""

    def __init__(self, serve: Callable[[socket.socket, int], None]) -> None:
        self.serve = serve
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"mqtt://127.0.0.1:{self.socket.getsockname()[1]}"
        self.connections = 0
        threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                self.connections += 1
                with connection, suppress(OSError):
                    connection.settimeout(WAIT_S)
                    self.serve(connection, self.connections)


@pytest.fixture
def server() -> Iterator[Callable[[Callable[[socket.socket, int], None]], Server]]:
    made: list[Server] = []

    def make(serve: Callable[[socket.socket, int], None]) -> Server:
        made.append(Server(serve))
        return made[-1]

    yield make
    for one in made:
        one.socket.close()


@pytest.fixture
def link() -> Iterator[Callable[[str], MqttLink]]:
    made: list[MqttLink] = []

    def make(url: str, **more: object) -> MqttLink:
        made.append(MqttLink(url, "d1", **more))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()


def opened(link: MqttLink) -> list[Inbound]:
    got: list[Inbound] = []
    link.open([], on_message=lambda inbound: got.append(inbound) is None, on_state=lambda _state: None)
    return got


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def packet(connection: socket.socket) -> bytes:
    """One MQTT packet."""

    def exactly(size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += connection.recv(size - len(data)) or _gone()
        return data

    head = exactly(1)
    size = shift = 0
    while True:
        byte = exactly(1)
        head += byte
        size |= (byte[0] & 127) << shift
        shift += 7
        if byte[0] < 128:
            return head + exactly(size)


def _gone() -> bytes:
    raise ConnectionError


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://host", Endpoint(False, False, "host", 1883, "/mqtt")),
        ("mqtts://host", Endpoint(True, False, "host", 8883, "/mqtt")),
        ("ws://host/x", Endpoint(False, True, "host", 80, "/x")),
        ("wss://[::1]:99", Endpoint(True, True, "::1", 99, "/mqtt")),
    ],
)
def test_url_is_parsed(url: str, expected: Endpoint) -> None:
    assert Endpoint.parse(url) == expected


@pytest.mark.parametrize(
    "url", ["", "host:1883", "http://host", "mqtt://", "mqtt://host:99999", "mqtt://host:x", "mqtt://user:word@host"]
)
def test_unusable_url_is_refused(url: str) -> None:
    with pytest.raises(BlindsumError, match="broker-url-invalid"):
        MqttLink(url, "d1")


def test_tls_url_needs_tls_files_and_only_that() -> None:
    with pytest.raises(BlindsumError, match="broker-url-invalid"):
        MqttLink("mqtts://host", "d1")
    with pytest.raises(BlindsumError, match="broker-url-invalid"):
        MqttLink("mqtt://host", "d1", tls=Tls("ca.pem"))


def test_missing_or_wrong_tls_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(BlindsumError, match="tls-files-unusable"):
        MqttLink("mqtts://host", "d1", tls=Tls(tmp_path / "none.pem"))
    (tmp_path / "ca.pem").write_text("not PEM")
    with pytest.raises(BlindsumError, match="tls-files-unusable"):
        MqttLink("mqtts://host", "d1", tls=Tls(tmp_path / "ca.pem"))


def test_password_does_not_print() -> None:
    assert "hunter2" not in repr(Credentials("user", "hunter2"))


def test_nobody_there_is_broker_unreachable_with_a_remedy(link: Callable[[str], MqttLink]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    one = link(f"mqtt://127.0.0.1:{port}")
    opened(one)
    with pytest.raises(BlindsumError, match=r"broker-unreachable.*refused") as caught:
        until(lambda: one.state.code) or one.wait_connected(0.01)
    assert "firewall" in caught.value.remedy


def test_server_that_is_not_tls_is_told_as_tls_failure(
    server: Callable[..., Server], link: Callable[..., MqttLink], tmp_path: Path
) -> None:
    plain = server(lambda connection, _number: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    (tmp_path / "ca.pem").write_text(_any_ca())
    one = link(plain.url.replace("mqtt://", "mqtts://"), tls=Tls(tmp_path / "ca.pem"))
    opened(one)
    until(lambda: one.state.code == "tls-failed")


def _any_ca() -> str:
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ca")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
    return builder.sign(key, None).public_bytes(serialization.Encoding.PEM).decode()


def test_broker_that_refuses_version_5_is_asked_for_3_1_1(
    server: Callable[..., Server], link: Callable[..., MqttLink]
) -> None:
    versions: list[int] = []

    def serve(connection: socket.socket, _number: int) -> None:
        versions.append(packet(connection)[8])
        if versions[-1] == 5:
            connection.sendall(b"\x20\x02\x00\x01")  # as MQTT 3.1.1 says "unacceptable protocol version"
        else:
            connection.sendall(CONNACK_311)
            packet(connection)

    one = link(server(serve).url)
    opened(one)
    one.wait_connected(WAIT_S)
    assert one.protocol == "3.1.1"
    assert versions == [5, 4]


def test_broker_that_closes_on_version_5_is_asked_for_3_1_1(
    server: Callable[..., Server], link: Callable[..., MqttLink]
) -> None:
    def serve(connection: socket.socket, _number: int) -> None:
        if packet(connection)[8] == 4:
            connection.sendall(CONNACK_311)
            packet(connection)

    one = link(server(serve).url)
    opened(one)
    one.wait_connected(WAIT_S)
    assert one.protocol == "3.1.1"


def test_version_that_worked_is_kept_when_the_broker_is_away_for_long(
    server: Callable[..., Server], link: Callable[..., MqttLink]
) -> None:
    versions: list[int] = []

    def serve(connection: socket.socket, number: int) -> None:
        versions.append(packet(connection)[8])
        if number in (1, 5):
            connection.sendall(CONNACK_5)
            if number == 5:
                packet(connection)

    one = link(server(serve).url)
    opened(one)
    until(lambda: len(versions) == 5)
    one.wait_connected(WAIT_S)
    assert versions == [5] * 5


def test_refused_credentials_are_told(server: Callable[..., Server], link: Callable[..., MqttLink]) -> None:
    def serve(connection: socket.socket, _number: int) -> None:
        packet(connection)
        connection.sendall(b"\x20\x03\x00\x86\x00")

    one = link(server(serve).url, credentials=Credentials("u", "p"))
    opened(one)
    until(lambda: one.state == LinkState(False, "broker-refused", "Bad user name or password"))


def test_second_process_with_the_same_identity_is_told(
    server: Callable[..., Server], link: Callable[..., MqttLink]
) -> None:
    def serve(connection: socket.socket, _number: int) -> None:
        packet(connection)
        connection.sendall(CONNACK_5 + b"\xe0\x02\x8e\x00")

    one = link(server(serve).url)
    opened(one)
    until(lambda: one.state.code == "session-taken-over")


@pytest.mark.parametrize("greeting", [b"", CONNACK_5])
@pytest.mark.parametrize(
    "garbage",
    [
        os.urandom(5000),
        b"\x00" * 500,
        b"\xff\xff\xff\xff\xff\xff",
        b"\x20\x7f" + b"\xff" * 127,
        b"\x30\x05\x00\xffabc",
        b"\x32\x07\x00\x02\xff\xfe\x00\x01\x00",  # a topic that is not UTF-8
        b"\x90\x03\x00\x01\x00" * 50,
        b"\x40\x03\x00\x01\xee" * 50,
        b"\xe0\x02\x42\xff",
        b"\x34\x08\x00\x01t\x00\x05\x00ab",
    ],
)
def test_link_survives_a_broker_that_talks_garbage(
    server: Callable[..., Server], link: Callable[..., MqttLink], greeting: bytes, garbage: bytes
) -> None:
    def serve(connection: socket.socket, number: int) -> None:
        packet(connection)
        if number == 1:
            connection.sendall(greeting + garbage)
        else:
            connection.sendall(CONNACK_5)
            packet(connection)

    peer = server(serve)
    one = link(peer.url)
    opened(one)
    until(lambda: peer.connections > 1 and one.state.connected)


def test_packet_larger_than_announced_ends_the_connection_unread(
    server: Callable[..., Server], link: Callable[..., MqttLink]
) -> None:
    sent: list[int] = []

    def serve(connection: socket.socket, number: int) -> None:
        packet(connection)
        connection.sendall(CONNACK_5)
        if number == 1:
            connection.sendall(b"\x30\xff\xff\xff\x7f")  # 268 MB follow
            while True:
                sent.append(connection.send(bytes(1 << 20)))
        _pause(connection)

    peer = server(serve)
    one = link(peer.url)
    got = opened(one)
    until(lambda: peer.connections > 1 and one.state.connected)
    assert sum(sent) < 100 << 20
    assert got == []


def test_large_publish_is_refused_before_it_is_sent(
    server: Callable[..., Server], link: Callable[..., MqttLink]
) -> None:
    def serve(connection: socket.socket, _number: int) -> None:
        packet(connection)
        connection.sendall(b"\x20\x08\x00\x00\x05\x27\x00\x00\x10\x00")  # Maximum Packet Size 4096
        _pause(connection)

    one = link(server(serve).url)
    opened(one)
    one.wait_connected(WAIT_S)
    assert one.max_packet_size == 4096
    with pytest.raises(BlindsumError, match="packet-too-large"):
        one.publish("t", bytes(4096), retain=False, done=lambda _outcome: None)
    assert one.publish("t", bytes(4000), retain=False, done=lambda _outcome: None)
    assert one.state.connected


def test_broker_that_cuts_the_connection_for_a_size_is_not_sent_it_for_ever(
    server: Callable[..., Server], link: Callable[..., MqttLink]
) -> None:
    def serve(connection: socket.socket, _number: int) -> None:
        packet(connection)
        connection.sendall(CONNACK_5)
        connection.recv(1)  # and closes

    peer = server(serve)
    one = link(peer.url)
    opened(one)
    outcomes: list[Outcome] = []
    with pytest.raises(BlindsumError, match="packet-too-large"):
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            one.publish("t", bytes(100_000), retain=False, done=outcomes.append)
            time.sleep(0.01)
    assert outcomes == [Outcome.LOST] * SUSPECT_LOSSES
    assert one.max_packet_size < 100_100
    assert one.max_packet_size > 99_000


def test_window_follows_receive_maximum(server: Callable[..., Server], link: Callable[..., MqttLink]) -> None:
    def serve(connection: socket.socket, _number: int) -> None:
        packet(connection)
        connection.sendall(b"\x20\x06\x00\x00\x03\x21\x00\x03")  # Receive Maximum 3
        first = packet(connection)
        packet(connection)
        packet(connection)
        connection.sendall(b"\x40\x02" + first[5:7])
        packet(connection)
        _pause(connection)

    one = link(server(serve).url)
    opened(one)
    one.wait_connected(WAIT_S)
    outcomes: list[Outcome] = []
    taken = [one.publish("t", b"x", retain=False, done=outcomes.append) for _ in range(5)]
    assert taken == [True] * 3 + [False] * 2
    until(lambda: outcomes)
    assert outcomes == [Outcome.SENT]
    assert one.room == 1
    one.close()
    assert outcomes == [Outcome.SENT, Outcome.LOST, Outcome.LOST]
    assert not one.publish("t", b"x", retain=False, done=outcomes.append)


def _pause(connection: socket.socket) -> None:
    with suppress(ConnectionError):
        while True:
            packet(connection)


def test_denied_publish_is_told_as_refused(server: Callable[..., Server], link: Callable[..., MqttLink]) -> None:
    def serve(connection: socket.socket, _number: int) -> None:
        packet(connection)
        connection.sendall(CONNACK_5)
        connection.sendall(b"\x40\x04" + packet(connection)[5:7] + b"\x87\x00")
        _pause(connection)

    one = link(server(serve).url)
    opened(one)
    one.wait_connected(WAIT_S)
    outcomes: list[Outcome] = []
    one.publish("t", b"x", retain=False, done=outcomes.append)
    until(lambda: outcomes)
    assert outcomes == [Outcome.REFUSED]


def test_ack_of_an_earlier_connection_is_not_sent(server: Callable[..., Server], link: Callable[..., MqttLink]) -> None:
    """Packet id 1 of the new connection is another message."""
    received: list[bytes] = []

    def serve(connection: socket.socket, number: int) -> None:
        packet(connection)
        connection.sendall(CONNACK_5 + b"\x32\x07\x00\x01t\x00\x01\x00" + b"%d" % number)
        if number == 2:
            with suppress(ConnectionError):
                while True:
                    received.append(packet(connection))

    one = link(server(serve).url)
    got = opened(one)
    until(lambda: len(got) == 2)
    one.ack(got[0].token)
    one.ack(got[1].token)
    until(lambda: received)
    one.close()
    until(lambda: received[-1][0] == 0xE0)
    assert [item[0] for item in received] == [0x40, 0xE0]


def test_what_is_ignored_is_acknowledged_in_the_order_of_arrival_and_reaches_nobody(
    server: Callable[..., Server], link: Callable[..., MqttLink]
) -> None:
    """Packets 1 to 8, of which the owner is told 2, 3 and 6. rumqttd cuts off who acknowledges in another order."""
    acknowledged: list[int] = []

    def serve(connection: socket.socket, _number: int) -> None:
        packet(connection)
        topics = {mid: b"t" if mid in (2, 3, 6) else b"u" for mid in range(1, 9)}
        sent = [b"\x32\x07\x00\x01" + topic + bytes([0, mid, 0]) + b"x" for mid, topic in topics.items()]
        connection.sendall(CONNACK_5 + b"\x30\x05\x00\x01u\x00x" + b"".join(sent))
        while True:
            for at in range(0, len(received := packet(connection)), 4):
                if received[at] == 0x40:
                    acknowledged.append(received[at + 3])

    one = link(server(serve).url)
    one.ignore(lambda topic: topic == b"u")
    got = opened(one)
    until(lambda: len(got) == 3 and acknowledged)
    assert [inbound.token.mid for inbound in got] == [2, 3, 6]
    assert acknowledged == [1], "the rest comes after what the owner has not dealt with"
    one.ack(got[0].token)
    until(lambda: len(acknowledged) == 2)
    one.ack(got[1].token, got[2].token)
    until(lambda: len(acknowledged) == 8)
    assert acknowledged == list(range(1, 9))


def test_link_stops_reading_while_its_owner_is_full(
    server: Callable[..., Server], link: Callable[..., MqttLink]
) -> None:
    """Against a broker that ignores Receive Maximum: what is not taken stays in the network and arrives in order later."""
    total = 400
    sent: list[int] = []

    def serve(connection: socket.socket, _number: int) -> None:
        packet(connection)
        connection.sendall(CONNACK_5)
        for number in range(total):
            body = number.to_bytes(2, "big") + bytes(60_000)
            rest = b"\x00\x01t" + (number + 1).to_bytes(2, "big") + b"\x00" + body
            connection.sendall(
                b"\x32" + bytes([len(rest) & 127 | 128, len(rest) >> 7 & 127 | 128, len(rest) >> 14]) + rest
            )
            sent.append(number)
        _pause(connection)

    one = link(server(serve).url)
    got: list[Inbound] = []
    room = [10]
    one.open(
        [], on_message=lambda inbound: len(got) < room[0] and got.append(inbound) is None, on_state=lambda _state: None
    )
    until(lambda: len(got) == 10)
    time.sleep(0.2)
    assert len(sent) < total, "all of it was read"
    for _ in range(total // 10):
        room[0] += 10
        one.resume()
        until(lambda: len(got) == min(room[0], total))
    assert [int.from_bytes(inbound.body[:2], "big") for inbound in got] == list(range(total))


@pytest.mark.parametrize("session", [0, 1])
def test_filters_are_renewed_only_where_the_broker_forgot_them(
    server: Callable[..., Server], link: Callable[..., MqttLink], session: int
) -> None:
    """And one that was left while there was no connection is taken from the session."""
    received: list[list[bytes]] = []
    gate = threading.Event()

    def serve(connection: socket.socket, number: int) -> None:
        packet(connection)
        if number > 1:
            gate.wait(WAIT_S)
        connection.sendall(b"\x20\x03%c\x00\x00" % (session if number > 1 else 0))
        received.append([])
        with suppress(ConnectionError):
            while True:
                received[-1].append(item := packet(connection))
                if item[0] == 0x82:
                    connection.sendall(b"\x90\x04" + item[2:4] + b"\x00\x01")
                if item[0] == 0x32:
                    return

    one = link(server(serve).url)
    one.open(["a/+"], on_message=lambda _inbound: True, on_state=lambda _state: None)
    one.wait_connected(WAIT_S)
    one.subscribe("b/+")
    one.subscribe("c/+")
    until(lambda: len(received[0]) == 3)
    one.subscribe("b/+")
    assert one.publish("t", b"x", retain=False, done=lambda _outcome: None)
    until(lambda: len(received[0]) == 4)
    until(lambda: not one.state.connected)
    one.unsubscribe("b/+")
    gate.set()
    one.wait_connected(WAIT_S)
    one.close()
    until(lambda: received[1] and received[1][-1][0] == 0xE0)
    if session:
        assert [item[0] for item in received[1]] == [0xA2, 0xE0]
        assert b"b/+" in received[1][0]
    else:
        assert [item[0] for item in received[1]] == [0x82, 0xE0]
        assert b"a/+" in received[1][0]
        assert b"c/+" in received[1][0]
        assert b"b/+" not in received[1][0]


def test_close_is_prompt_while_connecting_waiting_or_connected(
    server: Callable[..., Server], link: Callable[..., MqttLink]
) -> None:
    def silent(connection: socket.socket, _number: int) -> None:
        _pause(connection)

    one = link(server(silent).url)
    opened(one)
    until(lambda: one._asked)
    one.close()
    assert not one._thread or not one._thread.is_alive()
    away = link("mqtt://127.0.0.1:1")
    opened(away)
    until(lambda: away.state.code)
    away.close()
    assert not away._thread or not away._thread.is_alive()


def test_will_is_announced_said_and_taken_back(server: Callable[..., Server], link: Callable[..., MqttLink]) -> None:
    received: list[bytes] = []

    def serve(connection: socket.socket, _number: int) -> None:
        received.append(packet(connection))
        connection.sendall(CONNACK_5)
        with suppress(ConnectionError):
            while True:
                received.append(packet(connection))

    one = link(server(serve).url, will=Will("st/d1"))
    opened(one)
    until(lambda: len(received) == 2)
    one.close()
    until(lambda: received[-1][0] == 0xE0)
    assert b"st/d1\x00\x07offline" in received[0]
    assert received[1].endswith(b"online")
    assert received[2].endswith(b"offline")


def test_limit_blames_only_what_never_passed() -> None:
    limit = PacketLimit()
    assert limit.size == PACKET_SIZE_MAX
    for _ in range(10):
        limit.lost(60_000, certain=False)
    assert limit.size == PACKET_SIZE_MAX, "small packets are not blamed"
    limit.passed(300_000)
    for _ in range(10):
        limit.lost(300_000, certain=False)
    assert limit.size == PACKET_SIZE_MAX, "it passed before: the network is to blame"
    limit.lost(500_000, certain=False)
    limit.lost(500_000, certain=False)
    assert limit.size == PACKET_SIZE_MAX
    limit.lost(500_000, certain=False)
    assert limit.size == 499_999


def test_limit_believes_the_broker_at_once_and_the_smaller_number() -> None:
    limit = PacketLimit()
    limit.lost(100_000, certain=True)
    assert limit.size == 99_999
    limit.announced = 50_000
    assert limit.size == 50_000


def test_announced_packet_size_holds_the_largest_message() -> None:
    assert len("blindsum/1//bc//chunk//1024") + 3 * 64 + 16 < PACKET_OVERHEAD_SIZE


def test_only_tls_1_3_is_spoken(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(_any_ca())
    assert Tls(tmp_path / "ca.pem").context().minimum_version == ssl.TLSVersion.TLSv1_3


class Records(socket.socket):
    """Not a plain stream: each read gives one record, as TLS does."""


def test_so_many_records_are_read_at_a_time_and_the_rest_next_time() -> None:
    """A broker that writes faster than it is read must not keep the link from everything else."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ping = b"\xd0\x00"
    client = PahoClient.make(Endpoint.parse("mqtt://broker"), "d7", MQTTProtocolVersion.MQTTv5)
    with there, Records(fileno=here.detach()) as records:
        records.setblocking(False)
        client._sock = records
        for _ in range(RECORDS_MAX + 1):
            there.send(ping)
        read = []
        for _ in range(2):
            assert client.fill()
            read.append(0)
            while client.frames.whole():
                client.frames.drop()
                read[-1] += 1
        client._sock = None
    assert read == [RECORDS_MAX, 1]
