"""Key agreement of a simulated fleet: what the two ends of an edge both reckon is reckoned once.

X25519 gives both ends the same secret, and a fleet plays both. Whichever comes first leaves it, under the two public keys, in
a table that its processes share; the other takes it from there and is charged what it would have cost. No key of a simulated
fleet is a secret: all of them follow from its seed.
"""

from __future__ import annotations

import hashlib
import mmap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final
from unittest.mock import patch

from blindsum.protocol import masks
from blindsum.protocol.keys import agree, edge_private, public_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

__all__ = ["Pairs", "paired"]

SECRET_SIZE: Final = 32
CHECK_SIZE: Final = 8
ENTRY_SIZE: Final = SECRET_SIZE + CHECK_SIZE
ENTRIES_A_DEVICE: Final = 32
"""Room in the table; where two pairs meet in one place the first is reckoned again by its other end."""
ENTRIES_MAX: Final = 1 << 18
TIMED_EVERY: Final = 16
"""How many agreements there are to one whose time is taken."""


class Pairs:
    """`keys.agree` with the table. `spared_s`: processor time that this process would have needed, had it reckoned all."""

    def __init__(self, devices: int) -> None:
        self._devices = devices
        self._entries = min(ENTRIES_MAX, 1 << (ENTRIES_A_DEVICE * devices - 1).bit_length())
        self._table = mmap.mmap(-1, self._entries * ENTRY_SIZE)  # a forked process writes to the same
        self._reckoned, self._timed, self._timed_s = 0, 0, 0.0
        self.spared_s = 0.0

    def __reduce__(self) -> tuple[type[Pairs], tuple[int]]:
        """A process that is not forked begins with a table of its own."""
        return Pairs, (self._devices,)

    def agree(self, private: bytes | X25519PrivateKey, public: bytes) -> bytes | None:
        own = edge_private(private) if isinstance(private, bytes) else private
        mine = public_of(own)
        pair = hashlib.sha256(mine + public if mine < public else public + mine).digest()
        start = int.from_bytes(pair[:8], "big") % self._entries * ENTRY_SIZE
        entry = self._table[start : start + ENTRY_SIZE]
        secret = entry[:SECRET_SIZE]
        # a process may be writing there at this moment: what it has not finished does not fit its check
        if entry[SECRET_SIZE:] == _check(pair, secret):
            self.spared_s += self._timed_s / max(1, self._timed)
            return secret
        found = self._reckon(own, public)
        if found is not None:
            self._table[start : start + ENTRY_SIZE] = found + _check(pair, found)
        return found

    def _reckon(self, own: X25519PrivateKey, public: bytes) -> bytes | None:
        self._reckoned += 1
        if self._reckoned % TIMED_EVERY != 1:
            return agree(own, public)
        began = time.thread_time()
        found = agree(own, public)
        self._timed_s += time.thread_time() - began
        self._timed += 1
        return found


@contextmanager
def paired(pairs: Pairs) -> Iterator[None]:
    """In this process (and those it starts meanwhile) devices agree by `pairs`."""
    with patch.object(masks, "agree", pairs.agree):
        yield


def _check(pair: bytes, secret: bytes) -> bytes:
    return hashlib.sha256(pair + secret).digest()[:CHECK_SIZE]
