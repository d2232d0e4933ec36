"""Some devices of a simulated fleet for real: clients of a broker, with kit, database and driver, in the same rounds as the others.

The bridge stands on the broker in the coordinator's place: what the simulated coordinator says, it publishes, and what real
devices publish reaches the simulated roles. Real devices have the simulation's clock, which waits for them: it goes no faster
than real time while one of them has something to do.
"""

from __future__ import annotations

import queue
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from blindsum.backend.broker import EmbeddedBroker
from blindsum.fleet.conditions import FATES, Population
from blindsum.fleet.flaky import FlakyLink
from blindsum.fleet.identities import Identities, device_name, device_number
from blindsum.fleet.island import MESSAGE, Post
from blindsum.fleet.learner import Learner
from blindsum.fleet.ledger import Ledger, Notes
from blindsum.fleet.roles import DEVICE
from blindsum.fleet.shelf import Shelf
from blindsum.protocol.codec import decode_chunk
from blindsum.protocol.envelope import open_envelope, peek
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.keys import BROADCAST_KEY_SIZE
from blindsum.protocol.machines.step import ChunkOut, Message, Outgoing, Step, Write
from blindsum.protocol.messages import chunk_key
from blindsum.protocol.ring import Segment
from blindsum.protocol.view import RoundView
from blindsum.runtime.driver import Driver
from blindsum.runtime.kit import save_key, write_private
from blindsum.runtime.memory import MemoryStore
from blindsum.runtime.mqtt import MqttLink
from blindsum.runtime.ports import Link
from blindsum.runtime.system import random_bytes
from blindsum.runtime.topics import Principal, Topics
from blindsum.sdk import Device, DeviceEvent, Inspection, Policy, State
from blindsum.sdk.meter import MeteredLink
from blindsum.sdk.trainer import Aborted

__all__ = ["CLIENTS_MAX", "Bridge"]

CLIENTS_MAX: Final = 64
"""Real clients of one process: each has four threads and a database."""
EMBEDDED: Final = "mqtt"
CONNECT_TIMEOUT_S: Final = 10.0
START_TIMEOUT_S: Final = 60.0
SETTLE_S: Final = 5.0
"""How long real devices may take, after a round, to hear of its end before virtual time goes on."""
TICK_S: Final = 0.02
STAYS_AWAY: Final = ("away", "before join")
GIVES_UP: Final = ("after roster", "slow")
BUSY: Final = (State.JOINED, State.TRAINING, State.UPLOADING, State.UPLOADED)
OVER: Final = ("uploaded", "declined", "round-abandoned", "round-finished", "training-aborted", "training-failed")
"""Events after which a round waits for nothing of a device."""


class Clock:
    """Virtual time, in ms. One thread sets it, many read it."""

    def __init__(self, now: int) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


class _Relay:
    """The bridge's machine: whatever arrives goes to `arrived`."""

    deadline = None

    def __init__(self, arrived: queue.SimpleQueue[bytes]) -> None:
        self._arrived = arrived

    def receive(self, body: bytes, now: int) -> Step:
        self._arrived.put(body)
        return Step()

    def wake(self, now: int) -> Step:
        return Step()


class _Client(Device):
    """A real device in the simulation's time, which meets the fate that the simulation drew for it."""

    clock: Clock
    fate: str = ""
    meter: MeteredLink | None = None
    flaky: FlakyLink | None = None

    def _link(self, topics: Topics) -> Link:
        self.meter = MeteredLink(super()._link(topics))
        self.flaky = FlakyLink(self.meter)
        return self.flaky

    def _now(self) -> int:
        return self.clock.now

    def _willing(self, view: RoundView) -> str:
        return "away" if self.fate in STAYS_AWAY else super()._willing(view)


@dataclass(slots=True)
class _Told:
    """What a client said on a thread of its own."""

    device: int
    name: str
    data: dict[str, Any] = field(repr=False)


class Bridge:
    """`devices` (numbers) as real clients of the broker at `url`, or, where that is "mqtt", of an embedded one. Raises
    BlindsumError with the code of the link, as "broker-unreachable", where they cannot connect."""

    def __init__(
        self,
        devices: Sequence[int],
        url: str,
        *,
        identities: Identities,
        population: Population,
        learner: Learner,
        segments: Sequence[Segment],
        task: str,
        now: int,
    ) -> None:
        self.clock = Clock(now)
        self._parties, self._task, self._population = identities.parties, task, population
        self._told: queue.SimpleQueue[_Told] = queue.SimpleQueue()
        self._arrived: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._out: list[Outgoing] = []
        self._rows: dict[str, bytes | None] = {}
        self._retained: set[ChunkOut] = set()
        self._counter = 0
        self._horizon = now
        self._number = 0
        self._waited_for: set[int] = set()
        self._joined: set[int] = set()
        self._called: set[int] = set()
        self._ledger = Ledger(devices, population.size, segments, Shelf(), keeps=True)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="blindsum-fleet-")))
            if url == EMBEDDED:
                url = stack.enter_context(EmbeddedBroker()).url
            broadcast_key = random_bytes(BROADCAST_KEY_SIZE)
            topics = Topics(identities.trust.fleet, Principal("coordinator", "coordinator"))
            link = MqttLink(url, "coordinator")
            self._store = MemoryStore()
            self._driver = Driver(
                lambda: _Relay(self._arrived),
                self._store,
                link,
                topics,
                clock=self.clock,
                broadcast_key=broadcast_key,
            )
            self._driver.start()
            stack.callback(self._driver.stop)
            link.wait_connected(CONNECT_TIMEOUT_S)
            stack.callback(self._sweep)
            self._clients: dict[int, _Client] = {}
            for number in devices:
                kit = _make_kit(folder / device_name(number), identities, number, url, broadcast_key)
                self._clients[number] = self._client(number, kit, learner)
            for client in self._clients.values():
                client.start()
                stack.callback(client.stop)
            self._wait_for_all(url)
            self._stack = stack.pop_all()

    def stop(self) -> None:
        self._stack.close()

    def __contains__(self, device: int) -> bool:
        return device in self._clients

    # -- rounds -----------------------------------------------------------------------------------------------------------

    def begin(self, number: int, now: int) -> None:
        """A round begins: who was cut off is back, every device meets its new fate."""
        self.clock.now = now
        self._number, self._horizon = number, now
        fates = self._population.fates(number, now)
        self._ledger.begin(now, fates)
        self._joined, self._called = set(), set()
        for device, client in self._clients.items():
            client.fate = FATES[fates[device]]
            if client.flaky is not None and client.flaky.cut:
                client.stop()
                client.start()
            if client.meter is not None:
                client.meter.take()
        self._waited_for = {device for device, client in self._clients.items() if client.fate not in STAYS_AWAY}

    def take(self, post: Post) -> None:
        """Something that a simulated role sends to a real device or to everybody."""
        to = f"all/{self._task}" if post.target < DEVICE else f"device/{device_name(post.target - DEVICE)}"
        if post.blob or not peek(post.body):
            blob, index, data = (post.blob, post.place, None) if not post.body else decode_chunk(post.body)
            self._rows[chunk_key(blob, index)] = data
            out = ChunkOut(to, blob, index, retain=post.target < DEVICE)
            self._out.append(out)
            if out.retain:
                (self._retained.add if post.body else self._retained.discard)(out)
            return
        kind = open_envelope(post.body).head.type
        self._out.append(Message(kind, to, post.body))
        if kind == "roster":  # those who joined have work to do; it is repeated, and they have not
            self._waited_for |= self._joined - self._called
            self._called |= self._joined

    def wait(self, until: int, horizon: int) -> list[Post]:
        """Send what is to be sent, and let time pass up to `until`, or to the first message of a real device. Nothing that it says
        now reaches anybody before `horizon`, up to which the others have been played."""
        self._flush()
        self._horizon = horizon
        posts = self._posts()
        while not posts and self.clock.now < until:
            self._hear()
            if not self._waited_for:
                self.clock.now = until
                break
            began = time.monotonic()
            time.sleep(min(TICK_S, (until - self.clock.now) / 1000))
            self.clock.now = min(until, self.clock.now + max(1, int(1000 * (time.monotonic() - began))))
            posts = self._posts()
        return posts

    def rest(self) -> None:
        """The round is over: real devices may take a little to hear of it, and then time does not wait for them."""
        self._flush()
        end = time.monotonic() + SETTLE_S
        while time.monotonic() < end and any(client.state in BUSY for client in self._clients.values()):
            time.sleep(TICK_S)
        self._hear()
        self._waited_for = set()

    def close(self, survivors: Sequence[int]) -> Notes:
        """What real devices did in the round that is over."""
        self._hear()
        for device, client in self._clients.items():
            if client.meter is not None:
                self._ledger.up[device], self._ledger.down[device] = client.meter.take()
        return self._ledger.close(survivors)

    # -- helpers ----------------------------------------------------------------------------------------------------------

    def _client(self, number: int, kit: Path, learner: Learner) -> _Client:
        client = _Client(
            kit,
            Policy(no_roster=True),
            on_event=lambda event: self._event(number, event),
            inspect=lambda inspection: self._inspect(number, inspection),
        )
        client.clock = self.clock
        client.task(self._task)(learner.app(number))
        return client

    def _event(self, number: int, event: DeviceEvent) -> None:
        self._told.put(_Told(number, event.name, dict(event.data)))

    def _inspect(self, number: int, inspection: Inspection) -> None:
        client = self._clients[number]
        if client.fate in GIVES_UP:
            raise Aborted(client.fate)
        self._told.put(_Told(number, "made", {"round": inspection.round, "lanes": inspection.lanes}))
        if client.fate in ("mid upload", "corrupted"):
            assert client.flaky is not None
            client.flaky.arm(chunks=0)

    def _wait_for_all(self, url: str) -> None:
        end, missing = time.monotonic() + START_TIMEOUT_S, set(self._clients)
        while missing:
            try:
                told = self._told.get(timeout=max(0.01, end - time.monotonic()))
            except queue.Empty:
                raise BlindsumError("broker-unreachable", f"{url}: {len(missing)} devices not connected") from None
            if told.name == "connected":
                missing.discard(told.device)

    def _flush(self) -> None:
        if self._out:
            writes = tuple(Write(key, value) for key, value in self._rows.items())
            step = Step(writes=writes, messages=tuple(self._out))
            self._driver.call(lambda _machine, _now: step).result(START_TIMEOUT_S)
            self._out, self._rows = [], {}

    def _sweep(self) -> None:
        """Leave nothing retained on the broker."""
        self._rows = {chunk_key(out.blob, out.index): None for out in self._retained}
        self._out = list(self._retained)
        self._flush()
        end = time.monotonic() + SETTLE_S
        while time.monotonic() < end:
            left = self._driver.call(lambda _machine, _now: list(self._store.outbox(after=0, chunks=True, limit=1)))
            if not left.result(START_TIMEOUT_S):
                return
            time.sleep(TICK_S)

    def _posts(self) -> list[Post]:
        """What has arrived from real devices."""
        posts: list[Post] = []
        while True:
            try:
                body = self._arrived.get_nowait()
            except queue.Empty:
                return posts
            targets: Sequence[int] = (0,)
            if peek(body):
                head = open_envelope(body).head
                device = device_number(head.sender.partition("/")[2])
                if head.type == "header":
                    targets = range(self._parties + 1)
                elif head.type == "join":
                    self._joined.add(device)
                    self._waited_for.discard(device)
            at = max(self.clock.now, self._horizon)
            for target in targets:
                self._counter += 1
                posts.append(Post(at, target, MESSAGE, DEVICE + self._population.size, self._counter, body))

    def _hear(self) -> None:
        """Take note of what the clients said."""
        while True:
            try:
                told = self._told.get_nowait()
            except queue.Empty:
                break
            if told.data.get("round", self._number) != self._number:
                continue
            if told.name == "made":
                self._ledger.made(told.device, told.data["lanes"])
            elif told.name == "masked":
                self._ledger.mask_ms[told.device] = told.data["ms"]
            elif told.name == "uploaded":
                self._ledger.uploaded(told.device, self.clock.now)
            if told.name in OVER:
                self._waited_for.discard(told.device)
        for device, client in self._clients.items():
            if client.flaky is not None and client.flaky.cut:
                self._waited_for.discard(device)


def _make_kit(kit: Path, identities: Identities, number: int, url: str, broadcast_key: bytes) -> Path:
    identity, trust = identities.device(number), identities.trust
    kit.mkdir(parents=True)
    (kit / "device.toml").write_text(
        f'fleet = "{trust.fleet}"\ndevice = "{identity.name}"\n[broker]\nurl = "{url}"\n', "utf-8"
    )
    (kit / "trust.cbor").write_bytes(trust.encode())
    (kit / "certificate.der").write_bytes(identity.certificate)
    save_key(kit / "key.pem", identity.key)
    write_private(kit / "broadcast.key", broadcast_key)
    return kit
