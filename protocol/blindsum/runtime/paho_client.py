"""paho-mqtt's client with the traps closed that 2.2.0 has for a caller who brings his own loop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from paho.mqtt import client as paho

__all__ = ["PACKET_SIZE_MAX", "PahoClient", "error_logger"]

PACKET_SIZE_MAX: Final = 268_435_460
"""MQTT's own limit on a packet."""


class PahoClient(paho.Client):
    """A client that gives up a connection whose peer starts a packet of more than `inbound_size_max` bytes."""

    inbound_size_max = PACKET_SIZE_MAX

    def _sock_recv(self, bufsize: int) -> bytes:
        # paho asks for all that is left of a packet and keeps it in memory
        if bufsize > self.inbound_size_max:
            raise ConnectionError(f"a packet of {bufsize} bytes, more than was announced")
        return super()._sock_recv(bufsize)

    def _sock_send(self, buf: bytes | bytearray) -> int:
        sent = super()._sock_send(buf)
        # The websocket wrapper answers 0 for a frame that is half out, and paho then forgets the packet.
        if sent == 0 and len(buf) > 0:
            raise BlockingIOError
        return sent


def error_logger(tell: Callable[[str], None]) -> logging.Logger:
    """A logger for `enable_logger` that hands every error text to `tell` and nothing to anyone else."""
    logger = logging.Logger("paho", logging.ERROR)
    handler = logging.Handler()
    handler.emit = lambda record: tell(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    return logger
