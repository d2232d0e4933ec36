"""What a role has done and seen, for whoever watches it: one board a process, fed by its events.

A board holds counts, phases, codes and names of roles and devices. It never sees an update, a seed or a key, so all of it may be
shown. Everything on it is bounded: rounds, refusals and culprits that would not fit are counted and left out.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Final

__all__ = ["Board", "RoundLine", "TaskLine"]

ROUNDS_MAX: Final = 500
"""Kept of each task; the totals go on."""
TASKS_MAX: Final = 1000
NOTES_MAX: Final = 200
DEVICES_MAX: Final = 1_000_000
NAMES_MAX: Final = 1000
OTHERS: Final = "others"
"""Stands for all the names that came after `NAMES_MAX` of them."""

MILLION: Final = 1e6


@dataclass(slots=True)
class RoundLine:
    """One round. Times in ms since 1970; `loss` is the devices' mean training loss, from the sum; `seconds` per phase."""

    number: int
    begun: int
    phase: str = "offer"
    phase_since: int = 0
    joined: int = 0
    enrolled: int = 0
    uploading: int = 0
    uploaded: int = 0
    survivors: int = 0
    left_out: int = 0
    weight: int = 0
    examples: int = 0
    loss: float | None = None
    code: str = ""
    ended: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class TaskLine:
    """A task and its latest rounds, the newest last."""

    name: str
    state: str = "running"
    finished: int = 0
    failed: int = 0
    rounds: deque[RoundLine] = field(default_factory=lambda: deque(maxlen=ROUNDS_MAX))


class Board:
    """Safe from any thread."""

    def __init__(self, role: str, started: int) -> None:
        self.role, self.started = role, started
        self._lock = threading.Lock()
        self._version = 0
        self._connected = False
        self._link = ""
        self._tasks: dict[str, TaskLine] = {}
        self._refusals: Counter[str] = Counter()
        self._culprits: Counter[str] = Counter()
        self._events: Counter[str] = Counter()
        self._online: dict[str, bool] = {}
        self._devices: set[str] = set()
        self._notes: deque[dict[str, Any]] = deque(maxlen=NOTES_MAX)

    def tell(self, at: int, name: str, data: dict[str, Any]) -> None:
        """Take in one event: when (ms), what, and its facts."""
        with self._lock:
            self._events[name] += 1
            handler = _HANDLERS.get(name)
            if handler is not None:
                handler(self, at, data)
            if name in _NOTED:
                self._notes.append({"at": at, "event": name, **data})
            self._version += 1

    def recall(self, at: int, name: str, data: dict[str, Any]) -> None:
        """Take in an event of an earlier process of the role, from its audit log: rounds and tasks come back, counters do not."""
        if name not in _RECALLED:
            return
        with self._lock, suppress(KeyError, TypeError, AttributeError):  # a log that somebody wrote in
            _HANDLERS[name](self, at, data)
            if name in ("phase", "round-finished"):  # who was enrolled had joined, who is in the sum had uploaded
                line = self._round(at, data)
                line.joined, line.uploaded = max(line.joined, line.enrolled), max(line.uploaded, line.survivors)

    @property
    def version(self) -> int:
        """Grows with every event."""
        return self._version

    @property
    def healthy(self) -> bool:
        """The role is connected to its broker."""
        return self._connected

    def snapshot(self, *, rounds: int = ROUNDS_MAX) -> dict[str, Any]:
        """All of it, as what JSON can hold; of each task the last `rounds` rounds."""
        with self._lock:
            return {
                "role": self.role,
                "started": self.started,
                "version": self._version,
                "connected": self._connected,
                "link": self._link,
                "online": dict(sorted(self._online.items())),
                "devices_online": len(self._devices),
                "tasks": [
                    {**asdict(task), "rounds": [asdict(line) for line in list(task.rounds)[-rounds:]]}
                    for task in self._tasks.values()
                ],
                "refusals": dict(self._refusals.most_common()),
                "culprits": dict(self._culprits.most_common()),
                "events": dict(sorted(self._events.items())),
                "notes": list(self._notes),
            }

    def figures(self, task: str, number: int) -> dict[str, object]:
        """The figures of one round, for trackers; none where it is not on the board any more."""
        with self._lock:
            lines = self._tasks[task].rounds if task in self._tasks else ()
            line = next((line for line in reversed(lines) if line.number == number), None)
            if line is None:
                return {}
            names = ("joined", "enrolled", "uploaded", "survivors", "left_out", "weight", "examples", "loss")
            figures: dict[str, object] = {name: getattr(line, name) for name in names}
            return {**figures, "seconds": (line.ended - line.begun) / 1000, "failed": int(line.phase == "failed")}

    # -- what the events mean -----------------------------------------------------------------------------------------

    def _round(self, at: int, data: dict[str, Any]) -> RoundLine:
        name, number = data["task"], data["round"]
        if name not in self._tasks and len(self._tasks) >= TASKS_MAX:
            self._tasks.pop(next(iter(self._tasks)))
        task = self._tasks.setdefault(name, TaskLine(name))
        if not task.rounds or task.rounds[-1].number < number:
            task.rounds.append(RoundLine(number, begun=at, phase_since=at))
        gone = RoundLine(number, begun=at)  # what comes late for a round that is not shown any more is not shown either
        return next((line for line in reversed(task.rounds) if line.number == number), gone)

    def _phase(self, at: int, data: dict[str, Any]) -> None:
        line = self._round(at, data)
        line.seconds[line.phase] = line.seconds.get(line.phase, 0.0) + (at - line.phase_since) / 1000
        line.phase, line.phase_since = data["phase"], at
        line.enrolled = data.get("devices", line.enrolled)
        if line.phase in ("done", "failed"):
            line.ended = at

    def _finished(self, at: int, data: dict[str, Any]) -> None:
        line = self._round(at, data)
        line.phase, line.survivors = "done", data["count"]
        line.ended = line.ended or at
        line.weight = data.get("weight", 0)
        statistics = data.get("statistics") or [0, 0]
        line.examples = statistics[0]
        line.loss = statistics[1] / MILLION / line.examples if line.examples > 0 else None
        self._tasks[data["task"]].finished += 1

    def _failed(self, at: int, data: dict[str, Any]) -> None:
        line = self._round(at, data)
        line.phase, line.code = "failed", data["code"]
        line.ended = line.ended or at
        self._tasks[data["task"]].failed += 1

    def _count(self, at: int, data: dict[str, Any], name: str) -> None:
        line = self._round(at, data)
        setattr(line, name, getattr(line, name) + 1)

    def _refused(self, _at: int, data: dict[str, Any]) -> None:
        _bump(self._refusals, data["code"])
        if data.get("culprit"):
            _bump(self._culprits, data["culprit"])

    def _flood(self, _at: int, data: dict[str, Any]) -> None:
        _bump(self._refusals, "sender-over-share", data["unread"])

    def _fault(self, _at: int, data: dict[str, Any]) -> None:
        _bump(self._refusals, data["code"])
        _bump(self._culprits, data["culprit"])

    def _presence(self, _at: int, data: dict[str, Any]) -> None:
        who, online = data["who"], data["online"]
        if data["kind"] != "device":
            if who != self.role.replace("/", "-"):
                self._online[who] = online
        elif not online:
            self._devices.discard(who)
        elif len(self._devices) < DEVICES_MAX:
            self._devices.add(who)

    def _link_up(self, _at: int, _data: dict[str, Any]) -> None:
        self._connected, self._link = True, ""

    def _link_down(self, _at: int, data: dict[str, Any]) -> None:
        self._connected, self._link = False, f"{data['code']}: {data['detail']}"

    def _task(self, _at: int, data: dict[str, Any]) -> None:
        if data["task"] not in self._tasks and len(self._tasks) >= TASKS_MAX:
            self._tasks.pop(next(iter(self._tasks)))
        self._tasks.setdefault(data["task"], TaskLine(data["task"])).state = data["state"]

    def _task_finished(self, _at: int, data: dict[str, Any]) -> None:
        if data["task"] in self._tasks:
            self._tasks[data["task"]].state = "finished"


def _bump(counter: Counter[str], name: str, count: int = 1) -> None:
    counter[name if name in counter or len(counter) < NAMES_MAX else OTHERS] += count


Handler = Callable[[Board, int, dict[str, Any]], None]


def _counting(name: str) -> Handler:
    return lambda board, at, data: board._count(at, data, name)


_HANDLERS: Final[dict[str, Handler]] = {
    "phase": Board._phase,
    "join": _counting("joined"),
    "header": _counting("uploading"),
    "upload": _counting("uploaded"),
    "left-out": _counting("left_out"),
    "round-finished": Board._finished,
    "round-failed": Board._failed,
    "refused": Board._refused,
    "flood": Board._flood,
    "fault": Board._fault,
    "presence": Board._presence,
    "connected": Board._link_up,
    "disconnected": Board._link_down,
    "task": Board._task,
    "task-finished": Board._task_finished,
}

_RECALLED: Final = frozenset({"phase", "left-out", "round-finished", "round-failed", "task"})

_NOTED: Final = frozenset(
    {
        "round-finished",
        "round-failed",
        "fault",
        "evidence",
        "left-out",
        "complaint",
        "undeliverable",
        "disconnected",
        "flood",
    }
    | {
        "connected",
        "opened",
        "round-over",
        "stopped",
        "task",
        "task-finished",
        "task-refused",
        "web",
        "rolled-back",
        "rollback-refused",
    }
)
"""Events that people want to read; the rest is only counted."""
