"""The device as an app embeds it: one object, one background, no exception into the app."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Self

from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.keys import box_seal
from blindsum.protocol.machines.device import DeviceMachine, Floor
from blindsum.protocol.machines.step import Event, Machine
from blindsum.protocol.refusals import REFUSALS
from blindsum.protocol.view import RoundView
from blindsum.runtime.driver import Driver
from blindsum.runtime.kit import BrokerSettings, load_broadcast_key, load_identity, load_trust, make_link
from blindsum.runtime.ports import Link
from blindsum.runtime.settings import Settings, load_settings
from blindsum.runtime.sqlite import SqliteStore
from blindsum.runtime.system import random_bytes
from blindsum.runtime.topics import Principal, Topics
from blindsum.sdk.policy import Policy
from blindsum.sdk.worker import Context, Examples, Inspect, Inspection, Worker

__all__ = ["Context", "Device", "DeviceEvent", "DeviceSettings", "Inspection", "State"]

log = logging.getLogger("blindsum.sdk")
logging.getLogger("blindsum").addHandler(logging.NullHandler())  # what is logged is the app's choice

STOP_TIMEOUT_S: Final = 2.0
OWN_REFUSALS: Final = frozenset({"clock-skew", "policy-floor", "upgrade-required"})
EVENTS_MAX: Final = 1024
"""Events that wait for a slow callback; older ones are dropped."""


class DeviceSettings(Settings, frozen=True):
    """`device.toml` of a kit."""

    fleet: str
    device: str
    broker: BrokerSettings


class State(StrEnum):
    """What a device is doing; `Device.reason` says more, for people."""

    STOPPED = "stopped"
    CONNECTING = "connecting"
    WAITING = "waiting"
    JOINED = "joined"
    TRAINING = "training"
    UPLOADING = "uploading"
    UPLOADED = "uploaded"
    FAILED = "failed"


ALONE: Final = frozenset({State.STOPPED, State.FAILED, State.TRAINING})
"""States that need no connection; in the others its absence is what there is to say."""


@dataclass(frozen=True, slots=True)
class DeviceEvent:
    """Something that happened: `name` is stable, `data` never secret."""

    name: str
    data: dict[str, object]


class Device:
    """A device of a fleet. Register tasks with `task`, then `start` (or use it as a context manager).

    Nothing that happens in the background raises into the app: see `state`, `reason` and `on_event`.
    """

    def __init__(
        self,
        kit: Path,
        policy: Policy,
        *,
        on_event: Callable[[DeviceEvent], None] | None = None,
        inspect: Inspect | None = None,
    ) -> None:
        self._kit, self._policy = kit, policy
        self._settings = load_settings(kit / "device.toml", DeviceSettings)
        self._trust = load_trust(kit)
        self._identity = load_identity(kit, self._trust)
        self._broadcast_key = load_broadcast_key(kit)
        if (self._settings.fleet, self._settings.device) != (self._trust.fleet, self._identity.name):
            raise BlindsumError(
                "kit-incomplete", f"{kit}: device.toml, certificate and trust bundle name different ones"
            )
        self._on_event, self._inspect = on_event, inspect
        self._examples: dict[str, Examples] = {}
        self._life: _Life | None = None
        self._doing = (State.STOPPED, "not started")

    @classmethod
    def open(
        cls,
        kit: str | Path,
        *,
        policy: Policy | None = None,
        on_event: Callable[[DeviceEvent], None] | None = None,
        inspect: Inspect | None = None,
    ) -> Self:
        """The device whose kit is in folder `kit`. `on_event` is called on a thread of its own. `inspect` is shown, in this process
        only, each update before it is masked; where it raises, nothing leaves. Raises BlindsumError."""
        return cls(Path(kit), policy or Policy(), on_event=on_event, inspect=inspect)

    @property
    def name(self) -> str:
        return self._identity.name

    @property
    def state(self) -> State:
        return self._shown()[0]

    @property
    def reason(self) -> str:
        """Why the device is in this state, for people."""
        return self._shown()[1]

    def task(self, name: str) -> Callable[[Examples], Examples]:
        """Decorator: the function that yields (features, targets) batches when a round of task `name` trains here. It is called
        once an epoch, on a background thread, and only while the policy's conditions hold."""

        def register(examples: Examples) -> Examples:
            if self._life is not None:
                raise BlindsumError("device-running", f"task {name}")
            self._examples[name] = examples
            return examples

        return register

    def start(self) -> None:
        """Begin in the background and return at once; an unreachable broker is nothing special. Raises BlindsumError for a database
        or a broker's address that cannot be used; the device is stopped then."""
        if self._life is not None:
            raise BlindsumError("device-running", self.name)
        topics = Topics(self._trust.fleet, Principal("device", self.name), tuple(sorted(self._examples)))
        link = self._link(topics)
        self._life = life = _Life(self, SqliteStore(self._kit / "device.db"), link, topics)
        self._doing = (State.WAITING, "for a round")
        try:
            life.start()
        except BaseException:
            self.stop()
            raise

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop within about `timeout_s`. A round under way goes on at the next start, if its deadlines allow."""
        life, self._life = self._life, None
        if life is not None:
            life.stop(timeout_s)
            self._doing = (State.STOPPED, "stopped by the app")

    def __enter__(self) -> Device:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def _link(self, topics: Topics) -> Link:
        return make_link(self._kit, self._settings.broker, topics)

    def _machine(self, store: SqliteStore) -> Machine:
        return DeviceMachine(
            identity=self._identity,
            trust=self._trust,
            tasks=frozenset(self._examples),
            store=store,
            random=random_bytes,
            seal=box_seal,
            floor=Floor(cohort_min=self._policy.min_cohort),
            willing=self._willing,
            broadcast_key=self._broadcast_key,
        )

    def _willing(self, view: RoundView) -> str:
        """ "" to take part in the round, else why not."""
        return self._policy.obstacle()

    def _shown(self) -> tuple[State, str]:
        """What goes on, or that there is no connection where one is needed for it."""
        life, doing = self._life, self._doing
        offline = life.offline if life is not None else ""
        return (State.CONNECTING, offline) if offline and doing[0] not in ALONE else doing


class _Life:
    """A device from one start to its stop. Threads that outlive the stop keep to their own life and cannot disturb the next."""

    def __init__(self, device: Device, store: SqliteStore, link: Link, topics: Topics) -> None:
        self._device, self._store = device, store
        self._url = device._settings.broker.url
        self.offline = f"to {self._url}"
        """Why there is no connection, "" where there is one."""
        self._driver = Driver(
            lambda: device._machine(store), store, link, topics, on_event=self._event, on_refused=self._refused
        )
        self._worker = Worker(
            self._driver, device._examples, device._policy, inspect=device._inspect, tell=self._trained
        )
        self._told: queue.Queue[DeviceEvent | None] = queue.Queue(EVENTS_MAX)
        self._teller = threading.Thread(target=self._tell, name=f"events-{device.name}", daemon=True)

    def start(self) -> None:
        self._worker.thread.name = f"train-{self._device.name}"
        self._worker.thread.start()
        self._teller.start()
        self._driver.start()

    def stop(self, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        self._worker.stop()
        self._driver.stop(timeout_s / 2)  # it may take that long twice
        self._put(None)
        for thread in (self._worker.thread, self._teller):
            if thread is not threading.current_thread():
                thread.join(max(0.0, end - time.monotonic()))
        self._store.close()

    # -- on the machine's thread ----------------------------------------------------------------------------------

    def _event(self, event: Event) -> None:
        data = dict(event.data)
        number = data.get("round")
        states = {
            "joined": (State.JOINED, f"round {number}, waiting for the roster"),
            "train": (State.TRAINING, f"round {number}"),
            "uploading": (State.UPLOADING, f"round {number}"),
            "uploaded": (State.UPLOADED, f"round {number}, waiting for the result"),
            "round-finished": (State.WAITING, "for the next round"),
            "round-abandoned": (State.WAITING, f"for the next round; the last ended early: {data.get('code')}"),
            "declined": (State.WAITING, str(data.get("reason"))),
            "stopped": (State.FAILED, str(data.get("code"))),
        }
        if event.name in states:
            self._set(*states[event.name])
        match event.name:
            case "connected":
                self.offline = ""
            case "disconnected":
                self.offline = f"to {self._url}: {data['detail'] or data['code']}"
            case "train":
                self._worker.offer(str(data["task"]), int(str(number)))
            case "uploading" | "round-finished" | "round-abandoned":
                self._worker.over(str(data["task"]))
        self._put(DeviceEvent(event.name, data))

    def _refused(self, refused: Refused) -> None:
        """Tell the app about refusals that only its user or owner can do something about."""
        if refused.code in OWN_REFUSALS:
            self._set(State.WAITING, f"{REFUSALS[refused.code].cause}; {REFUSALS[refused.code].remedy}")
            self._put(DeviceEvent("refused", {"code": refused.code, "detail": refused.detail}))

    # -- on the training thread -----------------------------------------------------------------------------------

    def _trained(self, name: str, data: dict[str, object]) -> None:
        early = data.get("reason") or data.get("code")
        if early and self._device._doing[0] == State.TRAINING:
            self._set(State.WAITING, f"for the next round; training ended early: {early}")
        self._put(DeviceEvent(name, data))

    # -- events ---------------------------------------------------------------------------------------------------

    def _set(self, state: State, reason: str) -> None:
        if self._device._life is self:
            self._device._doing = (state, reason)

    def _put(self, event: DeviceEvent | None) -> None:
        """Tell the app, at the cost of what it has been told longest ago."""
        while True:
            try:
                self._told.put_nowait(event)
                return
            except queue.Full:
                with suppress(queue.Empty):
                    self._told.get_nowait()

    def _tell(self) -> None:
        while (event := self._told.get()) is not None:
            if self._device._on_event is not None:
                try:
                    self._device._on_event(event)
                except Exception:
                    log.exception("the app's event callback failed")
