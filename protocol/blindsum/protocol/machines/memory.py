"""What a party does once it has forgotten something that it signed (SPEC.md section 8.2, docs/adr/0018).

A database brought back from a copy does not know of later votes, and a party that has forgotten a vote could vote again. It
learns that it forgot in one of two ways: its host tells it (the database is behind its anchor), or a message shows an offer or a
vote under its own signature that it does not remember. From then on it takes part in no round until every round that it may have
forgotten has expired, with all the secrets in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from blindsum.protocol.codec import DecodeError, decode, encode
from blindsum.protocol.envelope import Signed, open_envelope
from blindsum.protocol.machines.journal import Journal
from blindsum.protocol.machines.partyround import OFFER_KEEP_MS, PartyRound
from blindsum.protocol.trust import Trust
from blindsum.protocol.view import CLOCK_SKEW_MAX_MS, DECISIONS_MAX, TaskView

__all__ = ["Memory", "hold_ms"]

ROW: Final = "memory/lost"


def hold_ms(base: TaskView) -> int:
    """How long after it was offered the last round of a task has surely expired everywhere, in ms: a party keeps an offer for an
    hour, takes a manifest that is as far ahead as clocks may differ, and erases by a clock that may be as far behind."""
    task = base.task
    return OFFER_KEEP_MS + 2 * CLOCK_SKEW_MAX_MS + task.join_ms + task.upload_ms + DECISIONS_MAX * task.decide_ms


class Memory:
    """What party `number` has signed with one of `keys`, and since when it knows that it has forgotten some of it."""

    def __init__(self, number: int, trust: Trust, keys: tuple[bytes, ...], journal: Journal) -> None:
        self._me = f"party/{number}"
        self._trust = trust
        self._keys = keys
        self._journal = journal

    def lost(self, base: TaskView, now: int) -> bool:
        """Whether rounds of a task may still be under way that this party has forgotten."""
        value = self._journal.get(ROW)
        return value is not None and now < int(decode(value)) + hold_ms(base)

    def lose(self, now: int) -> None:
        """It has forgotten something, at the latest `now`."""
        self._journal.put(ROW, encode(now))

    def forgotten(self, signed: Signed, last: int, round_: PartyRound | None) -> bool:
        """Whether a genuine message of the coordinator shows what this party signed and does not remember. `last` is the highest
        round that it knows to have taken part in."""
        number = signed.head.round
        if number < last or (number == last and round_ is None):
            return False  # it is over here, and nothing will be signed in it again
        return any(self._is_unknown(raw, signed, round_ if number == last else None) for raw in _inner(signed))

    def _is_unknown(self, raw: bytes, around: Signed, round_: PartyRound | None) -> bool:
        try:
            inner = open_envelope(raw)
        except DecodeError:
            return False
        head = inner.head
        if head.sender != self._me or head.type not in ("offer", "vote"):
            return False
        if (head.fleet, head.task, head.round) != (self._trust.fleet, around.head.task, around.head.round):
            return False
        if not any(inner.valid(key) for key in self._keys):
            return False
        return round_ is None or inner.digest not in {open_envelope(known).digest for known in _answers(round_)}


def _answers(round_: PartyRound) -> Iterator[bytes]:
    """What this party knows to have signed in a round."""
    state = round_.state
    return (raw for raw in (state.offer, state.manifest_vote, state.roster_vote, state.set_vote) if raw)


def _inner(signed: Signed) -> Iterator[bytes]:
    """The offers and votes inside a message of the coordinator, whatever else is wrong with it."""
    payload = signed.payload if isinstance(signed.payload, dict) else {}
    manifest = payload.get("manifest")
    lists = [payload.get("offers"), payload.get("votes")]
    if signed.head.type == "announcement" and isinstance(manifest, bytes):
        try:
            inside = open_envelope(manifest).payload
        except DecodeError:
            inside = {}
        lists.append(inside.get("offers") if isinstance(inside, dict) else None)
    return (raw for items in lists if isinstance(items, list) for raw in items if isinstance(raw, bytes))
