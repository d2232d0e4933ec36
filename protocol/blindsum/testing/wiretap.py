"""Everything that a broker and a coordinator in league saw of a virtual world, and what each role could read of it.

The record is of bytes. `Sight.atoms` are the 32-byte strings that a role came to hold: its own draws, what its private keys
opened, and every aligned piece of what was sent to anybody. A secret is known to whom one of them is that secret.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blindsum.protocol.arrivals import Arrivals, read_set
from blindsum.protocol.codec import DecodeError, convert, decode, decode_chunk, encode
from blindsum.protocol.envelope import Signed, open_envelope
from blindsum.protocol.errors import Refused
from blindsum.protocol.keys import BOX_PRIVATE_SIZE, SEED_SIZE, box_keypair, box_open
from blindsum.protocol.machines.step import Step
from blindsum.protocol.masks import box_info
from blindsum.protocol.messages import (
    Announcement,
    BlobRef,
    Header,
    Opening,
    OpeningContent,
    Proposal,
    RosterAnnouncement,
)
from blindsum.protocol.roster import RosterView, open_roster, open_roster_announcement
from blindsum.protocol.view import RoundView, open_manifest

if TYPE_CHECKING:
    from blindsum.testing.world import World

__all__ = ["Opened", "Published", "Wiretap"]


@dataclass(frozen=True, slots=True)
class Published:
    """A header that a device sent, in the round and roster that it names. `body` has None for chunks nobody was sent."""

    signed: Signed
    header: Header
    view: RoundView
    roster: RosterView
    body: tuple[bytes | None, ...]

    @property
    def device(self) -> str:
        return self.signed.head.sender


@dataclass(frozen=True, slots=True)
class Opened:
    """A part of a party's opening as the coordinator's key shows it; `survivors` is its proposal's set, header digest by index."""

    party: str
    proposal: bytes
    survivors: dict[int, bytes]
    roster: bytes
    content: OpeningContent


class Wiretap:
    """Listens to a world (`stored`, `sent`) and tells afterwards what was there to be seen."""

    def __init__(self) -> None:
        self._raws: defaultdict[str, dict[bytes, None]] = defaultdict(dict)
        self._sent_chunks: defaultdict[bytes, dict[int, bytes]] = defaultdict(dict)
        self._chunks: defaultdict[bytes, dict[int, bytes]] = defaultdict(dict)

    def stored(self, role: str, step: Step) -> None:
        """Public messages that a role acts on, however they reached it."""
        if role == "coordinator":
            return
        for write in step.writes:
            if write.value is None:
                continue
            kind, _, rest = write.key.partition("/")
            if kind == "blob":
                blob, _, index = rest.partition("/")
                self._chunks[bytes.fromhex(blob)][int(index)] = write.value
            elif kind == "state":
                state = decode(write.value)
                for name in ("announcement", "roster", "proposal"):
                    if state.get(name):
                        self._raws[name][state[name]] = None

    def sent(self, kind: str, body: bytes) -> None:
        if kind == "chunk":
            blob, index, data = decode_chunk(body)
            self._chunks[blob][index] = self._sent_chunks[blob][index] = data
        else:
            self._raws[kind][body] = None

    # -- afterwards -------------------------------------------------------------------------------------------------------

    def published(self, world: World) -> list[Published]:
        """The headers of all devices whose round can be made out."""
        views, rosters = self._rounds(world)
        out = []
        for raw in self._raws["header"]:
            signed = open_envelope(raw)
            header = convert(signed.payload, Header)
            view, roster = views.get(header.manifest), rosters.get(header.roster)
            if isinstance(roster, Arrivals):
                number = roster.numbers[signed.head.sender.removeprefix("device/")]
                header = Header(
                    **{**{name: getattr(header, name) for name in header.__struct_fields__}, "index": number}
                )
            if view is not None and roster is not None and signed.head.sender.startswith("device/"):
                chunks = self._sent_chunks[header.body.id]
                body = tuple(chunks.get(index) for index in range(header.body.count))
                out.append(Published(signed, header, view, roster, body))
        return out

    def opened(self, world: World) -> list[Opened]:
        """What the coordinator reads of the openings."""
        views, rosters = self._rounds(world)
        proposals = {open_envelope(raw).digest: open_envelope(raw) for raw in self._raws["proposal"]}
        out = []
        for raw in self._raws["opening"]:
            signed = open_envelope(raw)
            opening = convert(signed.payload, Opening)
            sealed, party = self._blob(opening.content), int(signed.head.sender.partition("/")[2])
            named = proposals.get(opening.proposal)
            if sealed is None or named is None:
                continue
            places = [encode(["blindsum/1 opening", view, opening.proposal, party, opening.part]) for view in views]
            plains = (box_open(world.fleet.coordinator_box, info, sealed) for info in places)
            plain = next((plain for plain in plains if plain is not None), None)
            proposal = convert(named.payload, Proposal)
            blob = self._blob(proposal.survivors)
            if plain is None or blob is None or proposal.roster not in rosters:
                continue
            survivors = read_set(rosters[proposal.roster], blob)
            try:
                content = convert(decode(plain), OpeningContent)
            except DecodeError:
                continue
            if not isinstance(survivors, Refused):
                digests = {each.here: each.digest for each in survivors if each.here is not None}
                out.append(Opened(signed.head.sender, opening.proposal, digests, proposal.roster, content))
        return out

    def atoms(self, world: World, published: list[Published], opened: list[Opened]) -> dict[str, set[bytes]]:
        """The 32-byte strings each role holds. The coordinator's are also the broker's: what everybody could see."""
        out = {role: {piece for draw in drawn for piece in _pieces(draw)} for role, drawn in world.drawn.items()}
        public = out["coordinator"]
        for kind, raws in self._raws.items():
            if kind not in ("announcement", "roster"):
                public.update(piece for raw in raws for piece in _pieces(open_envelope(raw).payload))
        public.update(piece for one in opened for piece in _pieces([one.content.hashes, one.content.shares]))
        public.update(piece for one in opened for _, vector in one.content.vectors for piece in _pieces(vector))
        for chunks in self._sent_chunks.values():
            public.update(piece for data in chunks.values() for piece in _pieces(data))
        privates = {
            box_keypair(draw)[1]: draw
            for role, drawn in world.drawn.items()
            if role.startswith("party/")
            for draw in drawn
            if len(draw) == BOX_PRIVATE_SIZE
        }
        for one in published:
            for member, box in zip(one.view.members, one.header.boxes, strict=False):
                info = box_info(one.view, one.roster, one.header.index, member.party)
                plain = box_open(privates.get(member.box_key, bytes(BOX_PRIVATE_SIZE)), info, box)
                out[f"party/{member.party}"].update(_pieces(plain))
        return out

    # -- machinery --------------------------------------------------------------------------------------------------------

    def _rounds(self, world: World) -> tuple[dict[bytes, RoundView], dict[bytes, RosterView]]:
        views: dict[bytes, RoundView] = {}
        for raw in self._raws["announcement"]:
            view = open_manifest(world.base, convert(open_envelope(raw).payload, Announcement).manifest)
            if isinstance(view, RoundView):
                views[view.digest] = view
        rosters: dict[bytes, RosterView] = {}
        for view in views.values():
            if not view.base.has_roster:
                arrivals = Arrivals.of(view)
                rosters[arrivals.digest] = arrivals
        for raw in self._raws["header"]:
            signed = open_envelope(raw)
            roster, device = rosters.get(signed.payload["roster"]), signed.head.sender.removeprefix("device/")
            if isinstance(roster, Arrivals) and device not in roster.numbers:
                roster.enter(device, b"")
        for raw in self._raws["roster"]:
            announcement = convert(open_envelope(raw).payload, RosterAnnouncement)
            for view in views.values():
                opened = open_roster_announcement(view, announcement.proposal, announcement.votes)
                entries = self._blob(opened[0].entries) if isinstance(opened, tuple) else None
                if not isinstance(opened, tuple) or entries is None:
                    continue
                named = open_roster(view, entries, opened[2])
                if isinstance(named, RosterView):
                    rosters[named.digest] = named
        return views, rosters

    def _blob(self, ref: BlobRef) -> bytes | None:
        chunks = self._chunks.get(ref.id, {})
        if any(index not in chunks for index in range(ref.count)):
            return None
        return b"".join(chunks[index] for index in range(ref.count))


def _pieces(value: Any) -> Iterator[bytes]:
    """Every byte string in a value, cut at multiples of 32 bytes from its beginning."""
    if isinstance(value, bytes):
        for at in range(0, len(value) - SEED_SIZE + 1, SEED_SIZE):
            yield value[at : at + SEED_SIZE]
    elif isinstance(value, dict):
        for item in value.values():
            yield from _pieces(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _pieces(item)
