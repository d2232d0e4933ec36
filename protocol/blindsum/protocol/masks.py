"""Both mask layers: what a device adds, what parties sum, what the coordinator takes away (SPEC.md section 7).

    y_u = x_u + sum_T PRG(self(u, T)) + sum_{v in N(u)} sign(u, v) PRG(edge(u, v))        sign + where u < v
    sum_{u in S} y_u - sum_T M_T - sum_{u in S, v not in S, edge} sign(u, v) PRG(edge(u, v)) = sum_{u in S} x_u

all mod 2^w per segment. T runs over the sets of t - 1 parties; M_T = sum_{u in S} PRG(self(u, T)) is what a party opens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import UNSET, UnsetType

from blindsum.protocol.keys import (
    HASH_SIZE,
    SEED_SIZE,
    agree,
    derive,
    deriver,
    digester,
    edge_private,
    equal,
    expander,
    info,
    xor_deriver,
)
from blindsum.protocol.messages import EDGE_SIZE, Header, chunks_of
from blindsum.protocol.prg import SUITES, Stream, apply
from blindsum.protocol.ring import pack, reduce, zeros
from blindsum.protocol.roster import RosterView
from blindsum.protocol.secret import Secret
from blindsum.protocol.sharing import deal, held_by
from blindsum.protocol.view import RoundView

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

__all__ = [
    "CHECK_SIZE",
    "Lanes",
    "Seeds",
    "Upload",
    "dropped_edges",
    "edge_check",
    "edge_keys",
    "edge_secret",
    "edge_shares",
    "edge_stream",
    "edge_streams",
    "header_fault",
    "mask_upload",
    "open_box",
    "pad",
    "padder",
    "self_sum",
    "unmask_edges",
]

CHECK_SIZE: Final = 16
Lanes = list[np.ndarray]
Random = Callable[[int], bytes]
Seal = Callable[[bytes, bytes, bytes], bytes]
"""seal(public key, info, plaintext) -> box: a port, since HPKE draws its own randomness."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A device's one upload: the header's body and the chunks of the masked vector."""

    header: Header
    chunks: list[bytes] = field(repr=False)


@dataclass(frozen=True, slots=True, repr=False)
class Seeds(Secret):
    """What one device sealed to one party: a seed for each self subset and each cap subset that the party is not in."""

    self_seeds: dict[int, bytes]
    cap_seeds: dict[int, bytes]


# -- keys of the two layers -------------------------------------------------------------------------------------------


def self_stream(view: RoundView, roster: RosterView, index: int, subset: int, seed: bytes) -> bytes:
    return derive(seed, "self", view.digest, *roster.place(index), subset, size=SUITES[view.task.suite])


def edge_secret(
    view: RoundView, roster: RosterView, private: bytes | X25519PrivateKey, mine: int, theirs: int
) -> bytes | None:
    """s_uv, the same for both ends (`private`: of device `mine`); None where the other key is a small-order point."""
    shared = agree(private, roster.keys[theirs])
    if shared is None:
        return None
    return _edge_expander(view.digest, roster.digest)(shared, min(mine, theirs), max(mine, theirs))


def edge_stream(view: RoundView, secret: bytes) -> bytes:
    return _stream_expander(view.digest, SUITES[view.task.suite])(secret)


def edge_check(view: RoundView, secret: bytes) -> bytes:
    """Lets whoever puts an edge together see that the shares were right. 16 bytes."""
    return _edge_checker(view.digest)(secret)[:CHECK_SIZE]


def edge_keys(
    view: RoundView, roster: RosterView, private: bytes | X25519PrivateKey, mine: int, others: Sequence[int]
) -> list[tuple[bytes, bytes, bytes] | None]:
    """(s_uv, its `edge_stream`, its `edge_check`) for each of `others`, the same for both ends; None as `edge_secret`."""
    stream, check = _stream_expander(view.digest, SUITES[view.task.suite]), _edge_checker(view.digest)
    secrets = [edge_secret(view, roster, private, mine, other) for other in others]
    return [None if each is None else (each, stream(each), check(each)[:CHECK_SIZE]) for each in secrets]


def pad(view: RoundView, roster: RosterView, mine: int, theirs: int, subset: int, seed: bytes) -> bytes:
    """The share of edge (mine, theirs)'s cap that comes from one cap seed of device `mine`."""
    return padder(view, roster, mine, seed)(theirs, subset)


def padder(view: RoundView, roster: RosterView, mine: int, seed: bytes) -> Callable[[int, int], bytes]:
    """`pad` as a function of the other end and the subset."""
    return deriver(seed, "cap", view.digest, roster.digest, mine, more=2)


def committer(view: RoundView, roster: RosterView, index: int) -> Callable[[str, int, bytes], bytes]:
    """The commitment of device `index` as a function of the layer, the subset and the seed."""
    where, number = roster.place(index)
    return partial(_committer(view.digest, where), number)


def box_info(view: RoundView, roster: RosterView, index: int, party: int) -> bytes:
    return info("box", view.digest, *roster.place(index), party)


@lru_cache(maxsize=4)
def _committer(view: bytes, where: bytes) -> Callable[..., bytes]:
    return digester("commit", view, where, more=4)


@lru_cache(maxsize=4)
def _edge_expander(view: bytes, roster: bytes) -> Callable[..., bytes]:
    return expander("edge", view, roster, more=2)


@lru_cache(maxsize=4)
def _stream_expander(view: bytes, size: int) -> Callable[..., bytes]:
    return expander("edge-mask", view, more=0, size=size)


@lru_cache(maxsize=4)
def _edge_checker(view: bytes) -> Callable[..., bytes]:
    return digester("edge-check", view, more=1)


# -- device -----------------------------------------------------------------------------------------------------------


def mask_upload(
    view: RoundView,
    roster: RosterView,
    *,
    index: int,
    private: bytes | X25519PrivateKey,
    lanes: Lanes,
    random: Random,
    seal: Seal,
    threads: int = 1,
    certificate: bytes | UnsetType = UNSET,
) -> Upload:
    """Mask `lanes` (ring elements, changed in place) for device `index` and make its header. `private` is its X25519 key of the
    round, `certificate` takes its place where there is no roster. Raises ValueError where a neighbour's key is a small-order point
    (the parties vouched for a bad roster)."""
    base = view.base
    self_seeds = deal(random, len(base.self_subsets))
    cap_seeds = deal(random, len(base.cap_subsets))
    streams = [(self_stream(view, roster, index, subset, seed), 1) for subset, seed in enumerate(self_seeds)]
    neighbours = roster.neighbours(index)
    own = edge_private(private) if isinstance(private, bytes) and neighbours else private
    secrets: list[bytes] = []
    checks: list[bytes] = []
    for other, keys in zip(neighbours, edge_keys(view, roster, own, index, neighbours), strict=True):
        if keys is None:
            raise ValueError(f"device {other} of the roster has an unusable key")
        secret, stream, check = keys
        streams.append((stream, 1 if index < other else -1))
        secrets.append(secret)
        checks.append(check)
    # every s_uv under the `pad` of every cap seed
    capped = xor_deriver(cap_seeds, "cap", view.digest, roster.digest, index)(b"".join(secrets), neighbours)
    caps = (capped[at : at + SEED_SIZE] for at in range(0, len(capped), SEED_SIZE))
    apply(base.segments, lanes, streams, suite=view.task.suite, threads=threads)
    reduce(base.segments, lanes)
    ref, chunks = chunks_of(pack(base.segments, lanes), view.base.chunk_size)
    commitment = committer(view, roster, index)
    commitments = [commitment("self", subset, seed) for subset, seed in enumerate(self_seeds)]
    commitments += [commitment("cap", subset, seed) for subset, seed in enumerate(cap_seeds)]
    boxes = []
    for member in view.members:
        seeds = [self_seeds[subset] for subset in held_by(member.party, base.self_subsets)]
        seeds += [cap_seeds[subset] for subset in held_by(member.party, base.cap_subsets)]
        boxes.append(seal(member.box_key, box_info(view, roster, index, member.party), b"".join(seeds)))
    header = Header(
        manifest=view.digest,
        roster=roster.digest,
        index=roster.place(index)[1],
        body=ref,
        commitments=b"".join(commitments),
        boxes=boxes,
        edges=b"".join(cap + check for cap, check in zip(caps, checks, strict=True)),
        certificate=certificate,
    )
    return Upload(header, chunks)


# -- what can be checked of a header ----------------------------------------------------------------------------------


def header_fault(view: RoundView, roster: RosterView, header: Header, body_size: int) -> str:
    """The code of what is wrong with a header as far as everybody can see it, or "". `body_size` is the packed vector's."""
    if header.manifest != view.digest or header.roster != roster.digest:
        return "header-foreign"
    if view.base.has_roster and header.index >= roster.size:
        return "header-malformed"
    wanted = len(view.base.self_subsets) + len(view.base.cap_subsets)
    if (
        len(header.commitments) != HASH_SIZE * wanted
        or len(header.boxes) != len(view.members)
        or len(header.edges) != EDGE_SIZE * len(roster.neighbours(header.index))
        or header.body.size != body_size
        or header.body.chunk_size != view.base.chunk_size
        or not header.body.sound
        or (header.certificate is UNSET) != view.base.has_roster
    ):
        return "header-malformed"
    return ""


def open_box(
    view: RoundView,
    roster: RosterView,
    header: Header,
    *,
    party: int,
    opener: Callable[[bytes, bytes], bytes | None],
) -> Seeds | str:
    """The seeds in `party`'s box, or the code of the complaint. `opener(info, box)` is HPKE open under the round's box key."""
    place = next(place for place, member in enumerate(view.members) if member.party == party)
    plain = opener(box_info(view, roster, header.index, party), header.boxes[place])
    base = view.base
    mine, caps = held_by(party, base.self_subsets), held_by(party, base.cap_subsets)
    if plain is None or len(plain) != SEED_SIZE * (len(mine) + len(caps)):
        return "box-unreadable"
    seeds = [plain[at : at + SEED_SIZE] for at in range(0, len(plain), SEED_SIZE)]
    found = Seeds(dict(zip(mine, seeds, strict=False)), dict(zip(caps, seeds[len(mine) :], strict=True)))
    offset, commitment = len(base.self_subsets), committer(view, roster, header.index)
    for layer, shift, given in (("self", 0, found.self_seeds), ("cap", offset, found.cap_seeds)):
        for subset, seed in given.items():
            at = HASH_SIZE * (shift + subset)
            if not equal(commitment(layer, subset, seed), header.commitments[at : at + HASH_SIZE]):
                return "commitment-differs"
    return found


# -- opening ----------------------------------------------------------------------------------------------------------


def self_sum(
    view: RoundView, roster: RosterView, subset: int, seeds: Iterable[tuple[int, bytes]], *, threads: int = 1
) -> bytes:
    """M_T packed: the sum of the self masks of subset number `subset` over (index, seed) of exactly the survivors."""
    lanes = zeros(view.base.segments)
    streams = ((self_stream(view, roster, index, subset, seed), 1) for index, seed in seeds)
    apply(view.base.segments, lanes, streams, suite=view.task.suite, threads=threads)
    reduce(view.base.segments, lanes)
    return pack(view.base.segments, lanes)


def edge_shares(
    view: RoundView,
    roster: RosterView,
    subset: int,
    lost: Sequence[tuple[int, Sequence[int]]],
    seeds: Sequence[bytes],
) -> bytes:
    """The pads of cap subset number `subset` for every edge of `lost`: (survivor, its dropped neighbours), in order; `seeds` are
    the survivors'. 32 bytes each."""
    shares: list[bytes] = []
    for (mine, gone), seed in zip(lost, seeds, strict=True):
        pad = padder(view, roster, mine, seed)
        shares += [pad(theirs, subset) for theirs in gone]
    return b"".join(shares)


def dropped_edges(roster: RosterView, survivors: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(survivor, dropped) for every edge that has lost one end, in order."""
    alive = set(survivors)
    for index in survivors:
        for other in roster.neighbours(index):
            if other not in alive:
                yield index, other


def unmask_edges(view: RoundView, lanes: Lanes, secrets: Iterable[tuple[int, int, bytes]], *, threads: int = 1) -> None:
    """Take the pairwise masks of (survivor, dropped, s_uv) out of a sum, in place."""
    apply(view.base.segments, lanes, edge_streams(view, secrets), suite=view.task.suite, threads=threads)


def edge_streams(view: RoundView, secrets: Iterable[tuple[int, int, bytes]]) -> Iterator[Stream]:
    """What takes the pairwise masks of (survivor, dropped, s_uv) out of a sum when it is added."""
    return ((edge_stream(view, secret), -1 if mine < theirs else 1) for mine, theirs, secret in secrets)
