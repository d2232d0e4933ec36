"""Mosquitto with the configuration that production gets: certificates are identities, and the access list holds."""

from __future__ import annotations

import datetime
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from blindsum.backend.authority import CA_FILE, CERTIFICATE_FILE, KEY_FILE
from blindsum.backend.broker import BrokerFiles, local_mosquitto_config, mosquitto_config
from blindsum.backend.provision import create_fleet, enrol, revoke
from blindsum.runtime.kit import BrokerSettings, make_link
from blindsum.runtime.mqtt import Credentials, MqttLink, Tls
from blindsum.runtime.ports import Outcome
from blindsum.runtime.topics import Principal, Topics, shard_of

Make = Callable[..., Any]
ROOT = "blindsum/1/f1"
AS_ROOT = "user root\n" if os.geteuid() == 0 else ""  # else it would become a user who may not read the test's folder


class Authority:
    """A certificate authority in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test fleet")])
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(_pem(self._sign(self.name, self.key.public_key(), x509.BasicConstraints(True, None))))

    def issue(self, name: str, *hosts: x509.GeneralName) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        extensions = [x509.SubjectAlternativeName(hosts)] if hosts else []
        certificate = self._sign(subject, key.public_key(), x509.BasicConstraints(False, None), *extensions)
        paths = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        paths[0].write_bytes(_pem(certificate))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return paths

    def tls(self, name: str) -> Tls:
        return Tls(self.ca, *self.issue(name))

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *extensions: x509.ExtensionType
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        start, end = now - datetime.timedelta(minutes=5), now + datetime.timedelta(days=1)
        builder = x509.CertificateBuilder(self.name, subject, key, x509.random_serial_number(), start, end)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(self.key, hashes.SHA256())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


@pytest.fixture
def fleet(authority: Authority, tmp_path: Path, production_mosquitto: Make, free_port: int) -> Any:
    """A running Mosquitto with the production configuration of fleet f1 with parties 1 and 2."""
    host = x509.DNSName("localhost")
    files = BrokerFiles(authority.ca, *authority.issue("broker", host))
    folder = tmp_path / "broker"
    folder.mkdir()
    return production_mosquitto(mosquitto_config(folder, fleet="f1", parties=["1", "2"], files=files, port=free_port))


@pytest.fixture
def enter(fleet: Any, authority: Authority, client: Make) -> Make:
    """Connect with a certificate for `name`, as client `client_id`."""

    def make(name: str, *topics: str, client_id: str = "") -> Any:
        link = MqttLink(fleet.url, client_id or name, tls=authority.tls(name))
        return client(fleet.url, name, *topics, link=link).ready()

    return make


def up(device: str, kind: str = "join") -> str:
    return f"{ROOT}/up/{shard_of(device)}/{device}/{kind}"


def test_device_cannot_publish_under_the_id_of_another(enter: Make, wait: Make) -> None:
    coordinator = enter("coordinator", f"{ROOT}/up/+/+/+", f"{ROOT}/st/+/+")
    a = enter("device-a")
    assert a.send(up("device-b"), b"forged") is Outcome.REFUSED
    assert a.send(f"{ROOT}/st/device/device-b", b"offline", retain=True) is Outcome.REFUSED
    assert a.send(f"{ROOT}/dn/device-b/slot", b"forged") is Outcome.REFUSED
    assert a.send(up("device-a"), b"own") is Outcome.SENT
    wait(lambda: coordinator.bodies == [b"own"])


def test_device_cannot_take_the_session_of_another(enter: Make, wait: Make) -> None:
    """A client id is what the certificate says, whatever CONNECT says."""
    b = enter("device-b", f"{ROOT}/dn/device-b/+")
    enter("device-a", client_id="device-b")
    coordinator = enter("coordinator")
    coordinator.send(f"{ROOT}/dn/device-b/slot", b"yours")
    wait(lambda: b.bodies == [b"yours"])
    assert [state.connected for state in b.states] == [True]


def test_everyone_reads_what_is_theirs_and_nothing_else(enter: Make, wait: Make) -> None:
    everything = f"{ROOT}/#"
    readers = {
        name: enter(name, everything, f"{ROOT}/+/+/+", f"{ROOT}/+/+/+/+")
        for name in ("device-a", "device-b", "party-1", "party-2", "coordinator")
    }
    coordinator, party, device = readers["coordinator"], readers["party-1"], readers["device-a"]
    chunk = f"{ROOT}/bc/t1/chunk/0011223344556677/0"
    for sender, topic, expected in [
        (device, up("device-a"), {"coordinator"}),
        (device, up("device-a", "header"), {"coordinator"}),
        (coordinator, f"{ROOT}/dn/device-a/slot", {"device-a"}),
        (coordinator, f"{ROOT}/pt/1/proposal", {"party-1"}),
        (coordinator, f"{ROOT}/pt/all/header", {"party-1", "party-2"}),
        (coordinator, f"{ROOT}/bc/t1/announcement", set(readers)),  # Mosquitto applies patterns to its sender, too
        (coordinator, chunk, set(readers)),
        (party, f"{ROOT}/px/1/coordinator/opening", {"coordinator"}),
        (party, f"{ROOT}/st/party/1", {"coordinator"}),
    ]:
        assert sender.send(topic, topic.encode()) is Outcome.SENT, topic
        wait(lambda topic=topic, expected=expected: all(topic.encode() in readers[name].bodies for name in expected))
        for name in readers.keys() - expected:
            # what the coordinator sends next on the reader's own topic would come after what it must not read
            assert topic.encode() not in readers[name].bodies, (name, topic)
    for sender, topic in [
        (party, f"{ROOT}/px/2/coordinator/vote"),
        (party, f"{ROOT}/pt/2/proposal"),
        (party, f"{ROOT}/bc/t1/result"),
        (device, f"{ROOT}/bc/t1/result"),
        (device, chunk),
        (device, f"{ROOT}/px/1/coordinator/vote"),
        (device, "blindsum/1/f2/up/00/device-a/join"),
        (coordinator, f"{ROOT}/px/1/coordinator/vote"),
        (coordinator, up("device-a")),
    ]:
        assert sender.send(topic, b"not theirs") is Outcome.REFUSED, topic
    device.send(up("device-a"), b"end")
    wait(lambda: b"end" in coordinator.bodies)
    assert not any(b"not theirs" in reader.bodies for reader in readers.values())


def test_connection_without_a_certificate_or_with_a_foreign_one_is_refused(
    fleet: Any, authority: Authority, client: Make, wait: Make, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "stranger")
    for tls in (Tls(authority.ca), Tls(authority.ca, *stranger.issue("device-a"))):
        one = client(fleet.url, "x", link=MqttLink(fleet.url, "device-a", tls=tls))
        wait(lambda one=one: one.link.state.code)
        # TLS 1.3 refuses a client after its handshake: the alert may be overtaken by the end of the connection
        assert one.link.state.code in {"tls-failed", "broker-unreachable"}
        one.link.close()
        assert not any(state.connected for state in one.states)


def test_broker_of_another_authority_or_name_is_not_trusted(
    fleet: Any, authority: Authority, client: Make, wait: Make, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "stranger")
    own = authority.issue("device-a")
    for url, ca in ((fleet.url, stranger.ca), (fleet.url.replace("localhost", "127.0.0.1"), authority.ca)):
        one = client(url, "x", link=MqttLink(url, "device-a", tls=Tls(ca, *own)))
        wait(lambda one=one: one.link.state.code == "tls-failed")
        assert "certificate verify failed" in one.link.state.detail
        one.link.close()


def test_large_messages_cross_tls_both_ways(enter: Make, wait: Make) -> None:
    coordinator = enter("coordinator", f"{ROOT}/up/+/+/+")
    device = enter("device-a", f"{ROOT}/dn/device-a/+")
    bodies = [os.urandom(262_200) for _ in range(12)]
    for body in bodies:
        device.send(up("device-a", "chunk"), body)
        coordinator.send(f"{ROOT}/dn/device-a/chunk", body)
    wait(lambda: coordinator.bodies == bodies and device.bodies == bodies)


def test_limit_is_announced_so_a_larger_message_is_refused_before_it_is_sent(enter: Make) -> None:
    device = enter("device-a")
    assert device.link.max_packet_size == 524_288 + 1024


def test_retained_messages_and_sessions_survive_a_restart_of_the_broker(fleet: Any, enter: Make, wait: Make) -> None:
    coordinator = enter("coordinator")
    coordinator.send(f"{ROOT}/bc/t1/announcement", b"kept", retain=True)
    coordinator.link.close()
    fleet.process.terminate()  # saves, as a service manager's stop does
    fleet.process.wait()
    fleet.start()
    late = enter("device-a", f"{ROOT}/bc/t1/+")
    wait(lambda: late.bodies == [b"kept"])


def test_password_opens_a_broker_without_certificates(
    tmp_path: Path, local_mosquitto: Make, client: Make, wait: Make
) -> None:
    tool = shutil.which("mosquitto_passwd")
    assert tool is not None, "mosquitto_passwd comes with Mosquitto"
    passwords = tmp_path / "passwords"
    subprocess.run([tool, "-b", "-c", str(passwords), "d1", "right"], check=True, capture_output=True)
    broker = local_mosquitto()
    broker.kill()
    broker.config.write_text(
        broker.config.read_text().replace("allow_anonymous true", "allow_anonymous false")
        + f"password_file {passwords}\n{AS_ROOT}"
    )
    broker.start()
    wrong = client(broker.url, "w", link=MqttLink(broker.url, "w", credentials=Credentials("d1", "wrong")))
    wait(lambda: wrong.link.state.code == "broker-refused")
    client(broker.url, "r", link=MqttLink(broker.url, "r", credentials=Credentials("d1", "right"))).ready()


def test_websocket_carries_large_messages_over_a_slow_path(
    local_mosquitto: Make, client: Make, wait: Make, tmp_path: Path
) -> None:
    """Small socket buffers make frames leave in parts, which paho alone loses."""
    broker = local_mosquitto(f"listener {_free()} 127.0.0.1\nprotocol websockets\n")
    port = int(broker.config.read_text().split("listener ")[2].split()[0])
    relay = Relay(port)
    reader = client(broker.url, "reader", "t/+").ready()
    writer = client("", "writer", link=MqttLink(f"ws://127.0.0.1:{relay.port}", "writer")).ready()
    bodies = [os.urandom(262_144) for _ in range(10)]
    for body in bodies:
        assert writer.send("t/1", body) is Outcome.SENT
    wait(lambda: reader.bodies == bodies)
    relay.socket.close()


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Relay:
    """A TCP relay with small buffers."""

    def __init__(self, to: int) -> None:
        self.to = to
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen()
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self.socket.accept()
                far = socket.create_connection(("127.0.0.1", self.to))
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(2048):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def test_denied_publish_looks_sent_over_mqtt_3_1_1_and_does_not_arrive(
    fleet: Any, enter: Make, client: Make, wait: Make, authority: Authority
) -> None:
    """Why an outcome of SENT proves nothing: a receipt does."""
    from paho.mqtt.enums import MQTTProtocolVersion

    coordinator = enter("coordinator", f"{ROOT}/up/+/+/+")
    link = MqttLink(fleet.url, "device-a", tls=authority.tls("device-a"))
    link._version = MQTTProtocolVersion.MQTTv311
    a = client(fleet.url, "device-a", link=link).ready()
    assert a.send(up("device-b"), b"forged") is Outcome.SENT
    assert a.send(up("device-a"), b"own") is Outcome.SENT
    wait(lambda: coordinator.bodies)
    assert coordinator.bodies == [b"own"]


def test_local_configuration_listens_on_the_loopback_interface_only(tmp_path: Path) -> None:
    text = local_mosquitto_config(tmp_path, port=1234).read_text()
    assert "listener 1234 127.0.0.1\n" in text


def test_device_that_is_revoked_is_out_of_the_access_list_also_on_its_present_connection(
    tmp_path: Path, free_port: int, production_mosquitto: Make, client: Make, wait: Make
) -> None:
    """And back in it when a device of its name is enrolled anew."""
    fleet = create_fleet(tmp_path / "fleet", fleet="f1", malicious_parties=1, broker=f"mqtts://localhost:{free_port}")
    flooder, quiet = enrol(fleet, ["flooder", "quiet"])
    before = (fleet.broker / "mosquitto.acl").read_text()
    broker = production_mosquitto(fleet.broker / "mosquitto.conf")

    def connected(kit: Path, principal: Principal, *topics: str) -> Any:
        settings = BrokerSettings(url=broker.url, ca=CA_FILE, certificate=CERTIFICATE_FILE, key=KEY_FILE)
        link = make_link(kit, settings, Topics("f1", principal))
        return client(broker.url, principal.user, *topics, link=link).ready()

    coordinator = connected(fleet.coordinator, Principal("coordinator", "coordinator"), f"{ROOT}/up/+/+/+")
    bad = connected(flooder, Principal("device", "flooder"))
    good = connected(quiet, Principal("device", "quiet"))
    assert bad.send(up("flooder"), b"before") is Outcome.SENT
    assert fleet.broker / "mosquitto.acl" in revoke(fleet, ["flooder"])
    broker.process.send_signal(signal.SIGHUP)
    wait(lambda: bad.send(up("flooder"), b"perhaps") is Outcome.REFUSED)
    assert bad.send(up("flooder"), b"after") is Outcome.REFUSED
    assert good.send(up("quiet"), b"mine") is Outcome.SENT
    wait(lambda: b"mine" in coordinator.bodies)
    assert b"before" in coordinator.bodies and b"after" not in coordinator.bodies
    shutil.rmtree(flooder)
    enrol(fleet, ["flooder"])
    assert (fleet.broker / "mosquitto.acl").read_text() == before
