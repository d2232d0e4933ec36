"""One role at work: a machine, its store and its link, and the one thread that owns the machine (SPEC.md section 8).

Input -> `Step` -> one transaction with its outbox rows -> PUBACK for the input -> publish -> delete the row once the broker has
it. So nothing leaves before it is stored and nothing is acknowledged before it is handled; a crash at any point repeats work
and loses none. Up to `GROUP_MAX` inputs share a transaction, because the disk's flush is the dear part.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from blindsum.protocol.codec import DecodeError
from blindsum.protocol.envelope import glance
from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.machines.allowance import Shares
from blindsum.protocol.machines.step import Event, Listen, Machine, Step
from blindsum.protocol.messages import MESSAGE_SIZE_MAX
from blindsum.runtime.courier import Courier
from blindsum.runtime.gate import Gate
from blindsum.runtime.logs import fields
from blindsum.runtime.ports import DurableStore, Inbound, Link, LinkState
from blindsum.runtime.sqlite import STORE_CODES
from blindsum.runtime.system import now_ms
from blindsum.runtime.topics import Topics

__all__ = ["Driver"]

log = logging.getLogger("blindsum.runtime.driver")

GROUP_MAX: Final = 512
INBOX_MAX: Final = 4096
INBOX_SIZE_MAX: Final = 64 << 20
"""Messages, and bytes of them, that wait for the machine before the link stops reading. Threads take turns slowly on a busy host,
so each turn is to get far."""
CALLS_MAX: Final = 64
IDLE_MAX_S: Final = 5.0
"""Look at the clock this often: it may have been set, and the host may have slept."""
WAKE_MIN_MS: Final = 20
"""A deadline that does not move on must not spin."""
PRESENCE_BURST: Final = 20
PRESENCE_PER_S: Final = 1
"""How often somebody may come or go and is told."""
FAULT_PAUSE_MS: Final = 1000
"""After an internal error the machine is not woken sooner."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Call:
    fn: Callable[[Machine, int], Any]
    future: Future[Any]


class Driver:
    """Runs the machine that `make_machine` restores from `store`, for ever, also when `make_machine` must be called again.

    `on_event` and `on_refused` run on the machine's thread, after the commit, and must be quick. Events of the driver itself:
    "connected", "disconnected" (code, detail), "presence" (who, kind, online), "undeliverable" (code, kind, to), "flood" (unread,
    senders, worst, of_worst) and, last, "stopped" (code), where a failing disk ended it: nothing is acknowledged or sent any more,
    and `failure` says why.
    """

    def __init__(
        self,
        make_machine: Callable[[], Machine],
        store: DurableStore,
        link: Link,
        topics: Topics,
        *,
        clock: Callable[[], int] = now_ms,
        on_event: Callable[[Event], None] = lambda _event: None,
        on_refused: Callable[[Refused], None] = lambda _refused: None,
        broadcast_key: bytes = b"",
        inbox_size_max: int = INBOX_SIZE_MAX,
    ) -> None:
        self._make_machine, self._store, self._link, self._topics = make_machine, store, link, topics
        self._clock, self._on_event, self._on_refused = clock, on_event, on_refused
        self.refusals: Counter[str] = Counter()
        """How often each code was refused since the start."""
        self.failure: BlindsumError | None = None
        self._changed = threading.Condition()  # guards the next six, and what the courier is told
        self._courier = Courier(store, link, topics, self._changed, self._undeliverable, broadcast_key)
        self._inbox: deque[Inbound] = deque()
        self._inbox_size, self._inbox_size_max = 0, inbox_size_max
        self._calls: deque[_Call] = deque()
        self._states: deque[LinkState] = deque(maxlen=16)
        self._full = False
        self._stopping = False
        self._thread: threading.Thread | None = None
        # what follows belongs to the machine's thread
        self._doing: deque[_Call] = deque()  # taken from `_calls`, and not answered yet
        self._machine: Machine
        self._restored = True  # a machine that is new from the store is woken, whatever its deadline
        self._wake_after = 0
        self._dropped = 0
        self._gate = Gate()
        self._comings = Shares(burst=PRESENCE_BURST, per_s=PRESENCE_PER_S)

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Restore the machine, send what an earlier life left in the outbox, connect. Returns at once; no broker is no error."""
        assert self._thread is None, "a driver starts once"
        self._machine = self._made()
        self._thread = threading.Thread(target=self._run, name=f"driver-{self._topics.principal.user}", daemon=True)
        self._thread.start()
        self._link.ignore(
            self._gate.ignores
        )  # of nobody where the broker knows no names: anybody could silence anybody
        self._link.open(self._topics.subscriptions, on_message=self._enqueue, on_state=self._state_changed)

    def call(self, fn: Callable[[Machine, int], T]) -> Future[T]:
        """Run `fn(machine, now)` on the machine's thread. A `Step` it returns is committed before the future is done.

        Raises BlindsumError "driver-stopped" or "driver-busy". The future holds what `fn` returned or raised.
        """
        future: Future[T] = Future()
        with self._changed:
            if not self.running or self._stopping:
                raise BlindsumError("driver-stopped", self.failure.code if self.failure else "")
            if len(self._calls) >= CALLS_MAX:
                raise BlindsumError("driver-busy")
            self._calls.append(_Call(fn, future))
            self._changed.notify()
        return future

    def stop(self, timeout_s: float = 2.0) -> bool:
        """Finish the step under way and close the link. What waits in the outbox goes out next time. False: still busy."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._link.close(timeout_s)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
        return not self.running

    # -- from the link's thread: only enqueue ----------------------------------------------------------------------------

    def _enqueue(self, inbound: Inbound) -> bool:
        with self._changed:
            if len(self._inbox) >= INBOX_MAX or self._inbox_size >= self._inbox_size_max:
                self._full = True
                return False
            self._inbox.append(inbound)
            self._inbox_size += len(inbound.body)
            self._changed.notify()
        return True

    def _state_changed(self, state: LinkState) -> None:
        with self._changed:
            self._states.append(state)
            self._changed.notify()

    # -- the machine's thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn(*self._wait())
        except BlindsumError as error:
            self.failure = error
            log.error("driver stopped", extra=fields(code=error.code, detail=error.detail))
        except Exception:
            self.failure = BlindsumError("internal-error", "the machine could not be restored")
            log.exception("driver stopped")
        finally:
            self._end()

    def _wait(self) -> tuple[list[Inbound], list[LinkState]]:
        """Everything there is to do, as soon as there is something or the machine wants to be woken."""
        with self._changed:
            if not (self._stopping or self._inbox or self._calls or self._courier.landed or self._states):
                self._changed.wait(self._patience_s())
            was_full, self._full = self._full, False
            group = [self._inbox.popleft() for _ in range(min(GROUP_MAX, len(self._inbox)))]
            self._inbox_size -= sum(len(inbound.body) for inbound in group)
            self._doing.extend(self._calls)
            states = list(self._states)
            self._calls.clear()
            self._states.clear()
        if was_full:
            self._link.resume()
        return group, states

    def _patience_s(self) -> float:
        due = self._due()
        return IDLE_MAX_S if due is None else min(IDLE_MAX_S, max(0.0, (due - self._clock()) / 1000))

    def _due(self) -> int | None:
        # a pause counts from a clock that may have been set back since
        self._wake_after = min(self._wake_after, self._clock() + FAULT_PAUSE_MS)
        if self._restored:
            return self._wake_after
        deadline = self._machine.deadline
        return None if deadline is None else max(deadline, self._wake_after)

    def _turn(self, group: list[Inbound], states: list[LinkState]) -> None:
        for state in states:
            self._tell_state(state)
        self._courier.settle()
        while self._doing:
            self._do_call(self._doing.popleft())
        if group:
            self._do_group(group)
        due = self._due()
        if due is not None and due <= self._clock():
            self._wake_machine()
        self._courier.pump()
        self._tell_flood(self._gate.flood(self._clock()))

    def _do_group(self, group: list[Inbound]) -> None:
        steps: list[Step] = []
        for inbound in group:
            step = self._receive(inbound)
            if step is None:  # undone alone: what the group did before it is whole and stays
                self._finish(steps)
                steps = []
                self._restore()
            else:
                steps.append(step)
        self._finish(steps)
        self._link.ack(*(inbound.token for inbound in group))

    def _receive(self, inbound: Inbound) -> Step | None:
        """The staged step for one message, or None after a fault of ours."""
        if len(inbound.body) > MESSAGE_SIZE_MAX:
            return Step(refused=Refused("message-oversized", detail=f"{len(inbound.body)} bytes"))
        if (who := self._topics.presence_of(inbound.topic)) is not None:
            if not self._comings.left(who.user, now := self._clock()):
                return Step(refused=Refused("sender-over-share", detail=f"presence of {who.user}"))
            self._comings.charge(who.user, now)
            online = inbound.body == b"online"
            return Step(events=(Event("presence", {"who": who.user, "kind": who.role, "online": online}),))
        if not inbound.body:  # a retained message is being taken away
            return Step()
        speaker = self._topics.speaker(inbound.topic)
        if speaker is None:
            return self._attempt(lambda: self._machine.receive(inbound.body, self._clock()))
        named, now = self._link.named, self._clock()
        if named and not self._gate.admits(speaker[0], now):
            return Step(refused=Refused("sender-over-share", detail=speaker[0]))
        head = glance(inbound.body)
        step: Step | None
        if head is not None and speaker != (head.sender, head.type):
            detail = f"{head.type} of {head.sender} on {inbound.topic}"
            step = Step(refused=Refused("message-misplaced", detail=detail))
        else:
            step = self._attempt(lambda: self._machine.receive(inbound.body, now))
        if named and (step is None or not (step.writes or step.messages)):
            self._gate.charge(speaker[0], now)
        return step

    def _attempt(self, act: Callable[[], Step]) -> Step | None:
        """Stage what `act` returns. None where it, or its step, is faulty: nothing of it is staged."""
        try:
            step = act()
            for out in step.messages:
                if not isinstance(out, Listen):
                    self._topics.route(out)  # what has no topic must not enter the outbox
        except Exception as error:
            if isinstance(error, BlindsumError) and error.code in STORE_CODES:
                raise
            log.exception("internal error", extra=fields(user=self._topics.principal.user))
            self._count(Refused("internal-error", detail=type(error).__name__))
            return None
        if step.writes or step.messages:
            self._store.stage(step.writes, step.messages)
        return step

    def _wake_machine(self) -> None:
        now = self._clock()
        self._wake_after = now + WAKE_MIN_MS
        self._restored = False
        step = self._attempt(lambda: self._machine.wake(now))
        if step is None:
            self._restore()
        else:
            self._finish([step])

    def _do_call(self, call: _Call) -> None:
        if not call.future.set_running_or_notify_cancel():
            return
        try:
            value = call.fn(self._machine, self._clock())
        except BlindsumError as error:
            call.future.set_exception(error)
            if error.code in STORE_CODES:
                raise
            return
        except Exception as error:
            call.future.set_exception(error)
            self._restore()
            return
        if isinstance(value, Step):
            step = self._attempt(lambda: value)
            if step is None:
                call.future.set_exception(BlindsumError("internal-error"))
                self._restore()
                return
            try:
                self._finish([step])
            except BlindsumError as error:
                call.future.set_exception(error)
                raise
        call.future.set_result(value)

    def _finish(self, steps: list[Step]) -> None:
        """Commit what is staged, then let the rest of the steps happen."""
        if any(step.writes or step.messages for step in steps):
            self._store.commit()
        if self._store.dropped > self._dropped:
            self._dropped = self._store.dropped
            self._count(Refused("outbox-overflow", detail=f"{self._dropped} messages so far"))
        for step in steps:
            for out in step.messages:
                if isinstance(out, Listen):
                    topic_filter = self._topics.chunks(out.task, out.blob)
                    (self._link.subscribe if out.on else self._link.unsubscribe)(topic_filter)
            if step.refused is not None:
                self._count(step.refused)
            for event in step.events:
                self._tell(event)

    def _made(self) -> Machine:
        """The machine from its rows. Raises BlindsumError "database-older" where they are not as this version writes them, and
        "database-corrupted" where they do not fit together."""
        try:
            return self._make_machine()
        except BlindsumError:
            raise
        except DecodeError as error:
            raise BlindsumError("database-older", str(error)) from None
        except Exception as error:
            log.debug("not restored", exc_info=True, extra=fields(user=self._topics.principal.user))
            raise BlindsumError("database-corrupted", f"its rows do not fit together: {error!r}") from None

    def _restore(self) -> None:
        """Back to what is stored. The machine is woken after a pause, as at a start."""
        self._store.rollback()
        self._machine = self._made()
        self._restored = True
        self._wake_after = self._clock() + FAULT_PAUSE_MS

    # -- telling ---------------------------------------------------------------------------------------------------------

    def _undeliverable(self, code: str, kind: str, to: str) -> None:
        self._count(Refused(code, detail=f"{kind} to {to}"))
        self._tell(Event("undeliverable", {"code": code, "kind": kind, "to": to}))

    def _tell_state(self, state: LinkState) -> None:
        if state.connected:
            self._tell(Event("connected"))
        elif not self._stopping:  # what is closed by its owner is no news
            self._tell(Event("disconnected", {"code": state.code, "detail": state.detail}))

    def _count(self, refused: Refused) -> None:
        self.refusals[refused.code] = count = self.refusals[refused.code] + 1
        if count & (count - 1) == 0:  # the 1st, 2nd, 4th, 8th…: a peer must not be able to fill the log
            user = self._topics.principal.user
            about = fields(user=user, code=refused.code, culprit=refused.culprit, detail=refused.detail, count=count)
            log.info("refused", extra=about)
        try:
            self._on_refused(refused)
        except Exception:
            log.exception("on_refused raised")

    def _tell(self, event: Event) -> None:
        try:
            self._on_event(event)
        except Exception:
            log.exception("on_event raised", extra=fields(name=event.name))

    def _tell_flood(self, flood: Event | None) -> None:
        if flood is not None:
            unread = flood.data["unread"]
            assert isinstance(unread, int)
            self.refusals["sender-over-share"] += unread
            self._tell(flood)

    def _end(self) -> None:
        self._tell_flood(self._gate.flood(self._clock(), at_once=True))
        with self._changed:
            self._stopping = True
            calls = [*self._doing, *self._calls]
            self._calls.clear()
        for call in calls:
            if call.future.set_running_or_notify_cancel():
                call.future.set_exception(BlindsumError("driver-stopped"))
        if self.failure is not None:
            self._tell(Event("stopped", {"code": self.failure.code}))
            self._link.close()
