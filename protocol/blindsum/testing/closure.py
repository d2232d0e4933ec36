"""What a coalition of roles can work out of a run: a symbolic adversary over the bytes that were really sent.

The adversary (Dolev and Yao 1983) sees all traffic, reads what the coordinator reads, and joins to that what a set of parties
and a set of devices hold. It knows a seed when a member holds it; a pairwise key when it holds one end, or all pads of one of
its two caps; a masked vector then is its update plus the masks that are left. `Round.derivable` gives all linear combinations
of updates that follow.

Nothing is taken on trust from the roles: a device's seeds are found among its draws by the header's commitments, and each
observation is recomputed from seeds and update bit for bit. A role that masks or opens otherwise than stated is an
AssertionError.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blindsum.protocol.keys import SEED_SIZE, edge_keypair
from blindsum.protocol.masks import committer, edge_secret, edge_stream, pad, self_stream, self_sum
from blindsum.protocol.prg import apply
from blindsum.protocol.ring import pack, packed_size, reduce, unpack
from blindsum.protocol.roster import RosterView
from blindsum.protocol.view import RoundView
from blindsum.testing.elimination import Combination, Observation, derivable
from blindsum.testing.wiretap import Opened, Published, Wiretap

if TYPE_CHECKING:
    from blindsum.testing.world import World

__all__ = ["Round", "leak", "rounds"]

Way = tuple[frozenset[str], ...]
"""One way to learn a mask: of every set the coalition must have a member."""


@dataclass(slots=True)
class Round:
    """One roster's worth of observations. `sets`: the survivor sets that honest parties opened, as header digests;
    `uploads`: header digest to device of every honest upload that was seen."""

    view: RoundView
    roster: RosterView
    uploads: dict[bytes, str] = field(default_factory=dict)
    sets: dict[bytes, frozenset[bytes]] = field(default_factory=dict)
    edges: set[frozenset[bytes]] = field(default_factory=set)
    _masks: dict[bytes, dict[Hashable, int]] = field(default_factory=dict)
    _sums: dict[tuple[bytes, int], dict[Hashable, int]] = field(default_factory=dict)
    _ways: dict[Hashable, list[Way]] = field(default_factory=dict)

    def derivable(self, coalition: Collection[str]) -> list[Combination[bytes]]:
        """Generators of what broker, coordinator and these roles ("party/<n>", "device/<id>") can compute of the updates of all
        other devices; a combination has coefficients by header digest."""
        members = frozenset(coalition) | {"coordinator"}
        known = {
            mask
            for mask, ways in self._ways.items()
            if any(all(not holders.isdisjoint(members) for holders in way) for way in ways)
        }
        seen: list[Observation[Hashable, bytes]] = [
            ({mask: sign for mask, sign in masks.items() if mask not in known}, {header: 1})
            for header, masks in self._masks.items()
            if self.uploads[header] not in members
        ]
        for masks in self._sums.values():
            seen.append(({mask: sign for mask, sign in masks.items() if mask not in known}, {}))
        return derivable(seen)

    def components(self, headers: Iterable[bytes], coalition: Collection[str]) -> list[frozenset[bytes]]:
        """How honest uploads hang together by pairwise masks: the connected components among `headers` without the coalition."""
        left = {header for header in headers if self.uploads[header] not in coalition}
        out = []
        while left:
            reached, frontier = set[bytes](), [left.pop()]
            while frontier:
                header = frontier.pop()
                reached.add(header)
                near = {other for other in left if frozenset((header, other)) in self.edges}
                left -= near
                frontier += near
            out.append(frozenset(reached))
        return out


def leak(round_: Round, coalition: Collection[str]) -> str:
    """What these roles can compute of honest updates beyond what the protocol allows such a coalition, or "".

    Below t parties: the sum over the opened set. Below q parties: sums over connected survivors, and any upload that was left
    out. Where no more devices are corrupt than the task assumes, each of those sums has `cohort_min` honest updates, and the
    survivors are connected. From q parties on, and without a roster from t on, nothing is promised."""
    base, members = round_.view.base, frozenset(coalition)
    parties = sum(role.startswith("party/") for role in members)
    corrupt = sum(f"device/{device}" in members for device in round_.roster.devices)
    if parties >= (base.committee.quorum if base.has_roster else base.committee.threshold):
        return ""
    first_layer = parties < base.committee.threshold
    parts: list[frozenset[bytes]] = []
    for chosen in round_.sets.values():
        honest = frozenset(header for header in chosen & round_.uploads.keys() if round_.uploads[header] not in members)
        parts += [honest] if first_layer else round_.components(honest, members)
    inside = frozenset[bytes]().union(*parts)
    for combination in round_.derivable(members):
        told = ", ".join(sorted(f"{round_.uploads[header]} x {value}" for header, value in combination.items()))
        if first_layer and not combination.keys() <= inside:
            return f"an update outside the opened set: {told}"
        for part in parts:
            values = {combination.get(header, 0) for header in part}
            if len(values) > 1:
                return f"a sum over part of the opened set: {told}"
            if values - {0} and corrupt <= base.threat.corrupt(round_.roster.capacity):
                if len(part) < base.threat.cohort_min:
                    return f"a sum over fewer than {base.threat.cohort_min} honest updates: {told}"
                if len(parts) > len(round_.sets):
                    return f"a sum over some of the survivors, since they are not connected: {told}"
    return ""


def rounds(world: World, tap: Wiretap) -> list[Round]:
    """Every round of `world` that honest devices uploaded in. Devices in `world.faulty` count as members of every coalition."""
    published, opened = tap.published(world), tap.opened(world)
    atoms = tap.atoms(world, published, opened)
    out: dict[bytes, Round] = {}
    for one in published:
        out.setdefault(one.roster.digest, Round(one.view, one.roster))
    for digest, round_ in out.items():
        mine = [one for one in published if one.roster.digest == digest]
        openings = [one for one in opened if one.roster == digest and one.party not in world.faulty]
        _Builder(world, round_, mine, openings, atoms).build()
    return [round_ for round_ in out.values() if round_.uploads]


class _Builder:
    def __init__(
        self,
        world: World,
        round_: Round,
        published: Sequence[Published],
        opened: Sequence[Opened],
        atoms: Mapping[str, set[bytes]],
    ) -> None:
        self._world = world
        self._round = round_
        self._published = published
        self._opened = opened
        self._atoms = atoms
        self._seeds: dict[bytes, list[bytes]] = {}
        self._shared = any(one.content.shares for one in opened)

    def build(self) -> None:
        round_, world = self._round, self._world
        for one in self._published:
            seeds = self._dealt(one)
            if seeds is not None:
                self._seeds[one.signed.digest] = seeds
            assert seeds is not None or one.device in world.faulty, f"{one.device} commits to seeds it never drew"
        honest = [one for one in self._published if one.device not in world.faulty and any(one.body)]
        privates = self._privates()
        for one in honest:
            round_.uploads[one.signed.digest] = one.device
            round_._masks[one.signed.digest] = self._masks_of(one, privates)
        for one in honest:
            for other in honest:
                if other.header.index in round_.roster.neighbours(one.header.index):
                    round_.edges.add(frozenset((one.signed.digest, other.signed.digest)))
        for each in self._opened:
            self._sums_of(each)

    # -- devices ----------------------------------------------------------------------------------------------------------

    def _dealt(self, one: Published) -> list[bytes] | None:
        """The self and cap seeds behind a header's commitments: consecutive draws of its device."""
        base = self._round.view.base
        slots = [("self", number) for number in range(len(base.self_subsets))]
        slots += [("cap", number) for number in range(len(base.cap_subsets))]
        drawn = self._world.drawn[one.device]
        commitment = committer(one.view, one.roster, one.header.index)
        for start in range(len(drawn) - len(slots) + 1):
            seeds = drawn[start : start + len(slots)]
            if all(
                len(seed) == SEED_SIZE
                and commitment(layer, number, seed)
                == one.header.commitments[SEED_SIZE * place : SEED_SIZE * (place + 1)]
                for place, ((layer, number), seed) in enumerate(zip(slots, seeds, strict=True))
            ):
                return seeds
        return None

    def _privates(self) -> dict[int, bytes]:
        """The X25519 keys of the honest devices of the roster, by index."""
        roster, out = self._round.roster, {}
        for index, device in enumerate(roster.devices if roster.keys else ()):
            if f"device/{device}" in self._world.faulty:
                continue
            drawn = self._world.drawn[f"device/{device}"]
            found = (draw for draw in drawn if len(draw) == SEED_SIZE and edge_keypair(draw)[1] == roster.keys[index])
            private = next(found, None)
            if private is not None:
                out[index] = private
        return out

    def _masks_of(self, one: Published, privates: Mapping[int, bytes]) -> dict[Hashable, int]:
        """The masks in an upload, with their signs, each with the ways to learn it; checked against the bytes."""
        round_, view, roster, index = self._round, one.view, one.roster, one.header.index
        seeds, header = self._seeds[one.signed.digest], one.signed.digest
        selves = len(view.base.self_subsets)
        masks: dict[Hashable, int] = {}
        streams: list[tuple[bytes, int]] = []
        for subset, seed in enumerate(seeds[:selves]):
            masks["self", header, subset] = 1
            round_._ways["self", header, subset] = [(self._holders(seed, one.device),)]
            streams.append((self_stream(view, roster, index, subset, seed), 1))
        assert index in privates or not view.base.has_roster, f"{one.device} has a key in the roster that it never drew"
        for other in roster.neighbours(index):
            secret = edge_secret(view, roster, privates[index], index, other)
            assert secret is not None, "a key of small order in the roster"
            sign = 1 if index < other else -1
            streams.append((edge_stream(view, secret), sign))
            mask = ("edge", min(index, other), max(index, other))
            masks[mask] = sign
            ends = self._holders(secret, one.device, f"device/{roster.devices[other]}")
            ends |= self._holders(privates[index]) | self._holders(privates.get(other, b""))
            ways = round_._ways.setdefault(mask, [(ends,)])
            ways.append(
                tuple(self._pad_holders(one, other, number, seed) for number, seed in enumerate(seeds[selves:]))
            )
        self._recompute(one, streams)
        return masks

    def _pad_holders(self, one: Published, other: int, number: int, seed: bytes) -> frozenset[str]:
        holders = self._holders(seed, one.device)
        if self._shared:
            holders |= self._holders(pad(one.view, one.roster, one.header.index, other, number, seed))
        return holders

    def _holders(self, atom: bytes, *besides: str) -> frozenset[str]:
        return frozenset(role for role, atoms in self._atoms.items() if atom in atoms) | frozenset(besides)

    def _recompute(self, one: Published, streams: list[tuple[bytes, int]]) -> None:
        """The published bytes are the device's update and exactly these masks (as far as they were sent)."""
        view, name = one.view, one.device.removeprefix("device/")
        segments = view.base.segments
        lanes = unpack(segments, self._world.truth[view.number, name])
        apply(segments, lanes, streams, suite=view.task.suite)
        reduce(segments, lanes)
        packed = pack(segments, lanes)
        assert len(packed) == packed_size(segments)
        for number, chunk in enumerate(one.body):
            at = number * one.header.body.chunk_size
            assert chunk in (None, packed[at : at + one.header.body.chunk_size]), (
                f"{one.device} masks otherwise than stated"
            )

    # -- parties ----------------------------------------------------------------------------------------------------------

    def _sums_of(self, one: Opened) -> None:
        """The sums of an honest party's opening, each checked against the bytes."""
        round_ = self._round
        round_.sets[one.proposal] = frozenset(one.survivors.values())
        headers = sorted(one.survivors.items())
        for subset, vector in one.content.vectors:
            if (one.proposal, subset) in round_._sums or any(digest not in self._seeds for _, digest in headers):
                continue
            seeds = ((index, self._seeds[digest][subset]) for index, digest in headers)
            assert vector == self_sum(round_.view, round_.roster, subset, seeds), f"{one.party} opens another sum"
            round_._sums[one.proposal, subset] = {
                ("self", digest, subset): 1 for _, digest in headers if digest in round_.uploads
            }
