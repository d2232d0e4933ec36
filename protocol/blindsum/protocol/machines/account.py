"""The records that a coordinator's rows give of a round that is over: of the whole round, or of as much as there was (SPEC.md
section 10). What a round leaves is deleted when the next one begins, so they are to be had until then."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from blindsum.protocol.codec import convert, decode, encode
from blindsum.protocol.envelope import Signed
from blindsum.protocol.machines.coordinatorround import CoordinatorRound
from blindsum.protocol.machines.desk import Desk
from blindsum.protocol.messages import Candidate, Proposal, Result
from blindsum.protocol.roster import pack_joins
from blindsum.protocol.trust import party_number
from blindsum.protocol.view import open_message

__all__ = ["failed_records", "finished_records"]

Records = Iterator[tuple[str, bytes]]


def finished_records(desk: Desk, round_: CoordinatorRound) -> Records:
    """The transcript of a round with a result."""
    state, view, bodies = round_.state, round_.view, round_.bodies
    assert state.phase == "done" and view is not None and bodies is not None
    result = convert(desk.payload(state.result), Result)
    yield "trust", desk.trust.encode()
    yield "announcement", state.announcement
    rollback = desk.journal.get(f"rollback/{round_.base.name}")
    if rollback is not None and desk.digest(rollback) == view.manifest.previous:
        yield "rollback", rollback
    yield from _who(desk, round_)
    yield "certificate", state.certificate
    yield "survivors", desk.blob(convert(desk.payload(state.proposal), Proposal).survivors)
    yield from _uploads(desk, round_, bodies.complete, bodies=True)
    yield from _openings(desk, round_)
    yield "result", state.result
    yield "sum", desk.blob(result.sum)
    yield "model", desk.blob(view.manifest.model)
    yield "state", desk.state(view.manifest.state)
    yield "next", desk.blob(result.model)


def failed_records(desk: Desk, round_: CoordinatorRound) -> Records:
    """What there was of a round that failed, in the order of its phases, and the failure. Bodies only where the sum of them was
    opened and is the fault: nobody needs more of what a round did not finish."""
    state, view = round_.state, round_.view
    assert state.phase == "failed" and state.failure
    yield "trust", desk.trust.encode()
    yield "failure", state.failure
    if not state.announcement:
        yield "task", round_.base.raw
        if state.manifest:
            yield "manifest", state.manifest
            yield from (("vote", state.manifest_votes[party]) for party in sorted(state.manifest_votes))
        else:
            yield from (("offer", state.offers[party]) for party in sorted(state.offers))
        return
    assert view is not None
    yield "announcement", state.announcement
    if round_.base.has_roster and not state.roster_proposal:
        yield "joins", pack_joins({device: raw for device, (raw, _) in round_.joins.items()})
        return
    if round_.base.has_roster and not state.roster:
        yield "roster-proposal", state.roster_proposal
        yield from _who(desk, round_)
        yield from (("vote", state.roster_votes[party]) for party in sorted(state.roster_votes))
        return
    yield from _who(desk, round_)
    assert round_.bodies is not None
    if not state.candidate:
        yield from _uploads(desk, round_, round_.bodies.complete, bodies=False)
        return
    name, last = ("proposal", state.proposal) if state.proposal else ("candidate", state.candidate)
    survivors = desk.blob(convert(desk.payload(last), Proposal).survivors)
    yield "survivors", survivors
    if not state.certificate:
        yield name, last
        yield from (("vote", state.set_votes[party]) for party in sorted(state.set_votes))
        return
    yield "certificate", state.certificate
    listed = desk.listed(round_, convert(desk.payload(last), Proposal).survivors)
    summed = state.code == "sum-malformed"
    yield from _uploads(desk, round_, [each.here for each in listed if each.here is not None], bodies=summed)
    yield from _openings(desk, round_)
    if summed:
        yield "model", desk.blob(view.manifest.model)
        yield "state", desk.state(view.manifest.state)


def _who(desk: Desk, round_: CoordinatorRound) -> Records:
    """Who was in the round (without a roster: whom the parties were asked about), what they complained about, and who contradicted
    himself."""
    state, task = round_.state, round_.base.name
    if state.roster:
        yield "roster", state.roster
    if round_.base.has_roster:
        yield "joins", desk.blob(desk.roster_proposal(round_).joins)
    elif state.candidate:
        yield "listed", desk.blob(desk.survivors_ref(state.candidate, Candidate))
    yield from (("check", state.checks[party]) for party in sorted(state.checks))
    for _, row in desk.journal.scan(f"evidence/{task}/{state.number:08d}/"):
        _, first, second, _ = decode(row)
        # what is wrong by itself, or was signed with a key that was given up, has a file of its own
        opened = [open_message(round_.view.trust, raw) for raw in (first, second)] if round_.view else []
        if opened and all(isinstance(each, Signed) for each in opened):
            yield "evidence", encode([first, second])


def _uploads(desk: Desk, round_: CoordinatorRound, indices: Collection[int], *, bodies: bool) -> Records:
    assert round_.bodies is not None and round_.roster is not None
    for index in round_.roster.in_order(list(indices)):
        yield "header", round_.bodies.raw(index)
        if bodies:
            yield "body", desk.blob(round_.bodies.headers[index].body)


def _openings(desk: Desk, round_: CoordinatorRound) -> Records:
    for raw in round_.state.openings:
        opening = desk.signed(raw)
        party = party_number(opening.head.sender)
        plain = desk.journal.get(f"round/{round_.base.name}/opening/{party:02d}/{opening.payload['part']:02d}")
        if plain is not None:
            yield "opening", raw
            yield "content", plain
