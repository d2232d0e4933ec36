"""Identities at the broker: a certificate authority of its own, whose certificates let a role in and sign nothing.

The fleet's CA says which devices belong to the fleet, and what it signs counts as a device. So TLS has another CA and other
keys (ECDSA P-256, which every broker knows): whoever steals a TLS key can connect, and cannot speak for anybody.
"""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from blindsum.protocol.errors import BlindsumError
from blindsum.runtime.kit import read_file, write_private

__all__ = ["CA_FILE", "CA_KEY_FILE", "CERTIFICATE_FILE", "KEY_FILE", "BrokerAuthority"]

CA_FILE: Final = "tls-ca.pem"
CERTIFICATE_FILE: Final = "tls-certificate.pem"
KEY_FILE: Final = "tls-key.pem"
CA_KEY_FILE: Final = "tls-ca-key.pem"

CA_DAYS: Final = 3650
_EARLIER: Final = timedelta(hours=1)
"""Certificates are valid from this long ago, for clocks that are behind."""


class BrokerAuthority:
    """The CA that a fleet's broker believes. `folder` (the operator's kit) holds its certificate and its key."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate, self._key = certificate, key

    @staticmethod
    def create(folder: Path, fleet: str) -> BrokerAuthority:
        """Make one and keep it in `folder`."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(f"{fleet} broker access")
        start = datetime.now(UTC) - _EARLIER
        certificate = (
            x509.CertificateBuilder(
                name, name, key.public_key(), x509.random_serial_number(), start, start + timedelta(days=CA_DAYS)
            )
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        write_private(folder / CA_KEY_FILE, _key_pem(key))
        (folder / CA_FILE).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return BrokerAuthority(certificate, key)

    @staticmethod
    def load(folder: Path) -> BrokerAuthority:
        """The one that `create` left in `folder`. Raises BlindsumError "kit-incomplete"."""
        try:
            certificate = x509.load_pem_x509_certificate(read_file(folder / CA_FILE))
            key = serialization.load_pem_private_key(read_file(folder / CA_KEY_FILE), None)
        except (ValueError, TypeError) as error:
            raise BlindsumError("kit-incomplete", f"{folder / CA_KEY_FILE}: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
            raise BlindsumError("kit-incomplete", f"{folder}: {CA_FILE} and {CA_KEY_FILE} do not belong together")
        return BrokerAuthority(certificate, key)

    def client(self, kit: Path, user: str, *, days: int) -> None:
        """Write the TLS files of a client into `kit`; `user` is its MQTT user name and client id."""
        self._issue(kit, _name(user), ExtendedKeyUsageOID.CLIENT_AUTH, days)

    def server(self, kit: Path, host: str, *, days: int) -> None:
        """Write the TLS files of the broker at `host` (a name or an IP address) into `kit`."""
        try:
            alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            alternative = x509.DNSName(host)
        names = x509.SubjectAlternativeName([alternative])
        self._issue(kit, _name("broker"), ExtendedKeyUsageOID.SERVER_AUTH, days, names)

    def _issue(
        self, kit: Path, subject: x509.Name, purpose: x509.ObjectIdentifier, days: int, *extensions: x509.ExtensionType
    ) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        start = datetime.now(UTC) - _EARLIER
        builder = (
            x509.CertificateBuilder(
                self._certificate.subject,
                subject,
                key.public_key(),
                x509.random_serial_number(),
                start,
                start + timedelta(days=days),
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        write_private(kit / KEY_FILE, _key_pem(key))
        (kit / CERTIFICATE_FILE).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (kit / CA_FILE).write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
