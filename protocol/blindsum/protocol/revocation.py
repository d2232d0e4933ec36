"""Which device certificates the fleet has taken back: an X.509 revocation list (RFC 5280) of the fleet CA (SPEC.md section 4.2).

The list is a file that the operator hands to every organisation, as it did the trust bundle; no other role is asked for it. Lists
are numbered (CRLNumber), each holds all that the one before held, and nobody goes back to an older one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import NameOID

from blindsum.protocol.errors import BlindsumError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = [
    "REVOKED_MAX",
    "REVOKED_SIZE_MAX",
    "Revocations",
    "certificate_serial",
    "revocations_issue",
    "revocations_open",
]

REVOKED_MAX: Final = 100_000
"""Certificates that one list takes back."""
REVOKED_SIZE_MAX: Final = 8 << 20
"""Bytes of a list."""
LIST_DAYS: Final = 3650
"""The standard wants a date after which a list is old; ours are replaced by number, not by date."""


@dataclass(frozen=True, slots=True)
class Revocations:
    """A checked list: `number` 0 is the list that every fleet begins with, in which nothing stands."""

    number: int = 0
    serials: frozenset[int] = frozenset()
    raw: bytes = field(default=b"", repr=False)


def revocations_issue(
    *, issuer: str, issuer_key: Ed25519PrivateKey, number: int, revoked: Mapping[int, int], now: int
) -> bytes:
    """The DER list `number` of the CA called `issuer`: `revoked` gives when (ms) each serial was taken back."""
    assert len(revoked) <= REVOKED_MAX
    start = _moment(now)
    builder = x509.CertificateRevocationListBuilder(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]), start, start + timedelta(days=LIST_DAYS)
    ).add_extension(x509.CRLNumber(number), critical=False)
    for serial, at in sorted(revoked.items()):
        entry = x509.RevokedCertificateBuilder(serial, _moment(at)).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(issuer_key, None).public_bytes(serialization.Encoding.DER)


def revocations_open(der: bytes, *, ca: bytes) -> Revocations:
    """The list in `der`, where the fleet CA (its DER certificate `ca`) signed it. Raises BlindsumError("revocations-invalid")."""
    if len(der) > REVOKED_SIZE_MAX:
        raise BlindsumError("revocations-invalid", f"{len(der)} bytes; at most {REVOKED_SIZE_MAX}")
    try:
        listed, authority = x509.load_der_x509_crl(der), x509.load_der_x509_certificate(ca)
        key = authority.public_key()
        if listed.issuer != authority.subject or not isinstance(key, Ed25519PublicKey):
            raise BlindsumError("revocations-invalid", "it is of another CA")
        if not listed.is_signature_valid(key):
            raise BlindsumError("revocations-invalid", "its signature is not that of the fleet's CA")
        number = listed.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        serials = frozenset(entry.serial_number for entry in listed)
    except BlindsumError:
        raise
    except Exception as error:  # malformed DER has many exceptions; all mean the same
        raise BlindsumError("revocations-invalid", str(error)) from None
    if number < 1 or len(serials) > REVOKED_MAX:
        raise BlindsumError("revocations-invalid", f"number {number}, {len(serials)} certificates")
    return Revocations(number, serials, der)


def certificate_serial(der: bytes) -> int:
    """The serial number of a certificate that was checked before."""
    return x509.load_der_x509_certificate(der).serial_number


def _moment(ms: int) -> datetime:
    return datetime.fromtimestamp(ms // 1000, UTC)
