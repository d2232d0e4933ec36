"""A device from one start to its stop: driver, training thread, link, store. Nothing in here raises into the app."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from blindsum.protocol.errors import CATALOGUE, BlindsumError, Refused
from blindsum.protocol.machines.device import DeviceMachine
from blindsum.protocol.machines.step import Event
from blindsum.protocol.messages import BlobRef
from blindsum.protocol.refusals import REFUSALS
from blindsum.protocol.view import RoundView
from blindsum.runtime.clock import clock_says, lasting
from blindsum.runtime.driver import Driver
from blindsum.runtime.ports import DurableStore, Link
from blindsum.runtime.sqlite import SqliteStore
from blindsum.runtime.topics import Topics
from blindsum.sdk.admission import Admission
from blindsum.sdk.controls import Controls
from blindsum.sdk.events import State
from blindsum.sdk.ledger import Ledger
from blindsum.sdk.meter import MeteredLink
from blindsum.sdk.model import Model
from blindsum.sdk.own import Examples
from blindsum.sdk.policy import Policy
from blindsum.sdk.worker import Inspect, Worker

__all__ = ["ALONE", "Life", "Tell"]

log = logging.getLogger("blindsum.sdk")

OWN_REFUSALS: Final = frozenset({"clock-skew", "policy-floor", "upgrade-required"})
"""Refusals that only the device's user or owner can do something about."""
INBOX_SIZE_MAX: Final = 1 << 20
"""Bytes of messages that wait for the machine: a model that arrives faster than it is stored stays in TCP, not in memory."""
ALONE: Final = frozenset({State.STOPPED, State.PAUSED, State.FAILED, State.TRAINING})
"""States that need no connection; in the others its absence is what there is to say."""

Tell = Callable[[str, dict[str, object]], None]


class Life:
    """Threads that outlive the stop keep to their own life and cannot disturb the next.

    `make(store, willing)` gives the machine. `tell` and `show` are called on threads of the life and must be quick;
    `failed` once, where a failing disk ended it.
    """

    def __init__(
        self,
        *,
        name: str,
        url: str,
        make: Callable[[DurableStore, Callable[[RoundView], str]], DeviceMachine],
        willing: Callable[[RoundView], str],
        store: SqliteStore,
        link: Link,
        topics: Topics,
        examples: Mapping[str, Examples],
        policy: Policy,
        admission: Admission,
        ledger: Ledger,
        clock: Callable[[], int],
        models: Callable[[str], Model],
        inspect: Inspect | None,
        tell: Tell,
        show: Callable[[State, str], None],
        failed: Callable[[], None],
    ) -> None:
        self._name, self._url, self._store = name, url, store
        self._tell, self._show, self._failed = tell, show, failed
        self.admission, self._ledger, self._clock = admission, ledger, clock
        self._models = models
        self._link = MeteredLink(link)
        self.offline = f"to {url}"
        """Why there is no connection, "" where there is one."""
        self.clock_doubt = ""
        """What the last announcement says against this device's clock, "" where nothing does."""
        self._machine: DeviceMachine
        self._views: dict[str, RoundView] = {}
        self._declined: dict[str, tuple[object, object]] = {}
        self._state = State.WAITING

        def machine() -> DeviceMachine:
            self._machine = make(store, lambda view: self._worker.busy(view) or willing(view))
            return self._machine

        self._driver = Driver(
            machine,
            store,
            self._link,
            topics,
            clock=clock,
            on_event=self._event,
            on_refused=self._refused,
            inbox_size_max=INBOX_SIZE_MAX,
        )
        self._controls = Controls(store)
        self._worker = Worker(
            self._driver, examples, policy, admission, models, self._controls, inspect=inspect, tell=self._trained
        )

    def start(self) -> None:
        self._worker.thread.name = f"train-{self._name}"
        self._worker.thread.start()
        self._driver.start()

    def stop(self, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        self._worker.stop()
        self._driver.stop(timeout_s / 2)  # it may take that long twice
        thread = self._worker.thread
        if thread.ident is not None and thread is not threading.current_thread():
            thread.join(max(0.0, end - time.monotonic()))
        self._count_traffic()
        self._store.close()

    def held(self, ref: BlobRef) -> bool:
        """Whether all of a blob is in the store."""
        return sum(1 for _ in self._store.keys(f"blob/{ref.id.hex()}/")) == ref.count

    # -- on the machine's thread ----------------------------------------------------------------------------------

    def _event(self, event: Event) -> None:
        data = dict(event.data)
        number, task = data.get("round"), str(data.get("task", ""))
        if event.name == "declined":
            self.clock_doubt = ""
            if self._declined.get(task) == (number, data["reason"]):
                return  # coordinators repeat announcements, and the answer is still the same
            self._declined[task] = number, data["reason"]
        if event.name == "late":
            ago = lasting(int(str(data["ms"])))
            said = f"joining round {number} ended {ago} ago by this device's clock"
            self.clock_doubt = f"{said}, which says {clock_says(self._clock())}; if that is wrong, set it (NTP)"
            if self._declined.get(task) == (number, "late"):
                return
            self._declined[task] = number, "late"
            if self._state is State.WAITING:
                self._put(State.WAITING, f"for a round; {self.clock_doubt}")
        states = {
            "joined": (State.JOINED, f"round {number}, waiting for the roster"),
            "train": (State.TRAINING, f"round {number}"),
            "uploading": (State.UPLOADING, f"round {number}"),
            "uploaded": (State.UPLOADED, f"round {number}, waiting for the result"),
            "round-finished": (State.WAITING, "for the next round"),
            "round-abandoned": (State.WAITING, f"for the next round; the last ended early: {data.get('code')}"),
            "declined": (State.WAITING, str(data.get("reason"))),
            "kept": (State.WAITING, f"for the next round, which takes what was trained for round {number}"),
            "stopped": (State.FAILED, _explained(str(data.get("code")))),
        }
        match event.name:
            case "connected":
                self.offline = ""
            case "disconnected":
                self.offline = f"to {self._url}: {data['detail'] or data['code']}{_mended(str(data['code']))}"
            case "model":
                self._keep(task)
            case "joined" | "train":
                self.clock_doubt = ""
                view = self._machine.view(task)
                if view is not None:
                    self._views[task] = view
                if event.name == "train":
                    self._worker.offer(task, int(str(number)))
            case "uploaded":
                self._keep_control(task, int(str(number)))
            case "uploading" | "round-finished" | "round-abandoned":
                self._worker.over(task)
                if event.name != "uploading":
                    self._ended(task, early=event.name == "round-abandoned")
        if event.name in states:
            state, reason = states[event.name]
            began = self._worker.training(task) if state is State.WAITING else None
            if began is not None:
                state, reason = State.TRAINING, f"round {began}, which is over; a later one takes it"
            self._put(state, reason)
        self._tell(event.name, data)
        if event.name == "stopped":
            self._failed()

    def _keep_control(self, task: str, number: int) -> None:
        try:
            self._controls.uploaded(task, number)
        except BlindsumError as error:
            log.warning("the control variate cannot be kept: %s", error.code)

    def _keep(self, task: str) -> None:
        """Keep the model of a round in which this device takes no part."""
        view = self._machine.following.view(task)
        if view is None:
            return
        plan, model = self._machine.blob(view.task.plan), self._machine.blob(view.manifest.model)
        try:
            if plan is not None and model is not None:
                self.admission.artifact(view, plan)
                self._models(task).keep(view, plan, model)
        except BlindsumError as error:
            log.warning("the model cannot be kept: %s", error)

    def _ended(self, task: str, *, early: bool) -> None:
        view = self._views.pop(task, None)
        self._count_traffic()
        if early and view is not None and self._worker.training(task) is None:
            try:
                if self._ledger.last(task)[0] < view.number:
                    self.admission.left_early(view)
            except BlindsumError as error:
                log.warning("the ledger cannot be kept: %s", error.code)

    def _count_traffic(self) -> None:
        sent, received = self._link.take()
        try:
            if sent or received:
                self._ledger.add_traffic(sent, received, self._clock())
        except BlindsumError as error:
            log.warning("the ledger cannot be kept: %s", error.code)

    def _refused(self, refused: Refused) -> None:
        if refused.code in OWN_REFUSALS:
            entry = REFUSALS[refused.code]
            reason = f"{entry.cause} ({refused.detail}); {entry.remedy}"
            if refused.code == "clock-skew":
                self.clock_doubt = reason = f"{reason}; it says {clock_says(self._clock())}"
            self._put(State.WAITING, reason)
            self._tell("refused", {"code": refused.code, "detail": refused.detail})

    def _put(self, state: State, reason: str) -> None:
        self._state = state
        self._show(state, reason)

    # -- on the training thread -----------------------------------------------------------------------------------

    def _trained(self, name: str, data: dict[str, object]) -> None:
        early = data.get("reason") or data.get("code")
        if early and self._state is State.TRAINING:
            self._put(State.WAITING, f"for the next round; training ended early: {early}")
        self._tell(name, data)


def _mended(code: str) -> str:
    """What to do about a lost connection. That of one which is only away comes back by itself."""
    return "" if code in ("", "broker-unreachable") else f"; {CATALOGUE[code].remedy}"


def _explained(code: str) -> str:
    entry = CATALOGUE.get(code)
    return f"{code}: {entry.cause}; {entry.remedy}" if entry else code
