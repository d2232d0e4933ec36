"""Where a broker is and how to be let in: URL, TLS files, password, presence, and the reason when it fails."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from blindsum.protocol.errors import BlindsumError
from blindsum.runtime.clock import clock_says
from blindsum.runtime.ports import LinkState
from blindsum.runtime.system import now_ms

__all__ = ["Credentials", "Endpoint", "Tls", "Will", "failure_of", "failure_said"]

_NOT_NOW: Final = {9: "not valid yet", 10: "no longer valid"}
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""

_DEFAULT_PORTS: Final = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files: the CA that signed the broker (None: those that the system trusts), and our certificate and key where the broker
    asks for one. TLS 1.3 only."""

    ca: Path | str | None
    certificate: Path | str | None = None
    key: Path | str | None = None
    password: bytes = field(default=b"", repr=False)
    """Of an encrypted key."""

    def context(self) -> ssl.SSLContext:
        """Raises BlindsumError "tls-files-unusable"."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            if self.ca is None:
                context.load_default_certs()
            else:
                context.load_verify_locations(cafile=self.ca)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key, lambda: self.password)  # never asks
        except (OSError, ValueError) as error:
            named = (str(path) for path in (self.ca, self.certificate, self.key) if path is not None)
            raise BlindsumError("tls-files-unusable", f"{', '.join(named)}: {error}") from error
        return context


@dataclass(frozen=True, slots=True)
class Credentials:
    """User name and password, for a broker that has no client certificates."""

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Will:
    """Presence on `topic`, retained: `here` after each connect, `gone` by us at the end or by the broker when we die."""

    topic: str
    here: bytes = b"online"
    gone: bytes = b"offline"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The parts of mqtt://, mqtts://, ws:// or wss:// host[:port][/path]."""

    secure: bool
    """TLS."""
    websocket: bool
    host: str
    port: int
    path: str

    @staticmethod
    def parse(url: str) -> Endpoint:
        """Raises BlindsumError "broker-url-invalid"."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
        except ValueError as error:
            raise BlindsumError("broker-url-invalid", f"{url!r}: {error}") from error
        if not host or not port or parts.scheme not in _DEFAULT_PORTS:
            raise BlindsumError("broker-url-invalid", repr(url))
        if parts.username is not None or parts.password is not None:
            raise BlindsumError("broker-url-invalid", "a user name or password in the URL would end up in logs")
        return Endpoint(
            parts.scheme in ("mqtts", "wss"), parts.scheme in ("ws", "wss"), host, port, parts.path or "/mqtt"
        )


def failure_of(error: Exception) -> LinkState:
    """The state of a link whose connection attempt ended with `error`."""
    if isinstance(error, ssl.SSLCertVerificationError) and error.verify_code in _NOT_NOW:
        when = f"{_NOT_NOW[error.verify_code]} by this clock, which says {clock_says(now_ms())}"
        return LinkState(connected=False, code="tls-time", detail=f"the broker's certificate is {when}")
    return failure_said(str(error) or type(error).__name__, otherwise="broker-unreachable")


def failure_said(text: str, *, otherwise: str) -> LinkState:
    """The state of a link that ended with the error `text`, whose code is `otherwise` where it is none of TLS."""
    code = "tls-time" if "CERTIFICATE_EXPIRED]" in text else "tls-failed" if "[SSL" in text else otherwise
    return LinkState(connected=False, code=code, detail=text)
