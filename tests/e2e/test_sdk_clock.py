"""A device whose clock is wrong: what the app is told, what its doctor finds, and that setting the clock is all there is to do."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from blindsum.backend.broker import EmbeddedBroker
from blindsum.sdk import Device, State
from tests.e2e.livingfleet import Phone, at_broker, until

DAY_MS = 86_400_000


@pytest.mark.parametrize(("days", "remedy"), [(-400, "set the clock"), (400, "have the kit made again")])
def test_clock_outside_the_certificates_time_is_told_until_it_is_set(lonely: Path, days: int, remedy: str) -> None:
    with EmbeddedBroker() as broker:
        at_broker(lonely, broker.url)
        device = Phone.open(lonely)
        device.ahead_ms = days * DAY_MS
        heard = device.events()
        with device:
            until(lambda: device.state is State.WAITING)
            assert "certificate" in device.reason and remedy in device.reason
            found = {finding.name: finding for finding in device.doctor()}
            assert not found["device certificate"].ok and remedy in found["device certificate"].remedy
            device.ahead_ms = 0
            assert device.reason == "for a round"
            assert {finding.name for finding in device.doctor() if not finding.ok} == set()
        told = next(event.data for event in heard if event.name == "refused")
    assert told["code"] == "kit-certificate" and remedy in str(told["detail"])


@pytest.mark.parametrize(("days", "when"), [(-400, "no longer valid"), (400, "not valid yet")])
def test_broker_whose_certificate_is_of_another_time_makes_the_device_name_its_clock(
    lonely: Path, days: int, when: str
) -> None:
    """As the device sees it: the broker's clock and its own differ by so many days."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate_of(lonely, days=days))
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection = server.accept()[0]
                    with suppress(OSError), connection:
                        context.wrap_socket(connection, server_side=True).close()

        threading.Thread(target=serve, daemon=True).start()
        at_broker(lonely, f"mqtts://localhost:{server.getsockname()[1]}", ca="ca.pem")
        device = Device.open(lonely)
        with device:
            until(lambda: when in device.reason)
            assert device.state is State.CONNECTING
            assert "by this clock, which says" in device.reason and "set the clock" in device.reason
        broker = next(finding for finding in device.doctor() if finding.name == "broker")
        assert "tls-time" in broker.detail and "set the clock" in broker.remedy
        server.shutdown(socket.SHUT_RDWR)


def certificate_of(folder: Path, *, days: int) -> tuple[Path, Path]:
    """A broker's certificate that holds for a month that is so many days off, by an authority in ca.pem that always holds."""
    day, now = datetime.timedelta(days=1), datetime.datetime.now(datetime.UTC)
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in ("authority", "localhost")]
    root, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

    def builder(
        subject: x509.Name, public: ec.EllipticCurvePublicKey, since: int, until: int
    ) -> x509.CertificateBuilder:
        return x509.CertificateBuilder(names[0], subject, public, 7, now + since * day, now + until * day)

    ca = builder(names[0], root.public_key(), -2000, 2000)
    ca = ca.add_extension(x509.BasicConstraints(True, None), critical=True)
    own = builder(names[1], key.public_key(), days - 15, days + 15)
    own = own.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    pem, private = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "ca.pem").write_bytes(ca.sign(root, hashes.SHA256()).public_bytes(pem))
    (folder / "broker.pem").write_bytes(own.sign(root, hashes.SHA256()).public_bytes(pem))
    (folder / "broker.key").write_bytes(key.private_bytes(pem, private, serialization.NoEncryption()))
    return folder / "broker.pem", folder / "broker.key"
