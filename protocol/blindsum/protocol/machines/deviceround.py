"""What a device keeps of one round, in memory and on disk (SPEC.md section 8.1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal

from msgspec.structs import replace

from blindsum.protocol.arrivals import Arrivals
from blindsum.protocol.blobs import RESEND_MS, read_blob
from blindsum.protocol.codec import convert, decode, encode, ready
from blindsum.protocol.envelope import Head, Signed, message_digest, seal_envelope
from blindsum.protocol.errors import Refused
from blindsum.protocol.keys import edge_private, public_of
from blindsum.protocol.machines.journal import Journal
from blindsum.protocol.machines.step import Store, Write
from blindsum.protocol.memo import shared
from blindsum.protocol.messages import Announcement, BlobRef, Header, Payload, RosterAnnouncement
from blindsum.protocol.roster import RosterView, open_roster, open_roster_announcement
from blindsum.protocol.secret import Secret
from blindsum.protocol.trust import Trust
from blindsum.protocol.view import (
    CLOCK_SKEW_MAX_MS,
    RoundView,
    count_votes,
    open_manifest,
    open_message,
    open_task,
    payload_of,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

__all__ = [
    "PUSH_DEVICES_MAX",
    "DeviceIdentity",
    "DeviceRound",
    "DeviceState",
    "Floor",
    "announcement_fault",
    "body_is_pushed",
    "open_announcement",
    "read_state",
    "sign_message",
    "state_writes",
]


PUSH_DEVICES_MAX: Final = 64
"""In rosters up to this size a device sends its first window at once; in larger ones it waits for the coordinator's ask."""


@dataclass(frozen=True, slots=True, repr=False)
class DeviceIdentity(Secret):
    """Who this device is: name, certificate of the fleet CA (DER) and its key."""

    name: str
    certificate: bytes
    key: Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class Floor:
    """The least a device insists on, whatever any server says."""

    cohort_min: int = 2
    roster: bool = True
    """Whether both mask layers are insisted on: a task without a roster has but the first."""


@ready
class DeviceState(Secret, Payload, frozen=True):
    """The durable state of the current round. `key` is the round's X25519 key, erased when the upload is made."""

    number: int
    phase: Literal["joined", "training", "uploading", "uploaded"]
    key: bytes
    acknowledged: bool
    announcement: bytes
    join: bytes = b""
    roster: bytes = b""
    header: bytes = b""


_MESSAGES: Final = ("announcement", "join", "roster", "header")
"""What is large in a state and does not change: each has a row of its own, which is written once."""


@dataclass(slots=True, repr=False)
class DeviceRound(Secret):
    """A `DeviceState` with what follows from it. `own` is its key, made ready; it goes with it."""

    state: DeviceState
    view: RoundView
    join_digest: bytes = b""
    roster: RosterView | None = None
    entries: BlobRef | None = None
    roster_hash: bytes = b""
    header_digest: bytes = b""
    body: BlobRef | None = None
    own: X25519PrivateKey | None = None
    sent_at: int = 0
    wait_ms: int = RESEND_MS

    def knows(self, body: bytes) -> bool:
        """Whether `body` brought the round as far as it is."""
        return body == self.state.announcement or body == self.state.roster != b""

    @property
    def deadline(self) -> int:
        """When the round is left, or something of it is sent again."""
        manifest, resend_at = self.view.manifest, self.resend_at
        ends_at = manifest.upload_until if self.state.phase in ("joined", "training") else manifest.expires_at
        return ends_at if resend_at is None else min(ends_at, resend_at)

    @property
    def resend_at(self) -> int | None:
        """When to send again what nobody has confirmed: the join while joining lasts, the header until its receipt."""
        due = self.sent_at + self.wait_ms
        if self.state.phase == "joined":
            return (
                due if self.state.join and not self.state.acknowledged and due < self.view.manifest.join_until else None
            )
        return due if self.state.phase == "uploading" else None

    def open_roster(self, signed: Signed) -> Refused | None:
        """Take a roster announcement: which entries to fetch, and the roster hash."""
        announcement = payload_of(signed, RosterAnnouncement)
        if isinstance(announcement, Refused):
            return announcement
        opened = open_roster_announcement(self.view, announcement.proposal, announcement.votes)
        if isinstance(opened, Refused):
            return opened
        proposal, _, self.roster_hash = opened
        self.entries = proposal.entries
        return None

    def restore(self, store: Store, identity: DeviceIdentity) -> None:
        """Derive everything from `state` and the blobs in `store`."""
        self.state = replace(self.state, announcement=_one(self.state.announcement), roster=_one(self.state.roster))
        if self.state.join:
            self.join_digest = message_digest(self.state.join)
        if self.state.header:
            self.index_header()
        if self.state.roster:
            signed = open_message(self.view.trust, self.state.roster)
            assert isinstance(signed, Signed)
            self.open_roster(signed)
        if self.state.phase == "training":
            opened = self.read_roster(store, identity)
            assert isinstance(opened, RosterView)
            self.roster = opened

    def key(self) -> X25519PrivateKey:
        """The key of the round, while there is one."""
        if self.own is None:
            self.own = edge_private(self.state.key)
        return self.own

    def read_roster(self, store: Store, identity: DeviceIdentity) -> RosterView | Refused | None:
        """The roster with this device in it as it joined, None where its entries are not here yet, or why it cannot take part."""
        if not self.view.base.has_roster:
            alone = Arrivals.of(self.view)
            alone.enter(identity.name, b"")
            return alone
        entries = None if self.entries is None else read_blob(store, self.entries)
        if entries is None:
            return None
        roster: RosterView | Refused = open_roster(self.view, entries, self.roster_hash)
        if isinstance(roster, Refused):
            return roster
        index = roster.index_of(identity.name)
        if index is None:
            return Refused("not-selected")
        return roster if roster.keys[index] == public_of(self.key()) else Refused("roster-key-differs")

    def index_header(self) -> None:
        """Derive what follows from the header in `state`."""
        signed = open_message(self.view.trust, self.state.header)
        assert isinstance(signed, Signed)
        self.header_digest = signed.digest
        self.body = convert(signed.payload, Header).body


def state_writes(task: str, state: DeviceState | None, before: DeviceState | None) -> Iterator[Write]:
    """What brings a store that holds state `before` of `task` to `state`. None: between rounds."""
    if state is None:
        yield Write(f"state/{task}", None)
    else:
        small = {name: getattr(state, name) for name in state.__struct_fields__ if name not in _MESSAGES}
        yield Write(f"state/{task}", encode(small))
    for name in _MESSAGES:
        old, new = (b"" if each is None else getattr(each, name) for each in (before, state))
        if new is not old and new != old:
            yield Write(_message_key(task, name), new or None)


def read_state(journal: Journal, task: str, value: bytes) -> DeviceState:
    """The state of `task` whose row "state/" holds `value`. Where a version wrote it that kept all in that row, it moves to rows as
    they are now. Raises DecodeError."""
    row = decode(value)
    if not isinstance(row, dict) or "announcement" in row:
        state = convert(row, DeviceState)
        journal.write(state_writes(task, state, None))
        return state
    return convert(row | {name: journal.get(_message_key(task, name)) or b"" for name in _MESSAGES}, DeviceState)


@lru_cache(maxsize=64)
def _message_key(task: str, name: str) -> str:
    return f"message/{task}/{name}"


@shared(8, lambda body: body)
def _one(body: bytes) -> bytes:
    """The first of equal bytes, where one process plays many devices: what all were told is kept once."""
    return body


@shared(8, lambda trust, signed: (signed.raw, trust))
def open_announcement(trust: Trust, signed: Signed) -> RoundView | Refused:
    """The round that an announcement shows, where a quorum voted for its manifest and the operator signed its task."""
    announcement = payload_of(signed, Announcement)
    if isinstance(announcement, Refused):
        return announcement
    base = open_task(trust, announcement.task)
    if isinstance(base, Refused):
        return base
    if base.name != signed.head.task:
        return Refused("message-misplaced", signed.head.sender, "task of another name")
    view = open_manifest(base, announcement.manifest)
    if isinstance(view, Refused):
        return view
    votes = count_votes(view, announcement.votes, decides="manifest", digest=view.digest)
    if view.number != signed.head.round or len(votes) < base.committee.quorum:
        return Refused("votes-too-few", signed.head.sender, f"{len(votes)} votes for the manifest")
    return view


def open_until(view: RoundView) -> int:
    """When it is too late to take part in a round."""
    return view.manifest.join_until if view.base.has_roster else view.manifest.upload_until


def announcement_fault(view: RoundView, floor: Floor, now: int) -> Refused | None:
    """Why a device takes no part in a round though it was announced as it should be: its time, or the device's floor."""
    manifest = view.manifest
    if manifest.issued_at > now + CLOCK_SKEW_MAX_MS:
        return Refused("clock-skew", detail=f"the manifest was issued {(manifest.issued_at - now) // 1000} s ahead")
    if now >= open_until(view):
        return Refused("round-stale", detail="joining is over")
    if floor.roster and not view.base.has_roster:
        return Refused("policy-floor", detail="a task without a roster has one mask layer; this device insists on two")
    if view.task.threat.cohort_min < floor.cohort_min:
        return Refused("policy-floor", detail=f"cohort {view.task.threat.cohort_min} < {floor.cohort_min}")
    return None


def body_is_pushed(view: RoundView, roster: RosterView) -> bool:
    """Whether devices send the first chunks of their uploads unasked. Where a refused upload's training may go into a later round
    none leaves before the coordinator has asked for it: it has a place then."""
    return roster.capacity <= PUSH_DEVICES_MAX and not view.base.staleness_max


def sign_message(identity: DeviceIdentity, view: RoundView, kind: str, payload: Payload) -> bytes:
    """A message of this device in the round of `view`: its header to everybody, all else to the coordinator."""
    head = Head(
        type=kind,
        fleet=view.trust.fleet,
        task=view.name,
        round=view.number,
        sender=f"device/{identity.name}",
        to="all" if kind == "header" else "coordinator",
    )
    return seal_envelope(identity.key, head, payload)
