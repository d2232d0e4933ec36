"""paho-mqtt's client with the traps closed that 2.2.0 has for a caller who brings his own loop."""

from __future__ import annotations

import logging
import selectors
import socket
import time
from collections.abc import Callable
from typing import Final

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from blindsum.protocol.messages import MESSAGE_SIZE_MAX
from blindsum.runtime.endpoint import Endpoint
from blindsum.runtime.frames import Frames

__all__ = ["PACKET_OVERHEAD_SIZE", "PACKET_SIZE_MAX", "RECEIVE_MAX", "PahoClient", "error_logger"]

RECEIVE_MAX: Final = 64
"""Deliveries that the broker may leave unacknowledged towards us (MQTT 5)."""
PACKET_OVERHEAD_SIZE: Final = 1024
"""More than topic, properties and headers add to the body of any packet here."""
PACKET_SIZE_MAX: Final = 268_435_460
"""MQTT's own limit on a packet."""
KEEPALIVE_S: Final = 60
SESSION_EXPIRY_S: Final = 86_400
READ_SIZE: Final = 1 << 16
RECORDS_MAX: Final = 64
"""TLS records, or frames of a websocket, read at a time; a broker puts each message in one of its own."""
PUBACK: Final = 0x40


class PahoClient(paho.Client):
    """A client for one connection, driven by `fill`, `drain`, `loop_write` and `loop_misc` from one thread."""

    frames: Frames
    deliver: Callable[[str, bytes, int], bool]
    """Told topic, body and packet id (0 at QoS 0) of each message. False: not now; it is told again at the next `drain`."""
    unheard: Callable[[bytes], bool]
    """Whether a message on this topic is to be dropped; then `skip` is told its packet id where it has one."""
    skip: Callable[[int], None]

    @classmethod
    def make(cls, endpoint: Endpoint, client_id: str, version: MQTTProtocolVersion) -> PahoClient:
        """A client that keeps its session, acknowledges only by `ack`, and never reconnects or writes by itself."""
        client = cls(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if version == MQTTProtocolVersion.MQTTv5 else False,
            protocol=version,
            transport="websockets" if endpoint.websocket else "tcp",
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.ws_set_options(path=endpoint.path)
        client.on_socket_register_write = lambda *_: None  # without one, paho writes from inside publish()
        announced = MESSAGE_SIZE_MAX + PACKET_OVERHEAD_SIZE
        five = version == MQTTProtocolVersion.MQTTv5
        client.frames = Frames(announced if five else PACKET_SIZE_MAX, properties=five)
        return client

    def begin(self, endpoint: Endpoint, timeout_s: float) -> None:
        """Connect the socket and queue CONNECT. Raises OSError, or ValueError for a host name that is none."""
        self.connect_timeout = timeout_s
        if self.protocol == MQTTProtocolVersion.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = SESSION_EXPIRY_S
            properties.ReceiveMaximum = RECEIVE_MAX
            properties.MaximumPacketSize = MESSAGE_SIZE_MAX + PACKET_OVERHEAD_SIZE
            self.connect(endpoint.host, endpoint.port, KEEPALIVE_S, clean_start=False, properties=properties)
        else:
            self.connect(endpoint.host, endpoint.port, KEEPALIVE_S)
        sock = self.socket()
        if isinstance(sock, socket.socket):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def leave(self, timeout_s: float) -> None:
        """Send what is queued and DISCONNECT."""
        self.disconnect()
        end = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            while (sock := self.socket()) is not None and (left := end - time.monotonic()) > 0:
                if self.loop_write() != MQTTErrorCode.MQTT_ERR_SUCCESS or self.socket() is None:
                    return
                if sock not in selector.get_map():
                    selector.register(sock, selectors.EVENT_WRITE)
                selector.select(left)

    def fill(self) -> bool:
        """Read from the socket, which has something or is at its end. False: the end. Raises OSError."""
        plain = type(self.socket()) is socket.socket
        parts: list[bytes] = []
        while len(parts) < (1 if plain else RECORDS_MAX):
            try:
                data = super()._sock_recv(READ_SIZE)
            except BlockingIOError:  # a part of a TLS record or of a websocket's frame
                break
            if not data:
                if not parts:
                    return False
                break
            parts.append(data)
        self.frames.feed(b"".join(parts))
        return True

    def drain(self) -> bool:
        """Deal with every whole packet that was read. False: a delivery must wait, and all behind it. Raises OSError for what is
        not MQTT."""
        frames = self.frames
        while frames.whole():
            if frames.delivery:
                if self.unheard(frames.topic):
                    if mid := frames.mid:
                        self.skip(mid)
                elif not self.deliver(*frames.publish()):
                    return False
            elif self.loop_read() != MQTTErrorCode.MQTT_ERR_SUCCESS or self.socket() is None:
                break
            frames.drop()
        return True

    def acknowledge(self, mids: list[int]) -> None:
        """Say PUBACK for these packet ids, in one write."""
        packets = b"".join(b"\x40\x02" + mid.to_bytes(2) for mid in mids)
        self._packet_queue(PUBACK, packets, mids[0], 1)

    def _sock_recv(self, bufsize: int) -> bytes:
        if not (data := self.frames.take(bufsize)):
            raise BlockingIOError
        return data

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
