"""The device as an app embeds it: one object, one background, no exception into the app."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, Self

from blindsum.protocol.envelope import is_name
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.keys import box_seal
from blindsum.protocol.machines.device import DeviceMachine, Floor
from blindsum.protocol.machines.step import Store
from blindsum.protocol.view import RoundView
from blindsum.runtime.checkup import Finding, Patient, examine_file
from blindsum.runtime.kit import DeviceSettings, load_broadcast_key, load_identity, load_trust, make_link, protect_kit
from blindsum.runtime.ports import Link
from blindsum.runtime.settings import load_settings
from blindsum.runtime.sqlite import STORE_CODES, SqliteStore
from blindsum.runtime.system import now_ms, random_bytes
from blindsum.runtime.topics import Principal, Topics
from blindsum.runtime.vault import open_store
from blindsum.sdk.admission import Admission, Count
from blindsum.sdk.erasure import DATABASE_FILE, erase_memory, leave_rounds
from blindsum.sdk.events import DeviceEvent, Events, State, call_back
from blindsum.sdk.fitness import agreed, certificate_doubt, examine_device
from blindsum.sdk.ledger import LEDGER_FILE, Ledger, Use
from blindsum.sdk.life import ALONE, Life
from blindsum.sdk.model import MODELS_FOLDER, Model
from blindsum.sdk.own import Examples
from blindsum.sdk.policy import Policy
from blindsum.sdk.rehearsal import DryRun, rehearse
from blindsum.sdk.secret import Secret, vault_of
from blindsum.sdk.worker import Inspect

__all__ = ["Device"]

log = logging.getLogger("blindsum.sdk")
logging.getLogger("blindsum").addHandler(logging.NullHandler())  # what is logged is the app's choice

STOP_TIMEOUT_S: Final = 2.0
REVIVE_S: Final = 30.0
"""How long after a failure of the disk the device looks whether it works again."""
OURS_TO_MEND: Final = STORE_CODES - {"database-in-use"}
"""Codes at a start that the app's author cannot prevent: the device shows them and goes on trying."""


class Device:
    """A device of a fleet. Register tasks with `task`, then `start` (or use it as a context manager, also with `async with`).

    Nothing that happens in the background raises into the app: see `state`, `reason`, `events` and `on_event`. Any thread may
    call any method.
    """

    def __init__(
        self,
        kit: Path,
        policy: Policy,
        *,
        on_event: Callable[[DeviceEvent], None] | None = None,
        inspect: Inspect | None = None,
        secret: Secret | None = None,
    ) -> None:
        self._kit, self._policy = kit, policy
        self._settings = load_settings(kit / "device.toml", DeviceSettings)
        self._trust = load_trust(kit)
        self._vault = vault_of(secret, fleet=self._settings.fleet, device=self._settings.device)
        if self._vault is not None:
            protect_kit(kit, self._settings.broker, self._vault)
        self._identity = load_identity(kit, self._trust, self._vault)
        self._broadcast_key = load_broadcast_key(kit, self._vault)
        if (self._settings.fleet, self._settings.device) != (self._trust.fleet, self._identity.name):
            raise BlindsumError(
                "kit-incomplete", f"{kit}: device.toml, certificate and trust bundle name different ones"
            )
        self._on_event, self._inspect = on_event, inspect
        self._examples: dict[str, Examples] = {}
        self._counts: dict[str, Count] = {}
        self._followed: set[str] = set()
        self._listeners: weakref.WeakSet[Events] = weakref.WeakSet()
        self._lock = threading.RLock()  # guards what follows
        self._wanted = False
        self._life: Life | None = None
        self._ledger_: Ledger | None = None
        self._revival: threading.Timer | None = None
        self._teller: threading.Thread | None = None
        self._models: dict[str, Model] = {}
        self._doing = (State.STOPPED, "not started")

    @classmethod
    def open(
        cls,
        kit: str | Path,
        *,
        policy: Policy | None = None,
        on_event: Callable[[DeviceEvent], None] | None = None,
        inspect: Inspect | None = None,
        secret: Secret | None = None,
    ) -> Self:
        """The device whose kit is in folder `kit`. `on_event` is called on a thread of its own. `inspect` is shown, in this process
        only, each update before it is masked; where it raises, nothing leaves. `secret` seals the device's keys and database at
        rest: at least 16 random bytes that the app keeps elsewhere, a function that gives them, or "keyring" for the operating
        system's (package keyring). A kit and database that are not sealed yet are sealed now. Raises BlindsumError."""
        return cls(Path(kit), policy or Policy(), on_event=on_event, inspect=inspect, secret=secret)

    @property
    def name(self) -> str:
        """The device's name in its fleet."""
        return self._identity.name

    @property
    def state(self) -> State:
        """What the device is doing."""
        return self._shown()[0]

    @property
    def reason(self) -> str:
        """Why the device is in this state, for people."""
        return self._shown()[1]

    def task(self, name: str, *, count: Count | None = None) -> Callable[[Examples], Examples]:
        """Decorator: the function that yields (features, targets) batches when a round of task `name` trains here. It is called
        once an epoch, on a background thread, and only while the policy's conditions hold. `count` says how many examples there
        are, for tasks that ask for so many."""

        def register(examples: Examples) -> Examples:
            with self._lock:
                if self._wanted:
                    raise BlindsumError("device-running", f"task {name}")
                self._examples[name] = examples
                if count is not None:
                    self._counts[name] = count
            return examples

        return register

    def follow(self, task: str) -> None:
        """Also fetch the models of rounds of `task` in which this device takes no part, while the policy's conditions hold and its
        bytes suffice; a device without examples for the task fetches them only. Raises BlindsumError "device-running"."""
        with self._lock:
            if self._wanted:
                raise BlindsumError("device-running", f"task {task}")
            self._followed.add(task)

    # -- life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin in the background and return at once; an unreachable broker or a disk that fails is shown in `state` and tried
        again. Raises BlindsumError for what the app's author can mend: a device that runs already, here or in another process,
        an address or name that cannot be used; the device is stopped then."""
        with self._lock:
            if self._wanted:
                raise BlindsumError("device-running", self.name)
            self._wanted = True
            if self._on_event is not None:
                self._teller = threading.Thread(
                    target=call_back, args=(self._on_event, self.events()), name=f"events-{self.name}", daemon=True
                )
                self._teller.start()
            try:
                self._settle()
            except BaseException:
                self.stop()
                raise

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop within about `timeout_s`, whatever is under way. A round goes on at the next start, if its deadlines allow."""
        end = time.monotonic() + timeout_s
        with self._lock:
            if not self._wanted:
                return
            self._wanted = False
            self._end(timeout_s, (State.STOPPED, "stopped by the app"))
            teller, self._teller = self._teller, None
            for listener in list(self._listeners):
                listener.close()
            if self._ledger_ is not None:
                self._ledger_.close()
                self._ledger_ = None
        if teller is not None and teller is not threading.current_thread():
            teller.join(max(0.0, end - time.monotonic()))

    def pause(self) -> None:
        """Take no part and keep no connection until `resume`, also after a restart of the app. A round under way goes on then,
        if its deadlines allow. Raises BlindsumError with a database code where that cannot be kept."""
        self._flip("paused", 1)

    def resume(self) -> None:
        """End what `pause` began."""
        self._flip("paused", 0)

    @property
    def consent(self) -> bool | None:
        """What the user has decided, None before the first time. Setting it is kept for ever; False leaves every round under way
        and erases what was to leave for it. Raises BlindsumError with a database code where that cannot be kept."""
        try:
            value = self._ledger().switch("consent")
        except BlindsumError:
            return False
        return None if value is None else bool(value)

    @consent.setter
    def consent(self, value: bool) -> None:
        self._flip("consent", int(value))

    def erase(self, *, identity: bool = False) -> None:
        """Stop, and delete what this device remembers: rounds, models, ledger, consent. Only the numbers of its last rounds
        stay, so that no round gets a second upload of it; with `identity` they go too, and the whole kit with its keys. Raises
        BlindsumError with a database code where something is left."""
        self.stop()
        with self._lock:
            if self._ledger_ is not None:
                self._ledger_.close()
                self._ledger_ = None
            erase_memory(self._kit, self._settings.broker, self._open_store, identity=identity)
            self._models.clear()
            self._doing = (State.STOPPED, "erased")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        import asyncio

        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(self, *_error: object) -> None:
        import asyncio

        await asyncio.to_thread(self.stop)

    # -- models ---------------------------------------------------------------------------------------------------

    def model(self, task: str) -> Model:
        """The models of `task` on this device: its versions, the one in use, predictions. Also while the device is stopped.
        Raises BlindsumError "name-unusable"."""
        if not is_name(task):
            raise BlindsumError("name-unusable", repr(task))
        with self._lock:
            if task not in self._models:
                place = self._kit / MODELS_FOLDER / task
                self._models[task] = Model(place, device=self.name, task=task, vault=self._vault)
            return self._models[task]

    def dry_run(self, task: str) -> DryRun:
        """Do for `task` what a round would have the app's function do, and say what it takes and what would leave the device.
        Nothing leaves and nothing is kept. Raises BlindsumError "model-unknown" before the first round, and what training or the
        function raises."""
        return rehearse(self.model(task), self._trust, task, self._function(task), self._policy)

    # -- telling --------------------------------------------------------------------------------------------------

    def events(self) -> Events:
        """The events from now until the device is stopped, for `for` and `async for`."""
        listener = Events()
        self._listeners.add(listener)
        return listener

    def uses(self, limit: int = 100) -> list[Use]:
        """What left this device, when and why; newest first. Raises BlindsumError with a database code."""
        return self._ledger().uses(limit)

    def doctor(self) -> list[Finding]:
        """Whether the device can do its work, question by question, with what to do where it cannot; up to fifteen seconds."""
        life, broker = self._life, self._settings.broker
        database = partial(examine_file, self._kit / DATABASE_FILE)
        principal = Principal("device", self.name)
        patient = Patient(self._kit, self._trust.fleet, principal, broker, database, self._vault, self._now)
        return examine_device(patient, self._policy, self.consent, life.clock_doubt if life is not None else "")

    # -- for subclasses -------------------------------------------------------------------------------------------

    def _link(self, topics: Topics) -> Link:
        return make_link(self._kit, self._settings.broker, topics, self._vault)

    def _now(self) -> int:
        return now_ms()

    def _willing(self, view: RoundView) -> str:
        """ "" to take part in the round, else why not."""
        life = self._life
        if life is None or view.name not in self._examples:
            return "the app only follows this task"
        return self._out_of_time() or life.admission.join(view, life.held)

    def _following(self, view: RoundView) -> bool:
        """Whether to fetch the model of a round in which this device takes no part."""
        life = self._life
        return life is not None and view.name in self._followed and life.admission.fetch(view, life.held)

    # -- helpers --------------------------------------------------------------------------------------------------

    def _out_of_time(self) -> str:
        return certificate_doubt(self._identity.certificate, self._trust.ca, self._now())

    def _ledger(self) -> Ledger:
        with self._lock:
            if self._ledger_ is None:
                self._ledger_ = Ledger(self._kit / LEDGER_FILE)
            return self._ledger_

    def _open_store(self) -> SqliteStore:
        return open_store(self._kit / DATABASE_FILE, self._vault, owner=self._trust.owner(f"device/{self.name}"))

    def _function(self, task: str) -> Examples:
        with self._lock:
            if task not in self._examples:
                raise BlindsumError("task-not-registered", task)
            return self._examples[task]

    def _machine(self, store: Store, willing: Callable[[RoundView], str], tasks: frozenset[str]) -> DeviceMachine:
        return DeviceMachine(
            identity=self._identity,
            trust=self._trust,
            tasks=tasks,
            store=store,
            random=random_bytes,
            seal=box_seal,
            floor=Floor(cohort_min=self._policy.min_cohort, roster=not self._policy.no_roster),
            willing=willing,
            broadcast_key=self._broadcast_key,
            follow=self._following,
        )

    def _flip(self, switch: str, value: int) -> None:
        with self._lock:
            self._ledger().set_switch(switch, value)
            if switch == "consent" and not value:
                self._ledger().set_switch("withdrawn", 1)
                self._end(STOP_TIMEOUT_S, self._doing)
                with suppress(BlindsumError):  # else when the next life begins
                    self._withdraw()
            with suppress(BlindsumError):
                self._settle()

    def _withdraw(self) -> None:
        """Leave all rounds that a withdrawn consent has found under way."""
        if not self._ledger().switch("withdrawn"):
            return
        if (self._kit / DATABASE_FILE).exists():
            leave_rounds(self._open_store(), lambda store, tasks: self._machine(store, lambda _view: "", tasks))
        self._ledger().set_switch("withdrawn", 0)

    def _settle(self) -> None:
        """Have a life where there should be one, and none where not."""
        with self._lock:
            if not self._wanted:
                return
            try:
                if not agreed(self.consent, self._policy):
                    self._end(STOP_TIMEOUT_S, (State.WAITING, "for the user's consent"))
                elif self._ledger().switch("paused"):
                    self._end(STOP_TIMEOUT_S, (State.PAUSED, "by the app"))
                elif self._life is None:
                    self._begin()
            except BlindsumError as error:
                self._end(STOP_TIMEOUT_S, (State.FAILED, str(error)))
                if self._ledger_ is not None:
                    self._ledger_.close()  # until it is asked: a disk that is in use cannot be mended
                if error.code not in OURS_TO_MEND:
                    raise
                self._revive()

    def _begin(self) -> None:
        self._withdraw()
        tasks, ledger = frozenset(self._examples) | self._followed, self._ledger()
        topics = Topics(self._trust.fleet, Principal("device", self.name), tuple(sorted(tasks)))
        admission = Admission(self.name, self._policy, ledger, self._counts, clock=self._now)
        link = self._link(topics)
        life: Life

        def show(state: State, reason: str) -> None:
            if self._life is life:
                self._show((state, reason))

        self._life = life = Life(
            name=self.name,
            url=self._settings.broker.url,
            make=lambda store, willing: self._machine(store, willing, tasks),
            willing=self._willing,
            store=self._open_store(),
            link=link,
            topics=topics,
            examples=self._examples,
            policy=self._policy,
            admission=admission,
            ledger=ledger,
            clock=self._now,
            models=self.model,
            inspect=self._inspect,
            tell=lambda name, data: self._tell(DeviceEvent(name, data)),
            show=show,
            failed=self._revive,
        )
        self._show((State.WAITING, "for a round"))
        if wrong := self._out_of_time():
            self._tell(DeviceEvent("refused", {"code": "kit-certificate", "detail": wrong}))
        life.start()

    def _end(self, timeout_s: float, shown: tuple[State, str]) -> None:
        if self._revival is not None:
            self._revival.cancel()
            self._revival = None
        life, self._life = self._life, None
        if life is not None:
            life.stop(timeout_s)
        self._show(shown)

    def _revive(self) -> None:
        """Look again in a while; called on any thread, which must not wait for a stop under way."""

        def again() -> None:
            with self._lock:
                if self._wanted and self._revival is timer:
                    self._end(STOP_TIMEOUT_S, self._doing)
                    with suppress(BlindsumError):
                        self._settle()

        self._revival = timer = threading.Timer(REVIVE_S, again)
        timer.daemon = True
        timer.start()

    def _show(self, doing: tuple[State, str]) -> None:
        if doing != self._doing:
            self._doing = doing
            self._tell(DeviceEvent("state", {"state": doing[0].value, "reason": doing[1]}))

    def _tell(self, event: DeviceEvent) -> None:
        for listener in list(self._listeners):
            listener.put(event)

    def _shown(self) -> tuple[State, str]:
        """What goes on, or that there is no connection where one is needed, or that the clock or certificate is wrong."""
        life, doing = self._life, self._doing
        if life is None or doing[0] in ALONE:
            return doing
        if life.offline:
            return State.CONNECTING, life.offline
        return doing[0], (doing[0] is State.WAITING and self._out_of_time()) or doing[1]
