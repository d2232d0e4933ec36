"""Roles that do not do as they should: what a malicious device or party does differently from the honest machine it runs.

A behaviour is handed to `World(behaviours={"party/2": WrongSums()})`. It sees what its role seals and sends, and may change it,
sign it anew with the role's own key, or keep it back. `Behaviour` itself is honest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from blindsum.protocol.codec import DecodeError, convert, decode, encode
from blindsum.protocol.envelope import open_envelope
from blindsum.protocol.keys import SEED_SIZE, box_seal
from blindsum.protocol.messages import EDGE_SIZE, Check, Header, Opening, OpeningContent

if TYPE_CHECKING:
    from blindsum.testing.world import World

__all__ = [
    "Behaviour",
    "FalseCaps",
    "FalseComplaints",
    "GarbageBox",
    "Silent",
    "TwoHeaders",
    "WithheldSums",
    "WrongOpening",
    "WrongSeeds",
    "WrongShares",
    "WrongSums",
]


class Behaviour:
    """An honest role. Override `seal` (its HPKE port) or `send` (every message on its way to one receiver). `role`: whose it is,
    "" for anybody's."""

    role: ClassVar[Literal["", "party", "device"]] = ""

    def seal(self, public: bytes, info: bytes, plain: bytes) -> bytes:
        return box_seal(public, info, plain)

    def send(self, world: World, target: str, kind: str, body: bytes) -> bytes | None:
        """What goes to `target` instead of `body`; None for nothing. Chunks have the kind "chunk"."""
        return body


class Silent(Behaviour):
    """Never sends messages of some kinds."""

    def __init__(self, kind: str, *kinds: str) -> None:
        self._kinds = frozenset((kind, *kinds))

    def send(self, world: World, target: str, kind: str, body: bytes) -> bytes | None:
        return None if kind in self._kinds else body


# -- parties ----------------------------------------------------------------------------------------------------------


class WrongOpening(Behaviour):
    """A party that signs and seals other openings than it should; `change` makes one from the right one."""

    role = "party"

    def __init__(self, change: Callable[[OpeningContent], OpeningContent]) -> None:
        self._change = change
        self._plains: dict[bytes, bytes] = {}

    def seal(self, public: bytes, info: bytes, plain: bytes) -> bytes:
        try:
            content = convert(decode(plain), OpeningContent)
        except DecodeError:
            return box_seal(public, info, plain)
        changed = encode(self._change(content))
        self._plains[hashlib.sha256(plain).digest()] = hashlib.sha256(changed).digest()
        return box_seal(public, info, changed)

    def send(self, world: World, target: str, kind: str, body: bytes) -> bytes | None:
        if kind != "opening":
            return body
        opening = convert(open_envelope(body).payload, Opening)
        fields = {name: getattr(opening, name) for name in opening.__struct_fields__}
        plain = self._plains.get(opening.plain, opening.plain)
        return world.fleet.resign(body, Opening(**{**fields, "plain": plain}))


class WrongSums(WrongOpening):
    """Opens self-mask sums that are off by one bit, with hashes to match."""

    def __init__(self) -> None:
        super().__init__(_wrong_sums)


class WithheldSums(WrongOpening):
    """Vouches for the right sums and never sends one."""

    def __init__(self) -> None:
        super().__init__(lambda content: _content(content, vectors=[]))

    def send(self, world: World, target: str, kind: str, body: bytes) -> bytes | None:
        if kind == "opening" and open_envelope(body).payload["part"] > 0:
            return None
        return super().send(world, target, kind, body)


class WrongShares(WrongOpening):
    """Opens other shares of dropped edges than it was given."""

    def __init__(self) -> None:
        super().__init__(lambda content: _content(content, shares=bytes(b ^ 0xA5 for b in content.shares)))


class FalseComplaints(Behaviour):
    """A party that complains about healthy uploads: about the devices `indices`, or everybody."""

    role = "party"

    def __init__(self, indices: tuple[int, ...] | None = None) -> None:
        self._indices = indices

    def send(self, world: World, target: str, kind: str, body: bytes) -> bytes | None:
        if kind != "check":
            return body
        check = convert(open_envelope(body).payload, Check)
        indices = range(len(world.roster.devices)) if self._indices is None else self._indices
        bad = [(index, "box-unreadable") for index in indices]
        return world.fleet.resign(body, Check(survivors=check.survivors, missing=[], bad=bad))


def _content(content: OpeningContent, **changes: object) -> OpeningContent:
    fields = {name: getattr(content, name) for name in content.__struct_fields__}
    return OpeningContent(**{**fields, **changes})


def _wrong_sums(content: OpeningContent) -> OpeningContent:
    vectors = [(subset, bytes([vector[0] ^ 1]) + vector[1:]) for subset, vector in content.vectors]
    hashes = {subset: hashlib.sha256(b"wrong" + value).digest() for subset, value in content.hashes}
    hashes.update((subset, hashlib.sha256(vector).digest()) for subset, vector in vectors)
    return _content(content, vectors=vectors, hashes=sorted(hashes.items()))


# -- devices ----------------------------------------------------------------------------------------------------------


class GarbageBox(Behaviour):
    """A device whose box for each of some parties holds nothing that they can open."""

    role = "device"

    def __init__(self, party: int, *parties: int) -> None:
        self._parties = frozenset((party, *parties))

    def seal(self, public: bytes, info: bytes, plain: bytes) -> bytes:
        sealed = box_seal(public, info, plain)
        party = decode(info)[-1]
        return sealed[:-1] + bytes([sealed[-1] ^ 1]) if party in self._parties else sealed


class WrongSeeds(Behaviour):
    """A device that seals other seeds to some parties than its header commits to."""

    role = "device"

    def __init__(self, party: int, *parties: int) -> None:
        self._parties = frozenset((party, *parties))

    def seal(self, public: bytes, info: bytes, plain: bytes) -> bytes:
        party = decode(info)[-1]
        return box_seal(public, info, bytes(SEED_SIZE) + plain[SEED_SIZE:] if party in self._parties else plain)


class TwoHeaders(Behaviour):
    """A device that shows another header to some parties than to the coordinator, by a broker that takes it there."""

    role = "device"

    def __init__(self, party: int, *parties: int) -> None:
        self._targets = tuple(f"party/{each}" for each in (party, *parties))

    def send(self, world: World, target: str, kind: str, body: bytes) -> bytes | None:
        if kind == "header":
            signed = open_envelope(body)
            other = world.fleet.resign(body, _false_caps(convert(signed.payload, Header)))
            for party in self._targets:
                world.network.send(signed.head.sender, party, other, world.now)
        return body


class FalseCaps(Behaviour):
    """A device whose capped edges open to nothing: a round that loses one of its edges cannot be opened."""

    role = "device"

    def send(self, world: World, target: str, kind: str, body: bytes) -> bytes | None:
        if kind != "header":
            return body
        return world.fleet.resign(body, _false_caps(convert(open_envelope(body).payload, Header)))


def _false_caps(header: Header) -> Header:
    fields = {name: getattr(header, name) for name in header.__struct_fields__}
    edges = bytearray(header.edges)
    for at in range(0, len(edges), EDGE_SIZE):
        edges[at] ^= 1
    if not edges:  # a round without a roster: a commitment will do
        return Header(**{**fields, "commitments": bytes([header.commitments[0] ^ 1]) + header.commitments[1:]})
    return Header(**{**fields, "edges": bytes(edges)})
