"""The revocation list that a role goes by: the highest number it was ever given, kept in its store."""

from __future__ import annotations

from typing import Final

from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.machines.journal import Journal
from blindsum.protocol.revocation import Revocations, revocations_open

__all__ = ["Revoked"]

ROW: Final = "revoked"


class Revoked:
    """Holds one list; `current` is it."""

    def __init__(self, ca: bytes, journal: Journal) -> None:
        self._ca = ca
        self._journal = journal
        stored = journal.get(ROW)
        self.current = Revocations() if stored is None else revocations_open(stored, ca=ca)

    def take(self, der: bytes) -> bool:
        """Go by this list from now on; False where it is the one already held. Raises BlindsumError "revocations-invalid", and
        "revocations-stale" for a lower number, another list of the same number, or one that gives a certificate back."""
        if der == self.current.raw:
            return False
        given = revocations_open(der, ca=self._ca)
        if given.number <= self.current.number or not given.serials >= self.current.serials:
            raise BlindsumError("revocations-stale", f"list {given.number} after list {self.current.number}")
        self.current = given
        self._journal.put(ROW, der)
        self._journal.event("revocations", number=given.number, certificates=len(given.serials))
        return True
