"""An attacker who publishes junk as fast as it is told, from a process of its own, with packets made beforehand.

As an outsider, on a broker that lets anybody write anywhere, it has everything that was ever published: it sends random bytes,
flipped, cut and genuine messages, the same in wrong places, and old ones under the head of the present round, which cost whoever
reads them a signature. As an enrolled device it signs what it sends: useless joins, headers and questions of the present round.
"""

from __future__ import annotations

import multiprocessing
import random
import select
import socket
import ssl
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from blindsum.backend.authority import CA_FILE, CERTIFICATE_FILE, KEY_FILE
from blindsum.protocol.codec import DecodeError, decode, encode
from blindsum.protocol.envelope import Head, glance, seal_envelope
from blindsum.protocol.messages import Ask, Join
from blindsum.runtime.endpoint import Endpoint, Tls
from blindsum.runtime.frames import Frames
from blindsum.runtime.kit import load_key
from blindsum.runtime.topics import root_of, shard_of

INTRUDER = "intruder"
TASK = "digits"
POOL = 1_000
HEARD_MAX = 500
BURST_S = 0.01
BEHIND_S = 0.2


class Storm:
    """Begins to listen at once, and to publish when it is told how much."""

    def __init__(self, url: str, fleet: str, kit: Path, *, enrolled: bool) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._rate: Any = spawn.Value("d", 0.0)
        self._aside: Any = spawn.Value("b", 0)
        self._sent: Any = spawn.Value("q", 0)
        values = (self._rate, self._aside, self._sent)
        self._process = spawn.Process(
            target=_run, args=(url, root_of(fleet), fleet, kit, enrolled, *values), daemon=True
        )
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    @property
    def sent(self) -> int:
        return int(self._sent.value)

    def blow(self, rate: float, *, aside: bool = False) -> None:
        """So many messages a second from now on, `aside` to topics that nobody reads."""
        assert self._process.is_alive(), "the storm has died"
        self._aside.value, self._rate.value = aside, rate

    def stop(self) -> None:
        self._process.terminate()
        self._process.join()


def _run(url: str, root: str, fleet: str, kit: Path, enrolled: bool, rate: Any, aside: Any, sent: Any) -> None:
    dice = random.Random(1)
    sock = _connect(url, kit)
    frames = Frames(1 << 20, properties=True)
    known: deque[tuple[str, bytes]] = deque(maxlen=HEARD_MAX)
    sock.sendall(_subscribe(f"{root}/bc/+/+" if enrolled else f"{root}/#"))
    number, listening, due, at = 0, not enrolled, 0.0, time.monotonic()
    pool: list[bytes] = []
    beside: list[bytes] = []
    while True:
        for topic, body in _arrived(sock, frames):
            head = glance(body)
            if listening and topic.startswith((f"{root}/up/", f"{root}/px/")):
                known.append((topic, body))
            if head is not None and head.type == "announcement" and head.round > number:
                number, pool = head.round, []
        if not rate.value or not number:
            due, at = 0.0, time.monotonic()
            continue
        if listening:
            listening = False
            sock.sendall(_unsubscribe(f"{root}/#") + _subscribe(f"{root}/bc/+/+"))
        if not pool:
            made = list(
                _signed(root, fleet, kit, number, dice) if enrolled else _forged(root, list(known), number, dice)
            )
            pool = [_publish(topic, body) for topic, body in made]
            beside = [_publish(topic.replace(root, f"{root}-aside"), body) for topic, body in made]
        due, at = min(due + rate.value * (time.monotonic() - at), rate.value * BEHIND_S), time.monotonic()
        batch = dice.choices(beside if aside.value else pool, k=int(due))
        sock.setblocking(True)
        sock.sendall(b"".join(batch))
        sent.value += len(batch)
        due -= len(batch)


def _forged(root: str, known: list[tuple[str, bytes]], number: int, dice: random.Random) -> Iterator[tuple[str, bytes]]:
    for _ in range(POOL):
        topic, body = dice.choice(known)
        at = dice.randrange(len(body))
        match dice.randrange(6):
            case 0:
                yield topic, dice.randbytes(dice.choice((1, 200, 2000)))
            case 1:
                yield topic, body[:at] + bytes([body[at] ^ 1 << dice.randrange(8)]) + body[at + 1 :]
            case 2:
                yield topic, body[:at]
            case 3:
                yield topic, body
            case 4:
                yield f"{root}/up/{dice.randrange(16):02x}/device-{dice.randrange(8)}/header", body
            case _:
                yield topic, _under(body, number)


def _under(body: bytes, number: int) -> bytes:
    """A signed message as one of round `number`, which it was not signed for."""
    try:
        protected, *rest = decode(body[1:])
        head = decode(protected)
        head["round"] = number
    except (DecodeError, TypeError, ValueError):
        return body  # a chunk
    return body[:1] + encode([encode(head), *rest])


def _signed(root: str, fleet: str, kit: Path, number: int, dice: random.Random) -> Iterator[tuple[str, bytes]]:
    key, certificate = load_key(kit / "key.pem"), (kit / "certificate.der").read_bytes()
    for _ in range(POOL // 4):
        kind = dice.choice(("join", "header", "ask"))
        word = dice.randbytes(32)
        payload: Any = Ask(blob=word, have=b"", window=4)
        if kind == "join":
            payload = Join(manifest=word, certificate=certificate, key=word)
        to = "all" if kind == "header" else "coordinator"
        head = Head(type=kind, fleet=fleet, task=TASK, round=number, sender=f"device/{INTRUDER}", to=to)
        yield f"{root}/up/{shard_of(INTRUDER)}/{INTRUDER}/{kind}", seal_envelope(key, head, payload)


# -- as much MQTT 5 as an attacker needs ---------------------------------------------------------------------------------


def _connect(url: str, kit: Path) -> socket.socket:
    endpoint = Endpoint.parse(url)
    sock = socket.create_connection((endpoint.host, endpoint.port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if endpoint.secure:
        tls = Tls(kit / CA_FILE, kit / CERTIFICATE_FILE, kit / KEY_FILE)
        sock = tls.context().wrap_socket(sock, server_hostname=endpoint.host)
    sock.sendall(_packet(0x10, _text("MQTT") + b"\x05\x02\xff\xff\x00" + _text(INTRUDER)))
    return sock


def _arrived(sock: socket.socket, frames: Frames) -> Iterator[tuple[str, bytes]]:
    sock.setblocking(False)
    if select.select([sock], [], [], BURST_S)[0]:
        with suppress(BlockingIOError, ssl.SSLWantReadError):
            frames.feed(sock.recv(1 << 16) or sys.exit("the broker closed the connection"))
    while frames.whole():
        if frames.delivery:
            yield frames.publish()[:2]
        frames.drop()


def _publish(topic: str, body: bytes) -> bytes:
    return _packet(0x30, _text(topic) + b"\x00" + body)


def _subscribe(topic: str) -> bytes:
    return _packet(0x82, b"\x00\x01\x00" + _text(topic) + b"\x00")


def _unsubscribe(topic: str) -> bytes:
    return _packet(0xA2, b"\x00\x02\x00" + _text(topic))


def _text(text: str) -> bytes:
    return len(text).to_bytes(2) + text.encode()


def _packet(kind: int, rest: bytes) -> bytes:
    size, length = len(rest), b""
    while True:
        size, byte = size >> 7, size & 127
        length += bytes([byte | (128 if size else 0)])
        if not size:
            return bytes([kind]) + length + rest
