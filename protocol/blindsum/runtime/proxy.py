"""The proxy that stands between a role and its broker: HTTP (CONNECT) or SOCKS 5, by way of PySocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from blindsum.protocol.errors import BlindsumError

__all__ = ["Proxy"]

_PORTS: Final = {"http": 8080, "socks5": 1080}


@dataclass(frozen=True, slots=True)
class Proxy:
    """The parts of http:// or socks5:// [user[:password]@]host[:port]. The proxy looks up the broker's name."""

    kind: str
    host: str
    port: int
    user: str
    password: str = field(repr=False)

    @staticmethod
    def parse(url: str) -> Proxy:
        """Raises BlindsumError "proxy-url-invalid" or, where PySocks is not installed, "proxy-package-missing"."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or _PORTS.get(parts.scheme, 0)
        except ValueError as error:
            raise BlindsumError("proxy-url-invalid", str(error)) from None
        if not host or parts.scheme not in _PORTS:
            raise BlindsumError("proxy-url-invalid", f"scheme {parts.scheme!r}, host {host!r}")
        _socks()
        return Proxy(parts.scheme, host, port, unquote(parts.username or ""), unquote(parts.password or ""))

    def arguments(self) -> dict[str, Any]:
        """What paho's `proxy_set` takes."""
        socks = _socks()
        return {
            "proxy_type": {"http": socks.HTTP, "socks5": socks.SOCKS5}[self.kind],
            "proxy_addr": self.host,
            "proxy_port": self.port,
            "proxy_rdns": True,
            "proxy_username": self.user or None,
            "proxy_password": self.password or None,
        }


def _socks() -> Any:
    try:
        import socks
    except ImportError:
        raise BlindsumError("proxy-package-missing") from None
    return socks
