"""What the coordinator keeps of one round (SPEC.md section 8.3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from blindsum.protocol.blobs import RESEND_MS
from blindsum.protocol.codec import ready
from blindsum.protocol.machines.bodies import Bodies
from blindsum.protocol.messages import OpeningContent, Payload
from blindsum.protocol.roster import RosterView
from blindsum.protocol.view import RoundView, TaskView

__all__ = ["PHASES", "CoordinatorRound", "CoordinatorState", "Heard", "Phase"]

Phase = Literal["offer", "manifest", "join", "roster", "upload", "check", "vote", "open", "done", "failed"]
PHASES: tuple[Phase, ...] = ("offer", "manifest", "join", "roster", "upload", "check", "vote", "open", "done")


@ready
class CoordinatorState(Payload, frozen=True):
    """The durable state of one round; joins, headers, bodies and opened contents have rows of their own."""

    number: int
    phase: Phase
    phase_since: int
    phase_until: int
    offers: dict[int, bytes] = {}
    manifest: bytes = b""
    manifest_votes: dict[int, bytes] = {}
    announcement: bytes = b""
    roster_proposal: bytes = b""
    roster_votes: dict[int, bytes] = {}
    roster: bytes = b""
    candidate: bytes = b""
    checks: dict[int, bytes] = {}
    excluded: dict[int, str] = {}
    proposal: bytes = b""
    set_votes: dict[int, bytes] = {}
    certificate: bytes = b""
    openings: list[bytes] = []
    result: bytes = b""
    failure: bytes = b""
    code: str = ""


@dataclass(slots=True)
class Heard:
    """A join or header that was taken, for when it is said again: `index` is -1 for a join, `at` when it was answered last."""

    device: str
    digest: bytes
    index: int
    at: int


@dataclass(slots=True)
class CoordinatorRound:
    """A `CoordinatorState` with what follows from it. `joins` maps device to (raw, Ed25519 identity); `heard` is by the SHA-256 of
    a whole message; `relayed` counts the headers that each party asked for, `served` the chunks that each device did."""

    base: TaskView
    state: CoordinatorState
    view: RoundView | None = None
    roster: RosterView | None = None
    joins: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    bodies: Bodies | None = None
    contents: dict[int, list[OpeningContent]] = field(default_factory=dict)
    wants: dict[int, list[int]] = field(default_factory=dict)
    relayed: dict[int, int] = field(default_factory=dict)
    served: dict[str, int] = field(default_factory=dict)
    heard: dict[bytes, Heard] = field(default_factory=dict)
    sent_at: int = 0
    wait_ms: int = RESEND_MS
    grace_over: bool = False

    @property
    def active(self) -> bool:
        return self.state.phase not in ("done", "failed")

    @property
    def grace_until(self) -> int:
        """Until then a quorum waits for the parties that have not answered yet."""
        return self.state.phase_since + self.base.task.decide_ms // 4

    def change(self, **changes: object) -> None:
        fields = {name: getattr(self.state, name) for name in self.state.__struct_fields__}
        self.state = CoordinatorState(**{**fields, **changes})

    def awaited(self) -> list[int]:
        """The parties whose answer this phase is waiting for."""
        state = self.state
        members = [member.party for member in self.view.members] if self.view else []
        everyone = list(range(1, self.base.committee.parties + 1))
        asked, answered = {
            "offer": (everyone, set(state.offers)),
            "manifest": (members, set(state.manifest_votes)),
            "roster": (members, set(state.roster_votes)),
            "check": (members, set(state.checks)),
            "vote": (members, set(state.set_votes)),
            "open": (members, set(self.contents)),
        }.get(state.phase, ([], set()))
        return [party for party in asked if party not in answered]
