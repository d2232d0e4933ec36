"""What a party keeps of one round, in memory and on disk (SPEC.md section 8.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blindsum.protocol.arrivals import Arrival, Arrivals, Listed, admit, open_arrival
from blindsum.protocol.codec import decode, encode, ready
from blindsum.protocol.envelope import Signed
from blindsum.protocol.keys import box_open, box_private
from blindsum.protocol.machines.step import Store
from blindsum.protocol.masks import Seeds
from blindsum.protocol.messages import Payload, RosterAnnouncement
from blindsum.protocol.roster import RosterView, open_roster, open_roster_announcement
from blindsum.protocol.secret import Secret
from blindsum.protocol.view import RoundView, TaskView, open_manifest, open_message, payload_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey

__all__ = ["HeaderRow", "PartyRound", "PartyState"]

OFFER_KEEP_MS = 3_600_000
"""An offer that never saw a manifest is erased after an hour."""


@ready
class PartyState(Secret, Payload, frozen=True):
    """The durable state of one round. Secrets: `box_private` and `beacon`, empty once the set is opened."""

    number: int
    since: int
    box_private: bytes
    beacon: bytes
    offer: bytes
    manifest: bytes = b""
    manifest_vote: bytes = b""
    identities: bytes = b""
    entries: bytes = b""
    roster_proposal: bytes = b""
    roster_vote: bytes = b""
    roster: bytes = b""
    proposal: bytes = b""
    set_digest: bytes = b""
    set_vote: bytes = b""
    opened: bool = False
    openings: list[bytes] = []


@dataclass(frozen=True, slots=True, repr=False)
class HeaderRow(Secret):
    """One device's first header as this party sees it: `code` is its complaint, or "" with the seeds that were sealed to it.
    "second-header" has them, too: the first was good."""

    digest: bytes
    code: str
    seeds: Seeds = field(default_factory=lambda: Seeds({}, {}))

    def encode(self) -> bytes:
        return encode([self.digest, self.code, self.seeds.self_seeds, self.seeds.cap_seeds])

    @classmethod
    def decode(cls, data: bytes) -> HeaderRow:
        digest, code, self_seeds, cap_seeds = decode(data)
        return cls(digest, code, Seeds(self_seeds, cap_seeds))


@dataclass(slots=True, repr=False)
class PartyRound(Secret):
    """A `PartyState` with what follows from it. `waiting` holds messages whose blobs are on their way; they are asked for again
    after a restart. `wanted`: devices whose headers it has asked the coordinator for (where there is no roster)."""

    base: TaskView
    state: PartyState
    view: RoundView | None = None
    roster: RosterView | None = None
    identities: list[bytes] = field(default_factory=list)
    headers: dict[int, HeaderRow] = field(default_factory=dict)
    waiting: dict[str, bytes] = field(default_factory=dict)
    wanted: frozenset[str] = frozenset()
    _box: MLKEM768X25519PrivateKey | None = field(default=None, repr=False)

    def open_box(self, info: bytes, sealed: bytes) -> bytes | None:
        """`keys.box_open` under the box key of this round, which is made ready once and goes with it."""
        if self._box is None:
            self._box = box_private(self.state.box_private)
        return box_open(self._box, info, sealed)

    def forget_box(self) -> None:
        """Nothing more is opened: what is left of the box key goes."""
        self._box = None

    @property
    def expires_at(self) -> int:
        """When everything of this round is erased, in ms."""
        return self.view.manifest.expires_at if self.view else self.state.since + OFFER_KEEP_MS

    def change(self, **changes: object) -> None:
        fields = {name: getattr(self.state, name) for name in self.state.__struct_fields__}
        self.state = PartyState(**{**fields, **changes})

    def complaints(self, survivors: Sequence[Listed], *, settled: bool) -> tuple[list[int], list[tuple[int, str]]]:
        """(numbers of devices whose header is not here, (number, code) of those refused) among a survivor set. Where it is
        `settled`, a device that has sent a second header since is judged by its first: else it could stop any round between check
        and vote."""
        missing: list[int] = []
        bad: list[tuple[int, str]] = []
        for number, index, _, digest in survivors:
            row = None if index is None else self.headers.get(index)
            if row is None:
                missing.append(number)
            elif row.digest != digest:
                bad.append((number, row.code or "second-header"))
            elif row.code and not (settled and row.code == "second-header"):
                bad.append((number, row.code))
        return missing, bad

    def set_manifest(self, raw: bytes, view: RoundView) -> None:
        self.view = view
        if not view.base.has_roster:
            self.roster = Arrivals.of(view)
        self.change(manifest=raw)

    def restore(self, store: Store) -> None:
        """Derive everything from `state` and the header rows."""
        state = self.state
        if state.manifest:
            view = open_manifest(self.base, state.manifest)
            assert isinstance(view, RoundView)
            self.view = view
            self.roster = Arrivals.of(view) if not view.base.has_roster else None
        self.identities = [state.identities[at : at + 32] for at in range(0, len(state.identities), 32)]
        if state.roster:
            assert self.view is not None
            signed = open_message(self.base.trust, state.roster)
            assert isinstance(signed, Signed)
            announcement = payload_of(signed, RosterAnnouncement)
            assert isinstance(announcement, RosterAnnouncement)
            opened = open_roster_announcement(self.view, announcement.proposal, announcement.votes)
            assert isinstance(opened, tuple)
            roster = open_roster(self.view, state.entries, opened[2])
            assert isinstance(roster, RosterView)
            self.roster = roster
        if isinstance(self.roster, Arrivals):
            for _, raw in store.scan(f"round/{self.base.name}/upload/"):
                signed = open_message(self.base.trust, raw)
                assert isinstance(signed, Signed) and self.view is not None
                arrival = open_arrival(self.view, signed)
                assert isinstance(arrival, Arrival)
                admit(self.roster, arrival)
        prefix = f"round/{self.base.name}/header/"
        self.headers = {int(key[len(prefix) :]): HeaderRow.decode(row) for key, row in store.scan(prefix)}
