"""A broker's byte stream cut into MQTT control packets, and what a PUBLISH at QoS 0 or 1 says (MQTT 5 section 3.3).

paho reads a packet in three system calls and makes an object with properties of it: 100 microseconds, which is what a flood of
junk costs before anybody has looked at it. Deliveries, of which there are many, are therefore read here; all other packets are
paho's.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Frames"]

LENGTH_BYTES_MAX: Final = 4
PUBLISH: Final = 0x30
PUBLISH_MASK: Final = 0xF4
"""Type, and the high bit of QoS, which is clear at 0 and 1."""


class Frames:
    """What has arrived and is not dealt with: at most one packet of `size_max` bytes and what came with it in one `feed`.

    Raises ConnectionError for what is not MQTT and for a larger packet, as soon as its length is known.
    """

    def __init__(self, size_max: int, *, properties: bool) -> None:
        self._size_max, self._properties = size_max, properties
        self._buffer = bytearray()
        self._at = self._body = self._end = 0

    def feed(self, data: bytes) -> None:
        del self._buffer[: self._at]
        self._end -= self._at
        self._body -= self._at
        self._at = 0
        self._buffer += data

    def whole(self) -> bool:
        """Whether the next packet is all there."""
        buffer, at = self._buffer, self._at + 1
        size = shift = 0
        while at < len(buffer):
            byte = buffer[at]
            size |= (byte & 127) << shift
            at += 1
            if byte < 128:
                break
            shift += 7
            if shift == 7 * LENGTH_BYTES_MAX:
                raise ConnectionError("a packet without a length")
        else:
            return False
        if size > self._size_max:
            raise ConnectionError(f"a packet of {size} bytes, more than was announced")
        self._body, self._end = at, at + size
        return self._end <= len(buffer)

    @property
    def delivery(self) -> bool:
        """Whether the packet, which is whole, is a PUBLISH at QoS 0 or 1."""
        return self._buffer[self._at] & PUBLISH_MASK == PUBLISH

    @property
    def topic(self) -> bytes:
        """Of the delivery, in haste: it may be broken."""
        start = self._body + 2
        return bytes(self._buffer[start : start + int.from_bytes(self._buffer[self._body : start])])

    @property
    def mid(self) -> int:
        """Packet id of the delivery, in haste; 0 at QoS 0."""
        if not self._buffer[self._at] & 2:
            return 0
        start = self._body + 2
        start += int.from_bytes(self._buffer[self._body : start])
        return int.from_bytes(self._buffer[start : start + 2])

    def publish(self) -> tuple[str, bytes, int]:
        """Topic ("" where it is not UTF-8), body, and packet id (0 at QoS 0) of the delivery."""
        buffer, end = self._buffer, self._end
        at = self._body + 2
        start, at = at, at + int.from_bytes(buffer[self._body : at])
        topic = buffer[start:at]
        mid = 0
        if buffer[self._at] & 2:
            mid = int.from_bytes(buffer[at : at + 2])
            at += 2
        if self._properties:
            at = self._after_properties(at)
        if start > end or at > end or (buffer[self._at] & 2 and not mid):
            raise ConnectionError("a broken packet")
        try:
            name = topic.decode()
        except UnicodeDecodeError:
            name = ""
        return name, bytes(memoryview(buffer)[at:end]), mid

    def take(self, size: int) -> bytes:
        """Up to `size` further bytes of the packet, for another reader; b"" at its end."""
        at = self._at
        self._at = min(at + size, self._end)
        return bytes(self._buffer[at : self._at])

    def drop(self) -> None:
        """The packet is dealt with."""
        self._at = self._end

    def _after_properties(self, at: int) -> int:
        size = shift = 0
        while at < self._end:
            byte = self._buffer[at]
            size |= (byte & 127) << shift
            at += 1
            if byte < 128:
                return at + size
            shift += 7
            if shift == 7 * LENGTH_BYTES_MAX:
                break
        raise ConnectionError("a broken packet")
