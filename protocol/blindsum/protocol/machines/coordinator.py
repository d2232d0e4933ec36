"""The coordinator's side of a round (SPEC.md section 8.3).

Trusted for progress, never for privacy. It may die at any step: what it asked is asked again from the stored state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from blindsum.protocol.blobs import RESEND_MS, WINDOW, Fetch, bits_set, read_blob, write_blob
from blindsum.protocol.codec import DecodeError, convert, decode, encode
from blindsum.protocol.envelope import Signed, peek
from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.keys import box_open, box_usable
from blindsum.protocol.machines.conduct import Conduct
from blindsum.protocol.machines.coordinatorround import CoordinatorRound, CoordinatorState
from blindsum.protocol.machines.desk import Desk
from blindsum.protocol.machines.step import Step, Store
from blindsum.protocol.masks import header_fault
from blindsum.protocol.messages import (
    Ask,
    Candidate,
    Check,
    Header,
    Offer,
    Opening,
    OpeningContent,
    Proposal,
    Result,
    Vote,
    chunks_of,
)
from blindsum.protocol.ring import packed_size
from blindsum.protocol.roster import (
    beacon_commitment,
    open_join,
)
from blindsum.protocol.trust import Trust, party_number
from blindsum.protocol.view import TaskView, open_message, open_task, payload_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["CoordinatorMachine"]


class CoordinatorMachine:
    """The coordinator of any number of tasks, one round at a time in each."""

    def __init__(
        self,
        *,
        key: Ed25519PrivateKey,
        box_private: bytes,
        trust: Trust,
        store: Store,
        random: Callable[[int], bytes],
        threads: int = 1,
    ) -> None:
        self._box_private = box_private
        self._trust = trust
        self._desk = Desk(key=key, trust=trust, store=store, random=random)
        self._conduct = Conduct(self._desk, threads=threads)
        self._journal, self._fetches = self._desk.journal, self._desk.fetches
        self._bases: dict[str, TaskView] = {}
        self._rounds: dict[str, CoordinatorRound] = {}
        self._openings: dict[bytes, tuple[str, bytes]] = {}
        self._restore()

    # -- commands -------------------------------------------------------------------------------------------------

    def add_task(self, raw: bytes, *, plan: bytes, model: bytes) -> Step:
        """Take on a task the operator signed, with its two blobs. Raises BlindsumError where they do not belong together."""
        base = open_task(self._trust, raw)
        if isinstance(base, Refused):
            raise BlindsumError("task-invalid", f"{base.code}: {base.detail}")
        known = self._bases.get(base.name)
        if known is not None and known.digest != base.digest:
            raise BlindsumError("task-invalid", f"another task {base.name} is already here")
        for ref, data in ((base.task.plan, plan), (base.task.model, model)):
            made, chunks = chunks_of(data, ref.chunk_size)
            if made != ref:
                raise BlindsumError("task-invalid", "plan or model is not the one the operator signed")
            self._journal.write(write_blob(ref, chunks))
        self._bases[base.name] = base
        self._journal.put(f"task/{base.name}", raw)
        self._desk.serve(base.task.plan, base.task.model)
        return self._journal.take()

    def start(self, task: str, now: int) -> Step:
        """Begin the next round of a task. What the last one left (transcript rows, bodies) is deleted."""
        base = self._bases.get(task)
        if base is None:
            raise BlindsumError("task-invalid", f"no task {task} here")
        old = self._rounds.get(task)
        if old is not None and old.active:
            raise BlindsumError("round-active", f"round {old.state.number} of {task}")
        number = self._desk.last(task) + 1
        if number > base.task.rounds_max:
            raise BlindsumError("task-finished", f"{task} has had its {base.task.rounds_max} rounds")
        if old is not None:
            self._clear(old)
        state = CoordinatorState(number=number, phase="offer", phase_since=now, phase_until=now + base.task.decide_ms)
        round_ = CoordinatorRound(base, state)
        self._rounds[task] = round_
        self._journal.put(f"last/{task}", encode(number))
        self._desk.save(round_)
        self._conduct.request(round_, now)
        self._journal.event("phase", task=task, round=number, phase="offer")
        return self._journal.take()

    def round(self, task: str) -> CoordinatorRound | None:
        """The current (or last) round of a task, to be looked at and not changed."""
        return self._rounds.get(task)

    def base(self, task: str) -> TaskView | None:
        return self._bases.get(task)

    def model(self, task: str) -> bytes:
        """The current model of a task."""
        return self._desk.blob(self._desk.chain(self._bases[task])[1])

    def records(self, task: str) -> Iterator[tuple[str, bytes]]:
        """The transcript of the round that has just finished (`transcript.write_records` makes a file of it)."""
        round_ = self._rounds[task]
        state, view, bodies = round_.state, round_.view, round_.bodies
        assert state.phase == "done" and view is not None and bodies is not None
        result = convert(self._desk.payload(state.result), Result)
        proposal = convert(self._desk.payload(state.proposal), Proposal)
        yield "trust", self._trust.encode()
        yield "announcement", state.announcement
        yield "roster", state.roster
        yield "joins", self._desk.blob(self._desk.roster_proposal(round_).joins)
        yield "certificate", state.certificate
        yield "survivors", self._desk.blob(proposal.survivors)
        for index in sorted(bodies.complete):
            signed, header = bodies.headers[index]
            yield "header", signed.raw
            yield "body", self._desk.blob(header.body)
        for raw in state.openings:
            opening = self._desk.signed(raw)
            party = party_number(opening.head.sender)
            plain = self._journal.get(f"round/{task}/opening/{party:02d}/{opening.payload['part']:02d}")
            if plain is not None:
                yield "opening", raw
                yield "content", plain
        yield "result", state.result
        yield "sum", self._desk.blob(result.sum)
        yield "model", self._desk.blob(view.manifest.model)
        yield "next", self._desk.blob(result.model)

    # -- inputs ---------------------------------------------------------------------------------------------------

    def receive(self, body: bytes, now: int) -> Step:
        return self._journal.take(self._message(body, now) if peek(body) else self._chunk(body, now))

    def wake(self, now: int) -> Step:
        for round_ in self._rounds.values():
            round_.grace_over = round_.grace_over or now >= round_.grace_until
            if round_.active:
                self._conduct.turn(round_, now)
            if round_.active and now - round_.sent_at >= round_.wait_ms:
                self._conduct.request(round_, now)
            if round_.bodies is not None and round_.state.phase == "upload":
                round_.bodies.fill_slots(now)
        for fetch in list(self._fetches.due(now)):
            self._ask(fetch, now)
        return self._journal.take()

    @property
    def deadline(self) -> int | None:
        times = [self._fetches.deadline]
        for round_ in self._rounds.values():
            if round_.active:
                times += [round_.state.phase_until, round_.sent_at + round_.wait_ms]
                if not round_.grace_over:
                    times.append(round_.grace_until)
        return min((time for time in times if time is not None), default=None)

    # -- messages -------------------------------------------------------------------------------------------------

    def _message(self, raw: bytes, now: int) -> Refused | None:
        signed = open_message(self._trust, raw)
        if isinstance(signed, Refused):
            return signed
        head = signed.head
        round_ = self._rounds.get(head.task)
        if head.to not in ("coordinator", "all"):
            return Refused("message-misplaced", detail=f"to {head.to}")
        if round_ is None:
            return Refused("task-unknown", detail=head.task)
        if head.type == "ask" and head.sender.startswith("party/"):
            return self._on_ask(round_, signed, now)
        if round_.state.number != head.round:
            return Refused("round-stale", detail=f"{head.type} of round {head.round}")
        handler = {
            "offer": self._on_offer,
            "vote": self._on_vote,
            "join": self._on_join,
            "header": self._on_header,
            "ask": self._on_ask,
            "check": self._on_check,
            "opening": self._on_opening,
        }.get(head.type)
        if handler is None:
            return Refused("message-misplaced", detail=head.type)
        return handler(round_, signed, now)

    def _on_offer(self, round_: CoordinatorRound, signed: Signed, now: int) -> Refused | None:
        offer = payload_of(signed, Offer)
        if isinstance(offer, Refused):
            return offer
        if not box_usable(offer.box_key):
            return Refused("offer-malformed", signed.head.sender, "an unusable box key")
        party = party_number(signed.head.sender)
        self._catch_up(round_.base, party, offer.chain)
        if round_.state.phase != "offer" or party in round_.state.offers:
            return None
        round_.change(offers={**round_.state.offers, party: signed.raw})
        self._desk.save(round_)
        self._conduct.turn(round_, now)
        return None

    def _on_vote(self, round_: CoordinatorRound, signed: Signed, now: int) -> Refused | None:
        vote = payload_of(signed, Vote)
        if isinstance(vote, Refused):
            return vote
        state = round_.state
        name, proposed, votes = {
            "manifest": ("manifest_votes", state.manifest, state.manifest_votes),
            "roster": ("roster_votes", state.roster_proposal, state.roster_votes),
            "set": ("set_votes", state.proposal, state.set_votes),
        }[vote.decides]
        party = party_number(signed.head.sender)
        if party in votes:
            first = self._desk.signed(votes[party])
            if first.payload["digest"] != vote.digest:
                return self._desk.evidence(round_, "second-vote", signed.head.sender, first.raw, signed.raw)
            return None
        if not proposed or self._desk.digest(proposed) != vote.digest:
            return Refused("vote-differs", signed.head.sender, vote.decides)
        if vote.decides == "roster":
            assert round_.view is not None
            member = round_.view.member(party)
            revealed = beacon_commitment(vote.beacon, round_.base.name, state.number, party)
            if member is None or revealed != member.beacon_commitment:
                return Refused("beacon-differs", signed.head.sender)
        round_.change(**{name: {**votes, party: signed.raw}})
        self._desk.save(round_)
        self._conduct.turn(round_, now)
        return None

    def _on_join(self, round_: CoordinatorRound, signed: Signed, now: int) -> Refused | None:
        view = round_.view
        if view is None:
            return Refused("round-stale", detail="no manifest yet")
        opened = open_join(view, signed.raw)
        if isinstance(opened, Refused):
            return opened
        device, identity, _, digest = opened
        known = round_.joins.get(device)
        if known is not None:
            same = known[0] == signed.raw
            self._desk.receipt(view, device, digest, "held" if same else "refused", "" if same else "second-join")
            return None if same else Refused("second-join", signed.head.sender)
        if round_.state.phase != "join":
            self._desk.receipt(view, device, digest, "refused", "joining-closed")
            return Refused("joining-closed", detail=device)
        if len(round_.joins) >= round_.base.task.devices_max:
            self._desk.receipt(view, device, digest, "refused", "cohort-full")
            return Refused("cohort-full", detail=device)
        round_.joins[device] = (signed.raw, identity)
        self._journal.put(f"round/{view.name}/join/{device}", signed.raw)
        self._desk.receipt(view, device, digest, "held", "")
        self._journal.event("join", task=view.name, round=view.number, device=device)
        self._conduct.turn(round_, now)
        return None

    def _on_header(self, round_: CoordinatorRound, signed: Signed, now: int) -> Refused | None:
        view, roster, bodies = round_.view, round_.roster, round_.bodies
        if view is None or roster is None or bodies is None:
            return Refused("header-early")
        header = payload_of(signed, Header)
        if isinstance(header, Refused):
            return header
        if header.index >= roster.size or signed.head.sender != f"device/{roster.devices[header.index]}":
            return Refused("header-foreign", detail=signed.head.sender)
        device = roster.devices[header.index]
        if not signed.valid(round_.joins[device][1]):
            return Refused("signature-invalid", detail=signed.head.sender)
        known = bodies.headers.get(header.index)
        if known is not None:
            if known[0].digest != signed.digest:
                return self._desk.evidence(round_, "second-header", signed.head.sender, known[0].raw, signed.raw)
            if header.index in bodies.complete:
                self._desk.receipt(view, device, signed.digest, "complete", "")
            elif round_.state.phase != "upload":
                self._desk.receipt(view, device, signed.digest, "refused", "upload-late")
            return None
        if round_.state.phase != "upload":
            self._desk.receipt(view, device, signed.digest, "refused", "upload-late")
            return Refused("upload-late", detail=device)
        code = header_fault(view, roster, header, packed_size(view.base.segments))
        if code:
            self._desk.receipt(view, device, signed.digest, "refused", code)
            return Refused(code, signed.head.sender)
        if not bodies.accept(signed, header, now):
            # one of the two has copied the other's; which one shows no signature
            self._desk.receipt(view, device, signed.digest, "refused", "header-foreign")
            return Refused("header-foreign", detail=device)
        self._journal.event("header", task=view.name, round=view.number, device=device)
        for fetch in list(self._fetches.due(now)):
            self._ask(fetch, now)
        return None

    def _on_ask(self, round_: CoordinatorRound, signed: Signed, now: int) -> Refused | None:
        ask = payload_of(signed, Ask)
        if isinstance(ask, Refused):
            return ask
        sender = signed.head.sender
        if sender.startswith("device/"):
            join = round_.joins.get(sender.removeprefix("device/"))
            if join is None or not signed.valid(join[1]):
                return Refused("signature-invalid", detail=sender)
        ref = self._desk.served.get(ask.blob)
        if ref is None:
            return Refused("blob-unknown", detail=sender)
        missing = sorted(set(range(ref.count)) - bits_set(ask.have, ref.count))
        self._journal.send_chunks(sender, ask.blob, missing[: ask.window])
        return None

    def _on_check(self, round_: CoordinatorRound, signed: Signed, now: int) -> Refused | None:
        check = payload_of(signed, Check)
        if isinstance(check, Refused):
            return check
        bodies = round_.bodies
        if bodies is None or round_.state.phase not in ("check", "vote", "open"):
            return Refused("round-stale", detail="check")
        party = party_number(signed.head.sender)
        for index in check.missing:
            if index in bodies.headers:
                self._journal.send("header", f"party/{party}", bodies.headers[index][0].raw)
        if check.missing:
            round_.wait_ms = min(round_.wait_ms, RESEND_MS)
            self._conduct.resend_after_relay(round_, party)
            return None
        if round_.state.phase != "check" or party in round_.state.checks:
            return None
        if check.survivors != self._desk.survivors_ref(round_.state.candidate, Candidate).id:
            return Refused("survivors-differ", signed.head.sender)
        round_.change(checks={**round_.state.checks, party: signed.raw})
        self._desk.save(round_)
        self._conduct.turn(round_, now)
        return None

    def _on_opening(self, round_: CoordinatorRound, signed: Signed, now: int) -> Refused | None:
        opening = payload_of(signed, Opening)
        if isinstance(opening, Refused):
            return opening
        state, view = round_.state, round_.view
        if state.phase != "open" or view is None:
            return None if signed.raw in state.openings else Refused("round-stale", detail="opening")
        party = party_number(signed.head.sender)
        if view.member(party) is None or opening.proposal != self._desk.digest(state.proposal):
            return Refused("opening-foreign", signed.head.sender)
        for raw in state.openings:
            first = self._desk.signed(raw)
            if (first.head.sender, first.payload["part"]) == (signed.head.sender, opening.part):
                if first.digest != signed.digest:
                    return self._desk.evidence(round_, "second-opening", signed.head.sender, raw, signed.raw)
                return None
        if opening.part != len(round_.contents.get(party, [])) or not opening.content.sound:
            return Refused("opening-foreign", signed.head.sender)
        round_.change(openings=[*state.openings, signed.raw])
        self._desk.save(round_)
        self._openings[opening.content.id] = (view.name, signed.raw)
        count = opening.content.count
        self._fetches.want(opening.content, signed.head.sender, now, pushed=min(WINDOW, count))
        return None

    # -- chunks ---------------------------------------------------------------------------------------------------

    def _chunk(self, raw: bytes, now: int) -> Refused | None:
        accepted = self._fetches.accept(raw)
        if isinstance(accepted, Refused):
            return accepted
        fetch, write = accepted
        if write is None:
            return None
        self._journal.write([write])
        owner = self._openings.get(fetch.id)
        if owner is not None:
            if fetch.complete:
                return self._opened(self._rounds[owner[0]], owner[1], fetch, now)
            if fetch.outstanding == 0:
                self._ask(fetch, now)
            return None
        round_ = next((r for r in self._rounds.values() if r.bodies is not None and r.bodies.owns(fetch.id)), None)
        assert round_ is not None and round_.bodies is not None and round_.view is not None
        round_.bodies.moved(fetch, now)
        if not fetch.complete:
            if fetch.outstanding == 0:
                self._ask(fetch, now)
            return None
        index = round_.bodies.add(fetch, now)
        assert round_.roster is not None
        device = round_.roster.devices[index]
        self._desk.receipt(round_.view, device, round_.bodies.headers[index][0].digest, "complete", "")
        self._journal.event("upload", task=round_.base.name, round=round_.state.number, device=device)
        self._conduct.turn(round_, now)
        for due in list(self._fetches.due(now)):
            self._ask(due, now)
        return None

    def _opened(self, round_: CoordinatorRound, raw: bytes, fetch: Fetch, now: int) -> Refused | None:
        """An opening's box is all here: look inside."""
        signed = self._desk.signed(raw)
        assert round_.view is not None
        opening = convert(signed.payload, Opening)
        party = party_number(signed.head.sender)
        sealed = read_blob(self._journal, fetch.ref)
        assert sealed is not None
        self._fetches.drop(fetch.id)
        self._openings.pop(fetch.id)
        self._journal.delete_all(f"blob/{fetch.id.hex()}/")
        if round_.state.phase != "open":
            return None  # too late: the result names the openings that it was made from
        info = encode(["blindsum/1 opening", round_.view.digest, opening.proposal, party, opening.part])
        plain = box_open(self._box_private, info, sealed)
        if plain is None or hashlib.sha256(plain).digest() != opening.plain:
            self._desk.fault(round_, signed.head.sender, "opening-unreadable")
            return Refused("opening-unreadable", signed.head.sender)
        try:
            content = convert(decode(plain), OpeningContent)
        except DecodeError:
            self._desk.fault(round_, signed.head.sender, "opening-malformed")
            return Refused("opening-malformed", signed.head.sender)
        self._journal.put(f"round/{round_.base.name}/opening/{party:02d}/{opening.part:02d}", plain)
        round_.contents.setdefault(party, []).append(content)
        round_.wants.pop(party, None)
        self._conduct.turn(round_, now)
        return None

    def _ask(self, fetch: Fetch, now: int) -> None:
        round_ = next((r for r in self._rounds.values() if self._concerns(r, fetch.id)), None)
        if round_ is None:
            self._fetches.drop(fetch.id)
        else:
            self._journal.send("ask", fetch.owner, self._desk.sign(round_, "ask", fetch.owner, fetch.ask(now)))

    def _concerns(self, round_: CoordinatorRound, blob: bytes) -> bool:
        owner = self._openings.get(blob)
        if owner is not None:
            return owner[0] == round_.base.name
        return round_.bodies is not None and round_.bodies.owns(blob)

    def _catch_up(self, base: TaskView, party: int, chain: bytes) -> None:
        """Send a party the results after the last one it has followed."""
        results = [raw for _, raw in self._journal.scan(f"result/{base.name}/")]
        digests = [self._desk.digest(raw) for raw in results]
        if digests and chain != digests[-1]:
            first = digests.index(chain) + 1 if chain in digests else 0
            for raw in results[first:]:
                self._journal.send("result", f"party/{party}", raw)

    def _clear(self, round_: CoordinatorRound) -> None:
        """Delete what a finished round left: joins, headers, bodies, openings, rosters."""
        name = round_.base.name
        _, current = self._desk.chain(round_.base)
        if round_.view is not None and round_.view.manifest.model not in (round_.base.task.model, current):
            self._desk.unserve(name, round_.view.manifest.model)
        if round_.bodies is not None:
            for _, header in round_.bodies.headers.values():
                self._journal.delete_all(f"blob/{header.body.id.hex()}/")
        if round_.state.roster_proposal:
            proposal = self._desk.roster_proposal(round_)
            self._desk.unserve(name, proposal.entries)
            self._desk.unserve(name, proposal.joins)
        for raw in (round_.state.candidate, round_.state.proposal):
            if raw:
                ref = self._desk.survivors_ref(raw, Candidate)
                self._desk.served.pop(ref.id, None)
                self._journal.delete_all(f"blob/{ref.id.hex()}/")
        for raw in round_.state.openings:
            blob = convert(self._desk.payload(raw), Opening).content.id
            self._openings.pop(blob, None)
            self._fetches.drop(blob)
            self._journal.delete_all(f"blob/{blob.hex()}/")
        self._journal.delete_all(f"round/{name}/")

    def _restore(self) -> None:
        for _, raw in self._journal.scan("task/"):
            base = open_task(self._trust, raw)
            assert isinstance(base, TaskView)
            self._bases[base.name] = base
            self._desk.serve(base.task.plan, base.task.model, self._desk.chain(base)[1])
            for _, result in self._journal.scan(f"result/{base.name}/"):
                self._desk.serve(convert(self._desk.payload(result), Result).sum)
        for key, value in self._journal.scan("state/"):
            round_ = CoordinatorRound(self._bases[key.removeprefix("state/")], convert(decode(value), CoordinatorState))
            self._rounds[round_.base.name] = round_
            self._restore_round(round_)

    def _restore_round(self, round_: CoordinatorRound) -> None:
        state, name = round_.state, round_.base.name
        if state.manifest:
            self._conduct.set_manifest(round_, state.manifest)
        if round_.view is not None:
            for _, raw in self._journal.scan(f"round/{name}/join/"):
                opened = open_join(round_.view, raw)
                assert not isinstance(opened, Refused), opened
                round_.joins[opened[0]] = (raw, opened[1])
        if state.roster_proposal:
            proposal = self._desk.roster_proposal(round_)
            self._desk.serve(proposal.joins, proposal.entries)
        if state.roster:
            self._conduct.set_roster(round_)
            assert round_.bodies is not None
            dropped = state.excluded if state.phase in ("vote", "open", "done") else {}
            round_.bodies.restore(open_=state.phase == "upload", excluded=dropped)
        for raw in (state.candidate, state.proposal):
            if raw:
                self._desk.serve(self._desk.survivors_ref(raw, Candidate))
        for key, plain in self._journal.scan(f"round/{name}/opening/"):
            party = int(key.split("/")[3])
            round_.contents.setdefault(party, []).append(convert(decode(plain), OpeningContent))
        for raw in state.openings if round_.active else []:
            opening = convert(self._desk.payload(raw), Opening)
            signed = self._desk.signed(raw)
            if opening.part >= len(round_.contents.get(party_number(signed.head.sender), [])):
                self._openings[opening.content.id] = (name, raw)
                self._fetches.want(opening.content, signed.head.sender, 0)
