"""Cryptography of a simulated fleet: what two of its roles both reckon is reckoned once.

Both ends of an edge have the same keys, a signature, a certificate or a key that a role has made is good, a box opens to what was
sealed in it, many boxes are sealed under one encapsulation (see `boxes`), and all parties that hold a subset's seeds sum the same
masks; a fleet plays every side of each. Whichever comes first leaves what it has found in tables that the fleet's processes share,
and the others take it from there. Anything that no role of this fleet has made just so, byte for byte and under the same key, is in
no table and goes the whole way. No key of a simulated fleet is a secret: all of them follow from its seed.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from blindsum.fleet import identities
from blindsum.fleet.boxes import Boxes
from blindsum.fleet.table import Table
from blindsum.protocol import envelope, keys, masks, openings, roster
from blindsum.protocol.keys import (
    HASH_SIZE,
    SEED_SIZE,
    box_keypair,
    box_open,
    box_private,
    box_seal,
    certificate_issue,
    certificate_verify,
    edge_private,
    key_usable,
    public_of,
    sign,
    sign_verify,
)
from blindsum.protocol.machines import device, partyround
from blindsum.protocol.masks import CHECK_SIZE, edge_keys, edge_shares, self_sum
from blindsum.protocol.prg import SUITES
from blindsum.protocol.roster import RosterView
from blindsum.protocol.view import RoundView
from blindsum.testing import behaviours

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey

__all__ = ["Pairs", "paired"]

KEYS_SIZE_MAX: Final = SEED_SIZE + max(SUITES.values()) + CHECK_SIZE
"""Secret, stream key and check of an edge."""
EDGES_A_DEVICE: Final = 64
"""Room among the secrets; where two pairs meet in one place the first is reckoned again by its other end."""
EDGES_MAX: Final = 1 << 18
SIGNED_MAX: Final = 1 << 15
"""Signatures that are kept: what is on its way at a time, and far more."""
GOOD_MAX: Final = 16
"""Signatures that a process remembers as good besides: those of messages which all parties are just reading."""
BOXES_MAX: Final = 1 << 13
PLAIN_SIZE_MAX: Final = 512
"""Boxes with more in them (openings) are opened."""
PUBLICS_MAX: Final = 64
"""Box keys whose public halves are remembered."""
SUMS_MAX: Final = 16
"""Sums of self masks and shares of caps that are remembered: more than the parties of a round have to open."""
TIMED_EVERY: Final = 64
"""How many devices' edges are reckoned, and boxes sealed, to one whose time is taken."""


class _Sampled:
    """Processor time of a piece of work, as the mean of those in one call of `TIMED_EVERY`."""

    def __init__(self) -> None:
        self.calls, self._timed, self._timed_s = 0, 0, 0.0

    @property
    def due(self) -> bool:
        """Whether the call that comes is one whose time is taken."""
        self.calls += 1
        return self.calls % TIMED_EVERY == 1

    @property
    def mean_s(self) -> float:
        return self._timed_s / max(1, self._timed)

    def add(self, began: float, pieces: int = 1) -> None:
        self._timed_s += time.thread_time() - began
        self._timed += pieces


class Pairs:
    """Functions of `protocol.keys` and `protocol.masks` with the tables. `spared_s`: the processor time that this process would
    have needed for edges and boxes, had it reckoned all."""

    def __init__(self, devices: int) -> None:
        self._devices = devices
        self._edges = Table(min(EDGES_MAX, 1 << (EDGES_A_DEVICE * devices - 1).bit_length()), KEYS_SIZE_MAX)
        self._signed = Table(SIGNED_MAX, 0)
        self._good: OrderedDict[bytes, tuple[bytes, bytes, bytes]] = OrderedDict()
        self._boxes = Table(BOXES_MAX, PLAIN_SIZE_MAX)
        self._ends: tuple[bytes, dict[int, int]] = b"", {}  # of a roster's devices, see `_end`
        self._sums: OrderedDict[bytes, bytes] = OrderedDict()
        self._publics: OrderedDict[MLKEM768X25519PrivateKey, bytes] = OrderedDict()
        self._edge, self._box, self._sealer = _Sampled(), _Sampled(), Boxes()
        self.spared_s = 0.0

    def __reduce__(self) -> tuple[type[Pairs], tuple[int]]:
        """A process that is not forked begins with tables of its own."""
        return Pairs, (self._devices,)

    def edge_keys(
        self, view: RoundView, roster: RosterView, private: bytes | X25519PrivateKey, mine: int, others: Sequence[int]
    ) -> list[tuple[bytes, bytes, bytes] | None]:
        if not others:
            return []
        own = edge_private(private) if isinstance(private, bytes) else private
        place = view.digest + roster.digest
        if self._ends[0] != place:
            self._ends = place, {}
        ends, here, take = self._ends[1], _end(place, mine, public_of(own)), self._edges.take
        found: list[tuple[bytes, bytes, bytes] | None] = []
        missing: dict[int, bytes] = {}  # by where it belongs among those that were found
        for other in others:
            there = ends.get(other)
            if there is None:
                there = ends[other] = _end(place, other, roster.keys[other])
            edge = (here ^ there).to_bytes(HASH_SIZE)
            kept = take(edge)
            if kept is None:
                missing[len(found)] = edge
                found.append(None)
            else:
                found.append((kept[:SEED_SIZE], kept[SEED_SIZE:-CHECK_SIZE], kept[-CHECK_SIZE:]))
        self.spared_s += (len(found) - len(missing)) * self._edge.mean_s
        reckoned = self._reckon(view, roster, own, mine, [others[at] for at in missing]) if missing else ()
        for (at, edge), made in zip(missing.items(), reckoned, strict=True):
            if made is not None:
                self._edges.put(edge, b"".join(made))
                found[at] = made
        return found

    def sign(self, key: Ed25519PrivateKey, data: bytes) -> bytes:
        signature = sign(key, data)
        self._signed.put(hashlib.sha256(_signer(key) + signature + data).digest(), b"")
        return signature

    def sign_verify(self, public: bytes, signature: bytes, data: bytes) -> bool:
        asked = public, signature, data
        if self._good.get(signature) != asked:  # every party asks for the same
            if self._signed.get(hashlib.sha256(b"".join(asked)).digest()) is None:
                return sign_verify(public, signature, data)
            self._good[signature] = asked
            if len(self._good) > GOOD_MAX:
                self._good.popitem(last=False)
        return True

    def box_seal(self, public: bytes, info: bytes, plaintext: bytes) -> bytes:
        if len(plaintext) > PLAIN_SIZE_MAX:
            return box_seal(public, info, plaintext)
        if self._box.due:
            began = time.thread_time()
            sealed = box_seal(public, info, plaintext)
            self._box.add(began)
        else:
            sealed = self._sealer.seal(public, info, plaintext)
            self.spared_s += self._box.mean_s
        self._boxes.put(_box(public, info, sealed), plaintext)
        return sealed

    def box_private(self, secret: bytes) -> MLKEM768X25519PrivateKey:
        private = box_private(secret)
        self._publics[private] = box_keypair(secret)[1]
        if len(self._publics) > PUBLICS_MAX:
            self._publics.popitem(last=False)
        return private

    def box_open(self, private: MLKEM768X25519PrivateKey, info: bytes, sealed: bytes) -> bytes | None:
        public = self._publics.get(private)
        plaintext = None if public is None else self._boxes.take(_box(public, info, sealed))
        return box_open(private, info, sealed) if plaintext is None else plaintext

    def self_sum(
        self, view: RoundView, roster: RosterView, subset: int, seeds: Iterable[tuple[int, bytes]], *, threads: int = 1
    ) -> bytes:
        held = list(seeds)
        name = hashlib.sha256(b"self" + view.digest + roster.digest + subset.to_bytes(4, "big"))
        for index, seed in held:
            name.update(index.to_bytes(4, "big") + seed)
        return self._summed(name.digest(), lambda: self_sum(view, roster, subset, held, threads=threads))

    def edge_shares(
        self,
        view: RoundView,
        roster: RosterView,
        subset: int,
        lost: Sequence[tuple[int, Sequence[int]]],
        seeds: Sequence[bytes],
    ) -> bytes:
        name = hashlib.sha256(b"caps" + view.digest + roster.digest + subset.to_bytes(4, "big") + b"".join(seeds))
        name.update(repr(lost).encode())
        return self._summed(name.digest(), lambda: edge_shares(view, roster, subset, lost, seeds))

    def join_public(self, own: X25519PrivateKey) -> bytes:
        """The public key of a device's join, which all will find usable."""
        public = public_of(own)
        self._signed.put(_usable(public), b"")
        return public

    def key_usable(self, public: bytes) -> bool:
        return self._signed.get(_usable(public)) is not None or key_usable(public)

    def certificate_issue(self, *, issuer_key: Ed25519PrivateKey, **named: Any) -> bytes:
        der = certificate_issue(issuer_key=issuer_key, **named)
        self._signed.put(hashlib.sha256(public_of(issuer_key) + der).digest(), b"")
        return der

    def certificate_verify(self, certificate: x509.Certificate, authority: x509.Certificate) -> None:
        issuer = authority.public_key()
        assert isinstance(issuer, Ed25519PublicKey)
        der = certificate.public_bytes(Encoding.DER)
        if self._signed.get(hashlib.sha256(issuer.public_bytes_raw() + der).digest()) is None:
            certificate_verify(certificate, authority)

    def _summed(self, name: bytes, reckon: Callable[[], bytes]) -> bytes:
        found = self._sums.get(name)
        if found is None:
            found = self._sums[name] = reckon()
            if len(self._sums) > SUMS_MAX:
                self._sums.popitem(last=False)
        return found

    def _reckon(
        self, view: RoundView, roster: RosterView, own: X25519PrivateKey, mine: int, others: Sequence[int]
    ) -> list[tuple[bytes, bytes, bytes] | None]:
        if not self._edge.due:
            return edge_keys(view, roster, own, mine, others)
        began = time.thread_time()
        found = edge_keys(view, roster, own, mine, others)
        self._edge.add(began, len(others))
        return found


@contextmanager
def paired(pairs: Pairs) -> Iterator[None]:
    """In this process (and those it starts meanwhile) roles reckon by `pairs`."""
    with ExitStack() as stack:
        for module, name in (
            (masks, "edge_keys"),
            (envelope, "sign"),
            (envelope, "sign_verify"),
            (behaviours, "box_seal"),
            (partyround, "box_private"),
            (partyround, "box_open"),
            (openings, "self_sum"),
            (openings, "edge_shares"),
            (roster, "key_usable"),
            (identities, "certificate_issue"),
            (keys, "certificate_verify"),
        ):
            stack.enter_context(patch.object(module, name, getattr(pairs, name)))
        stack.enter_context(patch.object(device, "public_of", pairs.join_public))
        yield


@lru_cache(maxsize=PUBLICS_MAX)
def _signer(key: Ed25519PrivateKey) -> bytes:
    return public_of(key)


def _end(place: bytes, index: int, public: bytes) -> int:
    """What names one end of an edge in a round. An edge is named by both, XORed: the same from either end."""
    return int.from_bytes(hashlib.sha256(place + index.to_bytes(4) + public).digest())


def _usable(public: bytes) -> bytes:
    return hashlib.sha256(b"usable" + public).digest()


def _box(public: bytes, info: bytes, sealed: bytes) -> bytes:
    return hashlib.sha256(len(info).to_bytes(4, "big") + public + info + sealed).digest()
