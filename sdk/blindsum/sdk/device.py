"""The device as an app embeds it: one object, one background, no exception into the app."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
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
from blindsum.runtime.kit import BrokerSettings, load_broadcast_key, load_identity, load_trust, make_link
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
        self._run: _Run | None = None
        self._doing = (State.STOPPED, "not started")
        self._offline = ""

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
            if self._run is not None:
                raise BlindsumError("device-running", f"task {name}")
            self._examples[name] = examples
            return examples

        return register

    def start(self) -> None:
        """Begin in the background and return at once; an unreachable broker is nothing special. Raises BlindsumError for a database
        or broker address that cannot be used; the device is stopped then."""
        if self._run is not None:
            raise BlindsumError("device-running", self.name)
        topics = Topics(self._trust.fleet, Principal("device", self.name), tuple(sorted(self._examples)))
        link = self._link(topics)
        run = _Run(SqliteStore(self._kit / "device.db"))
        run.driver = Driver(
            lambda: self._machine(run.store),
            run.store,
            link,
            topics,
            on_event=lambda event: self._event(run, event),
            on_refused=lambda refused: self._refused(run, refused),
        )
        self._run = run
        self._offline = f"to {self._settings.broker.url}"
        self._set(run, State.WAITING, "for a round")
        run.threads = [
            threading.Thread(target=self._work, args=(run,), name=f"train-{self.name}", daemon=True),
            threading.Thread(target=self._tell, args=(run,), name=f"events-{self.name}", daemon=True),
        ]
        for thread in run.threads:
            thread.start()
        try:
            run.driver.start()
        except BaseException:
            self.stop()
            raise

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop within about `timeout_s`. A round under way goes on at the next start, if its deadlines allow."""
        run, self._run = self._run, None
        if run is None:
            return
        end = time.monotonic() + timeout_s
        run.stopping.set()
        run.jobs.put(None)
        run.driver.stop(timeout_s / 2)  # it may take that long twice
        run.put(None)
        for thread in run.threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, end - time.monotonic()))
        run.store.close()
        self._doing = (State.STOPPED, "stopped by the app")

    def __enter__(self) -> Device:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def _link(self, topics: Topics) -> Link:
        return make_link(self._kit, self._settings.broker, topics)

    # -- state ----------------------------------------------------------------------------------------------------

    def _shown(self) -> tuple[State, str]:
        """What goes on here, or that there is no connection where one is needed for it."""
        doing, offline = self._doing, self._offline
        alone = doing[0] in (State.STOPPED, State.FAILED, State.TRAINING)
        return (State.CONNECTING, offline) if offline and not alone else doing

    def _set(self, run: _Run, state: State, reason: str) -> None:
        if not run.stopping.is_set():
            self._doing = (state, reason)

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

    def _event(self, run: _Run, event: Event) -> None:
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
            self._set(run, *states[event.name])
        match event.name:
            case "connected":
                self._offline = ""
            case "disconnected":
                self._offline = f"to {self._settings.broker.url}: {data['detail'] or data['code']}"
            case "train":
                run.open[str(data["task"])] = int(str(number))
                run.jobs.put((str(data["task"]), int(str(number))))
            case "uploading" | "round-finished" | "round-abandoned":
                run.open.pop(str(data["task"]), None)
        run.put(DeviceEvent(event.name, data))

    def _refused(self, run: _Run, refused: Refused) -> None:
        """Tell the app about refusals that only its user or owner can do something about."""
        if refused.code in OWN_REFUSALS:
            self._set(run, State.WAITING, f"{REFUSALS[refused.code].cause}; {REFUSALS[refused.code].remedy}")
            run.put(DeviceEvent("refused", {"code": refused.code, "detail": refused.detail}))

    # -- on the training thread -----------------------------------------------------------------------------------

    def _work(self, run: _Run) -> None:
        while (job := run.jobs.get()) is not None:
            task, number = job
            name, data = "training-failed", {"task": task, "round": number}
            try:
                self._train(run, task, number)
                continue
            except Aborted as error:
                name, reason = "training-aborted", str(error) or "by the app"
                data["reason"] = reason
            except BlindsumError as error:
                reason = error.code
                data |= {"code": error.code, "detail": error.detail}
                log.warning("training failed", extra=fields(**data))
            except Exception as error:  # a fault of ours must not end the thread
                reason = "internal-error"
                data |= {"code": reason, "detail": repr(error)}
                log.exception("training failed", extra=fields(task=task, round=number))
            if run.open.get(task) == number:
                self._set(run, State.WAITING, f"for the next round; training ended early: {reason}")
            run.put(DeviceEvent(name, data))

    def _train(self, run: _Run, task: str, number: int) -> None:
        inputs = self._call(run, lambda machine, _now: _inputs(machine, task, number))
        if inputs is None:
            return
        view, plan, model = inputs
        trained = train(
            plan,
            model,
            view.task.training,
            lambda epoch: self._batches(Context(task, number, epoch)),
            obstacle=lambda: self._obstacle(run, task, number),
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
        about: dict[str, object] = {"task": task, "round": number}
        run.put(DeviceEvent("trained", {**about, "examples": trained.examples, "loss": trained.loss}))

        def upload(machine: Machine, now: int) -> Step:
            assert isinstance(machine, DeviceMachine)
            began = time.thread_time()
            step = machine.upload(task, number, lanes, now)
            took_ms = 1000 * (time.thread_time() - began)  # CPU: what it costs the device, not what else it does
            run.put(DeviceEvent("masked", {**about, "ms": took_ms}))
            return step

        self._call(run, upload)

    def _batches(self, context: Context) -> Iterator[tuple[ArrayLike, ArrayLike]]:
        """The app's examples; what its function raises ends this training and nothing else."""
        try:
            yield from self._examples[context.task](context)
        except (Aborted, BlindsumError):
            raise
        except (Exception, SystemExit) as error:
            log.exception("the app's examples function failed", extra=fields(task=context.task, round=context.round))
            raise BlindsumError("examples-failed", repr(error)) from error

    def _call(self, run: _Run, fn: Callable[[Machine, int], Any]) -> Any:
        try:
            return run.driver.call(fn).result(CALL_TIMEOUT_S)
        except TimeoutError:
            raise BlindsumError("driver-busy") from None
        except BlindsumError as error:
            if run.stopping.is_set() and error.code == "driver-stopped":
                raise Aborted("stopped") from None
            raise

    def _obstacle(self, run: _Run, task: str, number: int) -> str:
        """"" as long as training for this round may go on, else why not."""
        if run.stopping.is_set():
            return "stopped"
        return self._policy.obstacle() if run.open.get(task) == number else "the round is over"

    # -- events ---------------------------------------------------------------------------------------------------

    def _tell(self, run: _Run) -> None:
        while (event := run.told.get()) is not None:
            if self._on_event is not None:
                try:
                    self._on_event(event)
                except Exception:
                    log.exception("the app's event callback failed")


class _Run:
    """A device from one start to its stop: what its threads share, so that one that outlives the stop cannot disturb the next."""

    def __init__(self, store: SqliteStore) -> None:
        self.store = store
        self.driver: Driver
        self.threads: list[threading.Thread] = []
        self.stopping = threading.Event()
        self.open: dict[str, int] = {}
        """The round of each task that waits for this device's update."""
        self.jobs: queue.SimpleQueue[tuple[str, int] | None] = queue.SimpleQueue()
        self.told: queue.Queue[DeviceEvent | None] = queue.Queue(EVENTS_MAX)

    def put(self, event: DeviceEvent | None) -> None:
        """Tell the app, at the cost of what it has been told longest ago."""
        while True:
            try:
                self.told.put_nowait(event)
                return
            except queue.Full:
                with suppress(queue.Empty):
                    self.told.get_nowait()


def _inputs(machine: Machine, task: str, number: int) -> tuple[RoundView, bytes, bytes] | None:
    """The round's view, plan and model, or None where the round is over."""
    assert isinstance(machine, DeviceMachine)
    view = machine.view(task)
    if view is None or view.number != number or machine.phase(task) != "training":
        return None
    plan, model = machine.blob(view.task.plan), machine.blob(view.manifest.model)
    return (view, plan, model) if plan is not None and model is not None else None
