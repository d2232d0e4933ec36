"""A backend for the tests of an app: a real coordinator, real parties and other devices in this process, on a bus in memory.

Nothing of the protocol is faked: the devices of the app run as they do in production, with keys, masks, votes and openings. What is
left out is a broker, disks but the device's own, and waiting.
"""

from __future__ import annotations

import queue
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from blindsum.backend.provision import FleetFolder, create_fleet, enrol
from blindsum.backend.queries import answer_of, create_query
from blindsum.backend.tasks import Plan, TaskFiles, create_task
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.keys import box_seal
from blindsum.protocol.machines.coordinator import CoordinatorMachine
from blindsum.protocol.machines.device import DeviceMachine, Floor
from blindsum.protocol.machines.party import PartyFloor, PartyMachine
from blindsum.protocol.machines.step import Event, Machine
from blindsum.protocol.params import ThreatModel
from blindsum.protocol.queries import Answer, Query, read_query
from blindsum.protocol.transcript import write_records
from blindsum.protocol.update import decode_sum, encode_update
from blindsum.runtime.driver import Driver
from blindsum.runtime.kit import load_broadcast_key, load_identity, load_key, load_trust, read_file
from blindsum.runtime.memory import MemoryStore
from blindsum.runtime.ports import Link
from blindsum.runtime.system import random_bytes
from blindsum.runtime.topics import Principal, Topics
from blindsum.sdk.device import Device
from blindsum.testing.bus import Bus

__all__ = ["FakeBackend", "Round"]

FLEET: Final = "fake"
CALL_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Round:
    """A finished round. `devices`: who is in the sum; `weight`: the sum of their weights; `mean`: the weighted mean update, to
    which the other devices add nothing but their weight of 1; `statistics`: the exact sums after the
    weight; `answer`: of a query."""

    number: int
    devices: tuple[str, ...]
    weight: int
    mean: NDArray[np.float32] = field(repr=False)
    statistics: tuple[int, ...]
    answer: Answer | None
    transcript: bytes = field(repr=False)


class FakeBackend:
    """One task, its operator, four parties, a coordinator, and `others` devices that add zeros. A context manager.

    `work`: a training artifact, or a query. `kit(name)` makes a kit for a device of the app, up to `devices` of them; a `Device`
    opened on it speaks to this backend as long as that is open. `round()` plays one round. `bus` disturbs the network.
    `plan` changes what `backend.tasks.Plan` says by itself.
    """

    def __init__(
        self, work: bytes | Query, *, task: str = "task", devices: int = 1, others: int = 3, **plan: Any
    ) -> None:
        self.task, self.bus = task, Bus()
        self._others, self._most = others, devices + others
        self._folder = tempfile.TemporaryDirectory(prefix="blindsum-")
        self._fleet: FleetFolder = create_fleet(
            Path(self._folder.name) / "fleet", fleet=FLEET, malicious_parties=1, broker="mqtt://127.0.0.1:1883"
        )
        threat = ThreatModel(corrupt_permille=0, dropped_permille=500, cohort_min=2)
        settings: dict[str, Any] = {
            "threat": threat, "devices_min": max(2, others), "devices_max": self._most, "rounds": 1_000_000, "clip_norm": 10.0,
            "weight_max": 1024, "join_s": 2.0, "upload_s": 30.0, "decide_s": 4.0,
        }  # fmt: skip
        made = Plan(name=task, **{**settings, **plan})
        create: Callable[..., Any] = create_query if isinstance(work, Query) else create_task
        self._files: TaskFiles = create(self._fleet.operator, work, made)[0]
        self.trust = load_trust(self._fleet.operator)
        self._drivers: dict[str, Driver] = {}
        self._told: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def kit(self, name: str = "phone") -> Path:
        """The folder of a new kit for a device of the app."""
        return enrol(self._fleet, [name])[0]

    def round(self, timeout_s: float = 30.0) -> Round:
        """Play a round to its end. Raises BlindsumError with the code it failed with, or "driver-busy" where it takes too long."""
        coordinator = self._drivers["coordinator"]
        coordinator.call(lambda machine, now: _coordinator(machine).start(self.task, now)).result(CALL_TIMEOUT_S)
        until = time.monotonic() + timeout_s
        while True:
            try:
                event = self._told.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise BlindsumError("driver-busy", f"no end of the round in {timeout_s} s") from None
            if event.name == "round-failed":
                raise BlindsumError("round-over", f"the round failed: {event.data['code']}")
            if event.name == "round-finished":
                return coordinator.call(lambda machine, _now: self._read(_coordinator(machine))).result(CALL_TIMEOUT_S)

    def stop_party(self, number: int) -> None:
        """Take one of the four parties away; three are a quorum, two are not."""
        self._drivers.pop(f"party-{number}").stop()

    def __enter__(self) -> FakeBackend:
        self._real_link = real = Device._link

        def link(device: Device, topics: Topics) -> Link:
            return self.bus.link(topics.principal.user) if topics.fleet == FLEET else real(device, topics)

        Device._link = link  # type: ignore[method-assign, assignment]
        broadcast_key = load_broadcast_key(self._fleet.operator)
        for number, kit in enumerate(self._fleet.parties, 1):
            make = partial(
                PartyMachine, number=number, key=load_key(kit / "key.pem"), trust=self.trust, random=random_bytes, seal=box_seal,
                floor=PartyFloor(cohort_min=2), threads=1, broadcast_key=broadcast_key,
            )  # fmt: skip
            self._run(Principal("party", str(number)), make)
        for kit in enrol(self._fleet, [f"other-{number}" for number in range(1, self._others + 1)]):
            identity = load_identity(kit, self.trust)
            make_device = partial(
                DeviceMachine, identity=identity, trust=self.trust, tasks=frozenset({self.task}), random=random_bytes,
                seal=box_seal, floor=Floor(roster=False), willing=lambda _view: "", broadcast_key=broadcast_key,
            )  # fmt: skip
            self._run(Principal("device", identity.name), make_device)
        kit = self._fleet.coordinator
        make_coordinator = partial(
            CoordinatorMachine, key=load_key(kit / "key.pem"), box_private=read_file(kit / "box.key"), trust=self.trust,
            random=random_bytes, threads=1,
        )  # fmt: skip
        self._run(Principal("coordinator", "coordinator"), make_coordinator, broadcast_key=broadcast_key)
        files = self._files
        self._drivers["coordinator"].call(
            lambda machine, _now: _coordinator(machine).add_task(files.record, plan=files.plan, model=files.model)
        ).result(CALL_TIMEOUT_S)
        return self

    def __exit__(self, *_error: object) -> None:
        Device._link = self._real_link  # type: ignore[method-assign]
        for driver in self._drivers.values():
            driver.stop()
        self._folder.cleanup()

    def _run(self, who: Principal, make: Callable[..., Machine], *, broadcast_key: bytes = b"") -> None:
        store = MemoryStore()
        topics = Topics(FLEET, who, (self.task,) if who.role == "device" else ())
        self._drivers[who.user] = driver = Driver(
            lambda: make(store=store),
            store,
            self.bus.link(who.user),
            topics,
            on_event=lambda event: self._event(who, event),
            broadcast_key=broadcast_key,
        )
        driver.start()

    def _event(self, who: Principal, event: Event) -> None:
        if who.role == "coordinator":
            self._told.put(event)
        elif who.role == "device" and event.name == "train":
            self._drivers[who.user].call(
                lambda machine, now: self._add_nothing(machine, int(str(event.data["round"])), now)
            )

    def _add_nothing(self, machine: Machine, number: int, now: int) -> object:
        assert isinstance(machine, DeviceMachine)
        view = machine.view(self.task)
        if view is None:
            return None
        specs = view.task.segments
        length = sum(spec.length for spec in specs if spec.codec == "quantised")
        statistics = [0] * (next(spec.length for spec in specs if spec.codec == "exact") - 1)
        lanes = encode_update(
            view.base, np.zeros(length, np.float32), weight=1, statistics=statistics, rotation=view.manifest.rotation,
            key=random_bytes(32),
        )  # fmt: skip
        return machine.upload(self.task, number, lanes, now)

    def _read(self, machine: CoordinatorMachine) -> Round:
        round_, base = machine.round(self.task), machine.base(self.task)
        assert round_ is not None and round_.view is not None and round_.roster is not None and base is not None
        records = list(machine.records(self.task))
        assert round_.bodies is not None
        total = decode_sum(base, dict(records)["sum"], round_.view.manifest.rotation)
        sums = [total.weight, *total.statistics.tolist()]
        query = not base.task.model.size
        return Round(
            round_.state.number,
            tuple(round_.roster.devices[index] for index in round_.roster.in_order(list(round_.bodies.complete))),
            total.weight,
            total.mean,
            tuple(sums[1:]),
            answer_of(read_query(self._files.plan), sums) if query else None,
            b"".join(write_records(records)),
        )


def _coordinator(machine: Machine) -> CoordinatorMachine:
    assert isinstance(machine, CoordinatorMachine)
    return machine
