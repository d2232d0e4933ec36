"""A fleet under siege: SIGKILL of any role and of the broker at any moment, and everything said on the broker held to the rules."""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from blindsum.protocol.codec import DecodeError
from blindsum.protocol.envelope import open_envelope, peek
from blindsum.protocol.transcript import read_records
from blindsum.runtime.mqtt import MqttLink
from blindsum.runtime.ports import Inbound
from blindsum.runtime.topics import root_of
from blindsum.testing.checkers import OneAnswer
from tests.e2e.smallfleet import SmallFleet

ROLES = ("coordinator", "party-1", "party-2", "party-3", "party-4", "host-0", "broker")
PHASES = ("offer", "manifest", "join", "roster", "upload", "check", "vote", "open", "done")
QUIET_S = 1.5
"""At most this long from when the killed role is back at the broker to the next kill. A slow machine so has as much peace as a
fast one."""
AIM_S = (0.0, 0.05)
"""How long after a phase began the kill comes that waits for one."""
PATIENCE_S = 20.0
"""A phase that does not come is not waited for longer."""
BACK_S = 180.0
"""A role that does not come back within this time does not come back; others may need the machine, too."""
CONNECT_S = 10.0


class Listener:
    """Hears everything on the broker. `broken` says which rule was broken by whom: one signed answer to a question, one opened set
    a round, and no key or seed of a mask in two places."""

    def __init__(self, url: str, fleet: str) -> None:
        self.heard: Counter[str] = Counter()
        self.broken: list[str] = []
        self._answers: dict[tuple[object, ...], bytes] = {}
        self._opened: dict[tuple[str, int], bytes] = {}
        self._masks: dict[bytes, tuple[str, int]] = {}
        self._link = MqttLink(url, "listener")
        self._link.open((f"{root_of(fleet)}/#",), on_message=self._hear, on_state=lambda _state: None)
        self._link.wait_connected(CONNECT_S)

    @property
    def masks(self) -> int:
        """How many different keys and commitments of masks were seen."""
        return len(self._masks)

    def close(self) -> None:
        self._link.close()

    def _hear(self, inbound: Inbound) -> bool:
        self._link.ack(inbound.token)
        if peek(inbound.body):
            try:
                self._note(inbound.body)
            except DecodeError as error:
                self.broken.append(f"unreadable: {error}")
        return True

    def _note(self, body: bytes) -> None:
        signed = open_envelope(body)
        head, payload = signed.head, signed.payload
        self.heard[head.type] += 1
        place = (head.sender, head.round)
        if head.type in OneAnswer.KINDS:
            question = (*place, head.type, head.task, payload.get("decides"), payload.get("part"))
            self._once(self._answers, question, signed.digest, f"{place} signs two {head.type}s")
        if head.type == "opening":
            self._once(self._opened, (head.task, head.round), payload["proposal"], f"round {head.round} opens twice")
        if head.type == "join":
            self._once(self._masks, payload["key"], place, f"{place} joins with a key that was used before")
        if head.type == "header":
            for at in range(0, len(payload["commitments"]), 32):
                seed = payload["commitments"][at : at + 32]
                self._once(self._masks, seed, place, f"{place} masks with a seed that was used before")

    def _once(self, table: dict[Any, Any], key: object, value: object, what: str) -> None:
        if table.setdefault(key, value) != value:
            self.broken.append(what)


class Siege:
    """Kills a role of `fleet` again and again, each time after at most `quiet_s` of peace; `kill_broker` kills its broker and
    starts it again. `lay` returns when `kills` have been made and the round after the last is over."""

    def __init__(
        self, fleet: SmallFleet, seed: int, kill_broker: Callable[[], None], *, quiet_s: float = QUIET_S
    ) -> None:
        self.fleet = fleet
        self.kills: Counter[tuple[str, str]] = Counter()
        self.accepted: defaultdict[int, set[str]] = defaultdict(set)
        self._dice = random.Random(seed)
        self._kill_broker = kill_broker
        self._quiet_s = quiet_s
        self._phase = "done"
        self._away = ""
        self._aim = ""
        self._at = 0.0
        self._since = 0.0

    def lay(self, kills: int, within_s: float) -> int:
        """Returns how many keys and seeds of masks were seen, all different. AssertionError where a rule is broken."""
        listener = Listener(self.fleet.url, self.fleet.base.trust.fleet)
        self.fleet.start()
        self._plan()
        self.fleet.watch(within_s, lambda name, event: self._turn(name, event, kills))
        listener.close()
        assert not listener.broken, listener.broken
        assert listener.heard["opening"] and listener.masks
        self.fleet.judge()
        numbers = sorted([*self.fleet.finished, *self.fleet.failed])
        assert numbers[:-1] == list(range(1, len(numbers))), "a round ends once"
        for number, path in self.fleet.transcripts.items():
            headers = read_records(path.read_bytes())["header"]
            survivors = {open_envelope(raw).head.sender.removeprefix("device/") for raw in headers}
            assert self.accepted[number] <= survivors, f"round {number} lost {self.accepted[number] - survivors}"
        return listener.masks

    def _turn(self, name: str, event: dict[str, Any], kills: int) -> None:
        now = time.monotonic()
        kind = event["event"]
        if name == "coordinator" and kind == "phase":
            self._phase = event["phase"]
            if self._phase == self._aim:
                self._aim, self._at = "", now + self._dice.uniform(*AIM_S)
        if name == "coordinator" and kind in ("round-finished", "round-failed"):
            self._phase = "done"
        if kind == "uploaded":
            self.accepted[event["round"]].add(event["device"])
        if name == self._away and kind == "connected":
            self._plan()
        if sum(self.kills.values()) >= kills:
            self.fleet.over = self.fleet.over or kind == "transcript"
        elif self._away:
            assert now < self._since + BACK_S, f"{self._away} does not come back: {self.fleet.stack.tail(self._away)}"
        elif now >= self._at and (not self._aim or now >= self._since + PATIENCE_S):
            self._kill()

    def _plan(self) -> None:
        """The next kill comes after a while, or at the beginning of a phase."""
        self._since = time.monotonic()
        self._away = ""
        self._aim = self._dice.choice(PHASES[:-1]) if self._dice.random() < 0.5 else ""
        self._at = self._since + self._dice.uniform(0.0, self._quiet_s)

    def _kill(self) -> None:
        role = self._dice.choice(ROLES)
        self.kills[role, self._phase] += 1
        self._since = time.monotonic()
        if role == "broker":
            self._away = "coordinator"  # it comes back by itself
            self._kill_broker()
            return
        self._away = role
        self.fleet.stack.kill(role)
        self.fleet.stack.restart(role)
