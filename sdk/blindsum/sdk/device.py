"""The device as an app embeds it: one object, one background, no exception into the app."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.keys import box_seal
from blindsum.protocol.machines.device import DeviceMachine, Floor
from blindsum.protocol.machines.step import Event, Machine, Step
from blindsum.protocol.refusals import REFUSALS
from blindsum.protocol.update import encode_update
from blindsum.protocol.view import RoundView
from blindsum.runtime.driver import Driver
from blindsum.runtime.kit import BrokerSettings, load_identity, load_trust, make_link
from blindsum.runtime.logs import fields
from blindsum.runtime.ports import Link
from blindsum.runtime.settings import Settings, load_settings
from blindsum.runtime.sqlite import SqliteStore
from blindsum.runtime.system import random_bytes
from blindsum.runtime.topics import Principal, Topics
from blindsum.sdk.policy import Policy
from blindsum.sdk.trainer import Aborted, train

__all__ = ["Context", "Device", "DeviceEvent", "DeviceSettings", "Inspection", "State"]

log = logging.getLogger("blindsum.sdk")
logging.getLogger("blindsum").addHandler(logging.NullHandler())  # what is logged is the app's choice

STOP_TIMEOUT_S: Final = 2.0
CALL_TIMEOUT_S: Final = 30.0
OWN_REFUSALS: Final = frozenset({"clock-skew", "policy-floor", "message-version"})
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


@dataclass(frozen=True, slots=True)
class Context:
    """What an examples function is told: which task, round and epoch (from 0) it is asked for."""

    task: str
    round: int
    epoch: int


@dataclass(frozen=True, slots=True)
class DeviceEvent:
    """Something that happened: `name` is stable, `data` never secret."""

    name: str
    data: dict[str, object]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is about to be masked, shown to the app in its own process: the update and weight, and the exact ring elements."""

    task: str
    round: int
    update: NDArray[np.float32] = field(repr=False)
    weight: int
    lanes: list[np.ndarray] = field(repr=False)


Examples = Callable[[Context], Iterable[tuple[ArrayLike, ArrayLike]]]
Inspect = Callable[[Inspection], None]


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
        if (self._settings.fleet, self._settings.device) != (self._trust.fleet, self._identity.name):
            raise BlindsumError("kit-incomplete", f"{kit}: device.toml, certificate and trust bundle name different ones")
        self._on_event, self._inspect = on_event, inspect
        self._examples: dict[str, Examples] = {}
        self._driver: Driver | None = None
        self._store: SqliteStore | None = None
        self._stopping = threading.Event()
        self._jobs: queue.Queue[tuple[str, int] | None] = queue.Queue()
        self._told: queue.Queue[DeviceEvent | None] = queue.Queue(EVENTS_MAX)
        self._threads: list[threading.Thread] = []
        self._state, self._reason = State.STOPPED, "not started"

    @classmethod
    def open(
        cls,
        kit: str | Path,
        *,
        policy: Policy | None = None,
        on_event: Callable[[DeviceEvent], None] | None = None,
        inspect: Inspect | None = None,
    ) -> Device:
        """The device whose kit is in folder `kit`. `on_event` is called on a thread of its own. `inspect` is shown, in this process
        only, each update before it is masked. Raises BlindsumError."""
        return cls(Path(kit), policy or Policy(), on_event=on_event, inspect=inspect)

    @property
    def name(self) -> str:
        return self._identity.name

    @property
    def state(self) -> State:
        return self._state

    @property
    def reason(self) -> str:
        """Why the device is in this state, for people."""
        return self._reason

    def task(self, name: str) -> Callable[[Examples], Examples]:
        """Decorator: the function that yields (features, targets) batches when a round of task `name` trains here. It is called
        once an epoch, on a background thread, and only while the policy's conditions hold."""

        def register(examples: Examples) -> Examples:
            if self._driver is not None:
                raise BlindsumError("device-running", f"task {name}")
            self._examples[name] = examples
            return examples

        return register

    def start(self) -> None:
        """Begin in the background and return at once; an unreachable broker is nothing special. Raises BlindsumError for a database
        that cannot be used."""
        if self._driver is not None:
            raise BlindsumError("device-running", self.name)
        topics = Topics(self._trust.fleet, Principal("device", self.name), tuple(sorted(self._examples)))
        store = SqliteStore(self._kit / "device.db")
        link = self._link(topics)
        self._stopping.clear()
        self._store = store
        self._driver = Driver(
            lambda: self._machine(store), store, link, topics, on_event=self._event, on_refused=self._refused
        )
        self._set(State.CONNECTING, f"to {self._settings.broker.url}")
        self._threads = [
            threading.Thread(target=self._work, name=f"train-{self.name}", daemon=True),
            threading.Thread(target=self._tell, name=f"events-{self.name}", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        self._driver.start()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop within about `timeout_s`. A round under way goes on at the next start, if its deadlines allow."""
        driver, self._driver = self._driver, None
        if driver is None:
            return
        self._stopping.set()
        self._jobs.put(None)
        driver.stop(timeout_s)
        for thread in self._threads[:1]:
            thread.join(timeout_s)
        self._put(None)
        if self._store is not None:
            self._store.close()
        self._set(State.STOPPED, "stopped by the app")

    def __enter__(self) -> Device:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def _link(self, topics: Topics) -> Link:
        return make_link(self._kit, self._settings.broker, topics)

    # -- on the machine's thread ----------------------------------------------------------------------------------

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
        )

    def _willing(self, view: RoundView) -> str:
        """"" to take part in the round, else why not."""
        return self._policy.obstacle()

    def _event(self, event: Event) -> None:
        data = dict(event.data)
        states = {
            "connected": (State.WAITING, "for a round"),
            "disconnected": (State.CONNECTING, f"to {self._settings.broker.url}"),
            "joined": (State.JOINED, f"round {data.get('round')}, waiting for the roster"),
            "train": (State.TRAINING, f"round {data.get('round')}"),
            "uploading": (State.UPLOADING, f"round {data.get('round')}"),
            "uploaded": (State.UPLOADED, f"round {data.get('round')}, waiting for the result"),
            "round-finished": (State.WAITING, "for the next round"),
            "round-abandoned": (State.WAITING, f"for the next round; the last ended early: {data.get('code')}"),
            "declined": (State.WAITING, str(data.get("reason"))),
            "stopped": (State.FAILED, str(data.get("code"))),
        }
        if event.name in states and not (event.name == "connected" and self._state != State.CONNECTING):
            self._set(*states[event.name])
        if event.name == "train":
            self._jobs.put((str(data["task"]), int(str(data["round"]))))
        self._put(DeviceEvent(event.name, data))

    def _refused(self, refused: Refused) -> None:
        """Tell the app about refusals that only its user or owner can do something about."""
        if refused.code in OWN_REFUSALS:
            self._set(State.WAITING, f"{REFUSALS[refused.code].cause}; {REFUSALS[refused.code].remedy}")
            self._put(DeviceEvent("refused", {"code": refused.code, "detail": refused.detail}))

    # -- on the training thread -----------------------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            task, number = job
            try:
                self._train(task, number)
            except Aborted:
                self._put(DeviceEvent("training-aborted", {"task": task, "round": number, "reason": self._obstacle()}))
            except BlindsumError as error:
                data = {"task": task, "round": number, "code": error.code, "detail": error.detail}
                self._put(DeviceEvent("training-failed", data))
                log.warning("training failed", extra=fields(**data))
            except Exception as error:  # the app's examples function, or a fault of ours: neither may end the thread
                log.exception("training failed", extra=fields(task=task, round=number))
                data = {"task": task, "round": number, "code": "examples-failed", "detail": repr(error)}
                self._put(DeviceEvent("training-failed", data))

    def _train(self, task: str, number: int) -> None:
        inputs = self._call(lambda machine, _now: _inputs(machine, task, number))
        if inputs is None:
            return
        view, plan, model = inputs
        trained = train(
            plan,
            model,
            view.task.training,
            lambda epoch: self._examples[task](Context(task, number, epoch)),
            should_abort=lambda: self._stopping.is_set() or bool(self._policy.obstacle()),
        )
        weight = min(trained.examples, view.task.codec.weight_max)
        lanes = encode_update(
            view.base,
            trained.update,
            weight=weight,
            statistics=[trained.examples, round(trained.loss * trained.examples * 1e6)],
            rotation=view.manifest.rotation,
            key=random_bytes(32),
        )
        if self._inspect is not None:
            copies = [lane.copy() for lane in lanes]
            self._inspect(Inspection(task, number, trained.update, weight, copies))
        self._put(
            DeviceEvent(
                "trained", {"task": task, "round": number, "examples": trained.examples, "loss": trained.loss}
            )
        )

        def upload(machine: Machine, now: int) -> Step:
            assert isinstance(machine, DeviceMachine)
            began = time.thread_time()
            step = machine.upload(task, number, lanes, now)
            took_ms = 1000 * (time.thread_time() - began)  # CPU: what it costs the device, not what else it does
            self._put(DeviceEvent("masked", {"task": task, "round": number, "ms": took_ms}))
            return step

        self._call(upload)

    def _call(self, fn: Callable[[Machine, int], Any]) -> Any:
        driver = self._driver
        if driver is None or self._stopping.is_set():
            raise Aborted
        return driver.call(fn).result(CALL_TIMEOUT_S)

    def _obstacle(self) -> str:
        return "stopped" if self._stopping.is_set() else self._policy.obstacle()

    # -- events ---------------------------------------------------------------------------------------------------

    def _set(self, state: State, reason: str) -> None:
        self._state, self._reason = state, reason

    def _put(self, event: DeviceEvent | None) -> None:
        while True:
            try:
                self._told.put_nowait(event)
                return
            except queue.Full:
                try:
                    self._told.get_nowait()
                except queue.Empty:
                    continue

    def _tell(self) -> None:
        while (event := self._told.get()) is not None:
            if self._on_event is not None:
                try:
                    self._on_event(event)
                except Exception:
                    log.exception("the app's event callback failed")


def _inputs(machine: Machine, task: str, number: int) -> tuple[RoundView, bytes, bytes] | None:
    """The round's view, plan and model, or None where the round is over."""
    assert isinstance(machine, DeviceMachine)
    view = machine.view(task)
    if view is None or view.number != number or machine.phase(task) != "training":
        return None
    plan, model = machine.blob(view.task.plan), machine.blob(view.manifest.model)
    return (view, plan, model) if plan is not None and model is not None else None
