"""The latest key that a role has seen of each party: what was signed with an older one counts for nothing any more.

Rows: "keys/<party>" is the list of steps that lead to it (SPEC.md section 4.4).
"""

from __future__ import annotations

from collections.abc import Sequence

from blindsum.protocol.codec import DecodeError, convert, decode, encode
from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.machines.journal import Journal
from blindsum.protocol.messages import KeyStep, KeySteps
from blindsum.protocol.partykeys import keys_of, rank
from blindsum.protocol.trust import Trust

__all__ = ["KeyBook", "read_key_file", "write_key_file"]


class KeyBook:
    """`trust` is the pinned bundle with the latest keys in it."""

    def __init__(self, trust: Trust, journal: Journal) -> None:
        self.trust = trust
        self._journal = journal
        for number in range(1, len(trust.parties) + 1):
            self.trust = self.trust.after(number, keys_of(trust, number, self.steps(number)))

    def steps(self, party: int) -> list[KeyStep]:
        """The steps to the latest key of a party, none where it is the pinned one."""
        row = self._journal.get(f"keys/{party}")
        return [] if row is None else convert(decode(row), KeySteps)

    def take(self, party: int, steps: Sequence[KeyStep]) -> Refused | None:
        """Go by a party's key from now on. `steps` were checked. A key before the latest is refused, and so is a second one that
        the same key has signed."""
        known, given = self.steps(party), list(steps)
        if rank(given) < rank(known):
            return Refused("key-retired", detail=f"party/{party}: key {rank(given)}, the latest is {rank(known)}")
        begun = rank(known)[0] == rank(given)[0]
        if begun and [step[2] for step in given[: len(known)]] != [step[2] for step in known]:
            return Refused("second-key", f"party/{party}", f"key {rank(given)}")
        if rank(given) > rank(known):
            self._journal.put(f"keys/{party}", encode(given))
            self.trust = self.trust.after(party, keys_of(self.trust, party, given))
            epoch, step = rank(given)
            self._journal.event("party-key", party=party, epoch=epoch, step=step)
        return None

    def learn(self, data: bytes) -> None:
        """Go by the keys in a file that the operator or another party handed over, where they are later. Raises BlindsumError
        "party-keys-invalid"."""
        for party, steps in read_key_file(data, self.trust).items():
            self.take(party, steps)


def read_key_file(data: bytes, trust: Trust) -> dict[int, list[KeyStep]]:
    """The steps by party in `parties.cbor`. Raises BlindsumError "party-keys-invalid"."""
    try:
        rows = convert(decode(data), list[tuple[int, KeySteps]])
    except DecodeError as error:
        raise BlindsumError("party-keys-invalid", str(error)) from None
    for party, steps in rows:
        if not keys_of(trust, party, steps):
            raise BlindsumError("party-keys-invalid", f"the steps of party {party} do not hold")
    return dict(rows)


def write_key_file(steps: dict[int, list[KeyStep]]) -> bytes:
    return encode([[party, steps[party]] for party in sorted(steps)])
