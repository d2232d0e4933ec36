"""How far a role's database has come, written down beside it: what is older than its anchor was brought back from a copy.

The anchor holds one number, the highest that the outbox has given to a message. It is made durable after the commit and before
any message of it leaves, so nothing that left is in a database that is behind its anchor (docs/adr/0018). Two slots are written
in turn: a torn write leaves the one before.
"""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Final

from blindsum.protocol.errors import BlindsumError

__all__ = ["Anchor"]

SLOT_SIZE: Final = 512
"""One sector: disks write it whole or not at all."""
NUMBER_SIZE: Final = 8
CHECK_SIZE: Final = 32
_LABEL: Final = b"blindsum anchor 1\n"


class Anchor:
    """The file at `path`. Raises BlindsumError: "database-unwritable", "disk-full", "disk-failed"."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.value = -1
        """The number held; -1: there is none."""
        self.damaged = False
        """Whether there is a file without a number in it."""
        self._slot = 0
        try:
            data = path.read_bytes() if path.exists() else None
        except OSError as error:
            raise BlindsumError("database-unwritable", f"{path}: {error.strerror}") from error
        if data is not None:
            slots = [_read(data[at : at + SLOT_SIZE]) for at in (0, SLOT_SIZE)]
            self.value = max(slots)
            self.damaged = self.value < 0
            self._slot = 1 - slots.index(self.value)

    def advance(self, value: int) -> None:
        """Hold `value`, durably, from now on."""
        if value == self.value:
            return
        number = value.to_bytes(NUMBER_SIZE, "big")
        fresh = self.value < 0
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                os.pwrite(descriptor, _LABEL + number + _check(number), self._slot * SLOT_SIZE)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if fresh:
                _sync_folder(self.path.parent)
        except OSError as error:
            code = "disk-full" if error.errno == errno.ENOSPC else "disk-failed"
            raise BlindsumError(code, f"{self.path}: {error.strerror}") from error
        self.value, self._slot = value, 1 - self._slot


def _read(slot: bytes) -> int:
    """The number in a slot, or -1."""
    number = slot[len(_LABEL) : len(_LABEL) + NUMBER_SIZE]
    whole = slot[: len(_LABEL) + NUMBER_SIZE + CHECK_SIZE] == _LABEL + number + _check(number)
    return int.from_bytes(number, "big") if whole else -1


def _check(number: bytes) -> bytes:
    return hashlib.sha256(_LABEL + number).digest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
