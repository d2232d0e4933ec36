"""What the coordinator takes from devices and parties, message by message (SPEC.md section 8.3)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from blindsum.protocol.arrivals import Arrival, Arrivals, admit
from blindsum.protocol.blobs import RESEND_MS, WINDOW, Fetch, bits_set, read_blob
from blindsum.protocol.codec import DecodeError, convert, decode, encode
from blindsum.protocol.eligibility import place_of
from blindsum.protocol.envelope import Head, Signed, is_name
from blindsum.protocol.errors import Refused
from blindsum.protocol.keys import box_open, box_usable
from blindsum.protocol.machines.allowance import Allowance
from blindsum.protocol.machines.claims import arrived, expected
from blindsum.protocol.machines.conduct import Conduct
from blindsum.protocol.machines.coordinatorround import CoordinatorRound, Heard
from blindsum.protocol.machines.desk import Desk
from blindsum.protocol.masks import header_fault
from blindsum.protocol.messages import (
    Ask,
    Candidate,
    Check,
    Join,
    Offer,
    Opening,
    OpeningContent,
    Vote,
)
from blindsum.protocol.revocation import certificate_serial
from blindsum.protocol.ring import packed_size
from blindsum.protocol.roster import beacon_commitment, open_join
from blindsum.protocol.trust import party_number
from blindsum.protocol.versions import UPGRADE_REQUIRED, foreign
from blindsum.protocol.view import RoundView, TaskView, opening_size_max, payload_of

__all__ = ["JOINS_PER_S", "RELAYS_MAX", "Intake"]

JOINS_PER_S: Final = 500
"""Joins of a task that are looked at and come to nothing, a second, beside one for each device it may have: a certificate takes
0.2 ms to check."""
RELAYS_MAX: Final = 16
"""How often, in all, a party may be sent the headers of a round that it lacks, and a device the blobs that it asks for."""
UPGRADES_PER_S: Final = 50
"""Devices of another protocol version that are told so, a second; anybody can make such a message."""
AGAIN_MS: Final = RESEND_MS // 2
"""A message that is said again sooner than this after it was answered is not answered: nobody honest is in such haste."""


class Intake:
    """Handlers of everything that is not a command. `openings`: blob id to (task, signed opening) of boxes on their way."""

    def __init__(
        self, desk: Desk, conduct: Conduct, rounds: Mapping[str, CoordinatorRound], *, box_private: bytes
    ) -> None:
        self._desk = desk
        self._conduct = conduct
        self._rounds = rounds
        self._box_private = box_private
        self.openings: dict[bytes, tuple[str, bytes]] = {}
        self._joins: dict[str, Allowance] = {}
        self._upgrades = Allowance(burst=20 * UPGRADES_PER_S, per_s=UPGRADES_PER_S, now=0)

    def heard(self, round_: CoordinatorRound, head: Head, raw: bytes) -> Heard | None:
        """What `raw` was when it came before, byte for byte, and was taken."""
        if head.type not in ("join", "header"):
            return None
        heard = round_.heard.get(hashlib.sha256(raw).digest())
        return heard if heard is not None and (heard.device in round_.joins or not round_.base.has_roster) else None

    def on_again(self, round_: CoordinatorRound, heard: Heard, now: int) -> Refused | None:
        """A join or header that was taken is here once more: its receipt may have been lost."""
        if abs(now - heard.at) < AGAIN_MS:
            return Refused("message-repeated", detail=heard.device)
        heard.at = now
        view, bodies = round_.view, round_.bodies
        assert view is not None
        if heard.index < 0:
            self._desk.receipt(view, heard.device, heard.digest, "held", "")
        elif bodies is not None and heard.index in bodies.complete:
            self._desk.receipt(view, heard.device, heard.digest, "complete", "")
        elif round_.state.phase != "upload":
            self._desk.receipt(view, heard.device, heard.digest, "refused", "upload-late")
        return None

    def on_foreign(self, raw: bytes, now: int) -> Refused | None:
        """A device that speaks another version is told so in this one. (Its signature tells nothing: keys come with joins.)"""
        found = foreign(raw)
        if found is None or found.fleet != self._desk.trust.fleet or not found.sender.startswith("device/"):
            return None
        device, round_ = found.sender.removeprefix("device/"), self._rounds.get(found.task)
        if not is_name(device) or round_ is None or round_.view is None:
            return None
        if self._upgrades.take(now):
            self._desk.receipt(round_.view, device, found.digest, "refused", UPGRADE_REQUIRED)
        return Refused(UPGRADE_REQUIRED, detail=f"{found.sender} speaks version {found.version}")

    def on_offer(self, round_: CoordinatorRound, signed: Signed, now: int) -> Refused | None:
        offer = payload_of(signed, Offer)
        if isinstance(offer, Refused):
            return offer
        if not box_usable(offer.box_key):
            return self._desk.evidence(round_, "offer-malformed", signed.head.sender, signed.raw, b"")
        party = party_number(signed.head.sender)
        retired = self._desk.keys.take(party, offer.keys)
        if retired is not None:
            return retired
        self._catch_up(round_.base, party, offer.chain)
        known = round_.state.offers.get(party)
        if known is not None and self._desk.digest(known) != signed.digest:
            return self._desk.evidence(round_, "second-offer", signed.head.sender, known, signed.raw)
        if round_.state.phase != "offer" or known is not None:
            return None
        round_.change(offers={**round_.state.offers, party: signed.raw})
        self._desk.save(round_)
        self._conduct.turn(round_, now)
        return None

    def on_vote(self, round_: CoordinatorRound, signed: Signed, now: int) -> Refused | None:
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
        assert round_.view is not None
        member = round_.view.member(party)
        if member is None:
            return Refused("vote-differs", detail=f"{signed.head.sender} has no part in this round")
        if vote.decides == "roster":
            revealed = beacon_commitment(vote.beacon, round_.base.name, state.number, party)
            if revealed != member.beacon_commitment:
                offer = state.offers[party]
                return self._desk.evidence(round_, "beacon-differs", signed.head.sender, offer, signed.raw)
        round_.change(**{name: {**votes, party: signed.raw}})
        self._desk.save(round_)
        self._conduct.turn(round_, now)
        return None

    def on_join(self, round_: CoordinatorRound, signed: Signed, now: int) -> Refused | None:
        view = round_.view
        if view is None:
            return Refused("round-stale", detail="no manifest yet")
        if not self._allowed(view, now):
            return Refused("joins-too-many", detail=signed.head.sender)
        opened = open_join(view, signed.raw)
        if isinstance(opened, Refused) and opened.code == "join-malformed":
            return self._desk.evidence(round_, opened.code, opened.culprit, signed.raw, b"")
        if isinstance(opened, Refused):
            return opened
        device, identity, join, digest = opened
        known = round_.joins.get(device)
        if known is not None:
            same = self._desk.digest(known[0]) == digest
            self._desk.receipt(view, device, digest, "held" if same else "refused", "" if same else "second-join")
            if same:
                return None
            return self._desk.evidence(round_, "second-join", signed.head.sender, known[0], signed.raw)
        if round_.state.phase != "join":
            self._desk.receipt(view, device, digest, "refused", "joining-closed")
            return Refused("joining-closed", detail=device)
        if certificate_serial(join.certificate) in self._desk.revoked.current.serials:
            self._desk.receipt(view, device, digest, "refused", "certificate-revoked")
            return Refused("certificate-revoked", detail=device)
        if place_of(device, view.name) >= self._desk.stage(view.name):
            self._desk.receipt(view, device, digest, "refused", "not-staged")
            return Refused("not-staged", detail=device)
        if len(round_.joins) >= round_.base.task.devices_max:
            self._desk.receipt(view, device, digest, "refused", "cohort-full")
            return Refused("cohort-full", detail=device)
        self._joins[view.name].give_back()
        round_.joins[device] = (signed.raw, identity)
        round_.heard[hashlib.sha256(signed.raw).digest()] = Heard(device, digest, -1, now)
        self._desk.journal.put(f"round/{view.name}/join/{device}", signed.raw)
        self._desk.receipt(view, device, digest, "held", "")
        self._desk.journal.event("join", task=view.name, round=view.number, device=device)
        self._conduct.turn(round_, now)
        return None

    def drop_revoked(self, round_: CoordinatorRound) -> None:
        """Take back the joins of a round, where it has no roster yet, whose certificates have been revoked meanwhile."""
        view = round_.view
        if view is None or round_.state.phase != "join":
            return
        for device, (raw, _) in list(round_.joins.items()):
            signed = self._desk.signed(raw)
            if certificate_serial(convert(signed.payload, Join).certificate) in self._desk.revoked.current.serials:
                del round_.joins[device]
                self._desk.journal.delete(f"round/{view.name}/join/{device}")
                self._desk.receipt(view, device, signed.digest, "refused", "certificate-revoked")

    def on_header(self, round_: CoordinatorRound, signed: Signed, now: int) -> Refused | None:
        view, roster, bodies = round_.view, round_.roster, round_.bodies
        if view is None or roster is None or bodies is None:
            return Refused("header-early")
        if not isinstance(roster, Arrivals):
            found = expected(round_, roster, signed)
        elif self._allowed(view, now):
            found = arrived(self._desk, view, roster, signed, held=len(bodies.headers))
        else:
            return Refused("joins-too-many", detail=signed.head.sender)
        if isinstance(found, Refused):
            return found
        device, header = found.device, found.header
        index = roster.numbers.get(device) if isinstance(roster, Arrivals) else header.index
        known = None if index is None else bodies.headers.get(index)
        if index is not None and known is not None:
            if known.digest != signed.digest:
                return self._desk.evidence(round_, "second-header", signed.head.sender, bodies.raw(index), signed.raw)
            if index in bodies.complete:
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
            if header.manifest != view.digest and round_.base.has_roster:
                return self._desk.evidence(round_, code, signed.head.sender, round_.joins[device][0], signed.raw)
            return Refused(code, signed.head.sender)
        if bodies.owns(header.body.id):
            # one of the two has copied the other's; which one shows no signature
            self._desk.receipt(view, device, signed.digest, "refused", "header-foreign")
            return Refused("header-foreign", detail=device)
        if isinstance(roster, Arrivals):
            assert isinstance(found, Arrival)
            header = admit(roster, found)
            self._joins[view.name].give_back()
        bodies.accept(signed, header, now)
        round_.heard[hashlib.sha256(signed.raw).digest()] = Heard(device, signed.digest, header.index, now)
        self._desk.journal.send("header", "parties", signed.raw)
        self._desk.journal.event("header", task=view.name, round=view.number, device=device)
        for fetch in list(self._desk.fetches.due(now)):
            self.ask(fetch, now)
        return None

    def _allowed(self, view: RoundView, now: int) -> bool:
        """Whether one more certificate, or ask that shows none, may be looked at."""
        limit = view.task.devices_max + JOINS_PER_S
        allowance = self._joins.setdefault(view.name, Allowance(burst=limit, per_s=JOINS_PER_S, now=now))
        return allowance.take(now)

    def on_ask(self, round_: CoordinatorRound, signed: Signed, now: int) -> Refused | None:
        ask = payload_of(signed, Ask)
        if isinstance(ask, Refused):
            return ask
        sender = signed.head.sender
        if sender.startswith("device/") and not round_.base.has_roster:
            # it has shown no key yet; what it asks for is everybody's
            if round_.view is None or not self._allowed(round_.view, now):
                return Refused("joins-too-many", detail=sender)
        elif sender.startswith("device/"):
            join = round_.joins.get(sender.removeprefix("device/"))
            if join is None or not signed.valid(join[1]):
                return Refused("signature-invalid", detail=sender)
        ref = self._desk.served.get(ask.blob)
        if ref is None:
            return Refused("blob-unknown", detail=sender)
        missing = sorted(set(range(ref.count)) - bits_set(ask.have, ref.count))[: ask.window]
        if sender.startswith("device/"):
            known, devices = (sender, 1) if round_.base.has_roster else ("", round_.base.task.devices_max)
            served = round_.served.get(known, 0) + len(missing)
            if served > RELAYS_MAX * devices * sum(each.count for each in self._desk.served.values()):
                return Refused("relays-too-many", detail=sender)  # no fault of it where what it is sent gets lost
            round_.served[known] = served
        self._desk.journal.send_chunks(sender, ask.blob, missing)
        return None

    def on_check(self, round_: CoordinatorRound, signed: Signed, now: int) -> Refused | None:
        check = payload_of(signed, Check)
        if isinstance(check, Refused):
            return check
        bodies = round_.bodies
        if bodies is None or round_.state.phase not in ("check", "vote", "open"):
            return Refused("message-misplaced" if round_.active else "round-stale", detail="check")
        party = party_number(signed.head.sender)
        missing = set(check.missing)
        if missing and not round_.base.has_roster:
            refs = [
                self._desk.survivors_ref(raw, Candidate)
                for raw in (round_.state.candidate, round_.state.proposal)
                if raw
            ]
            listed = [each for ref in refs if ref.id == check.survivors for each in self._desk.listed(round_, ref)]
            missing = {each.here for each in listed if each.number in missing and each.here is not None}
        wanted = sorted(bodies.headers.keys() & missing)
        assert round_.roster is not None
        relayed = round_.relayed.get(party, 0) + len(wanted)
        if relayed > RELAYS_MAX * round_.roster.capacity:
            return Refused("relays-too-many", detail=signed.head.sender)
        round_.relayed[party] = relayed
        for index in wanted:
            self._desk.journal.send("header", f"party/{party}", bodies.raw(index))
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

    def on_opening(self, round_: CoordinatorRound, signed: Signed, now: int) -> Refused | None:
        opening = payload_of(signed, Opening)
        if isinstance(opening, Refused):
            return opening
        state, view = round_.state, round_.view
        if state.phase != "open" or view is None:
            if signed.raw in state.openings:
                return None
            return Refused("message-misplaced" if round_.active else "round-stale", detail="opening")
        party = party_number(signed.head.sender)
        if view.member(party) is None or opening.proposal != self._desk.digest(state.proposal):
            if party in state.set_votes and opening.proposal != self._desk.digest(state.proposal):
                return self._desk.evidence(
                    round_, "opening-foreign", signed.head.sender, state.set_votes[party], signed.raw
                )
            return Refused("opening-foreign", signed.head.sender)
        for raw in state.openings:
            first = self._desk.signed(raw)
            if (first.head.sender, first.payload["part"]) == (signed.head.sender, opening.part):
                if first.digest != signed.digest:
                    return self._desk.evidence(round_, "second-opening", signed.head.sender, raw, signed.raw)
                return None
        if opening.part != len(round_.contents.get(party, [])) or not opening.content.sound:
            return Refused("opening-foreign", signed.head.sender)
        if opening.content.size > 2 * opening_size_max(round_.base):
            return Refused("opening-malformed", signed.head.sender, f"{opening.content.size} bytes")
        round_.change(openings=[*state.openings, signed.raw])
        self._desk.save(round_)
        self.openings[opening.content.id] = (view.name, signed.raw)
        count = opening.content.count
        self._desk.fetches.want(opening.content, signed.head.sender, now, pushed=min(WINDOW, count))
        return None

    def chunk(self, raw: bytes, now: int) -> Refused | None:
        accepted = self._desk.fetches.accept(raw)
        if isinstance(accepted, Refused):
            return accepted
        fetch, write = accepted
        if write is None:
            return None
        self._desk.journal.write([write])
        if (owner := self.openings.get(fetch.id)) is not None:
            if fetch.complete:
                return self._opened(self._rounds[owner[0]], owner[1], fetch, now)
            if fetch.outstanding == 0:
                self.ask(fetch, now)
            return None
        self._moved(fetch, now)
        return None

    def look(self, fetch: Fetch, now: int) -> bool:
        """Take note of what others have stored of a body; whether that was anything."""
        if found := fetch.id not in self.openings and (self._desk.fetches.look(fetch) or fetch.complete):
            self._moved(fetch, now)
        return found

    def _moved(self, fetch: Fetch, now: int) -> None:
        """Chunks of a body have come."""
        round_ = next((r for r in self._rounds.values() if r.bodies is not None and r.bodies.owns(fetch.id)), None)
        assert round_ is not None and round_.bodies is not None and round_.view is not None
        round_.bodies.moved(fetch, now)
        if not fetch.complete:
            if fetch.outstanding == 0:
                self.ask(fetch, now)
            return
        index = round_.bodies.add(fetch, now)
        assert round_.roster is not None
        device = round_.roster.devices[index]
        self._desk.receipt(round_.view, device, round_.bodies.headers[index].digest, "complete", "")
        self._desk.journal.event("upload", task=round_.base.name, round=round_.state.number, device=device)
        self._conduct.turn(round_, now)
        for due in list(self._desk.fetches.due(now)):
            self.ask(due, now)

    def _opened(self, round_: CoordinatorRound, raw: bytes, fetch: Fetch, now: int) -> Refused | None:
        """An opening's box is all here: look inside."""
        signed = self._desk.signed(raw)
        assert round_.view is not None
        opening = convert(signed.payload, Opening)
        party = party_number(signed.head.sender)
        sealed = read_blob(self._desk.journal, fetch.ref)
        assert sealed is not None
        self._desk.fetches.drop(fetch.id)
        self.openings.pop(fetch.id)
        self._desk.journal.delete_all(f"blob/{fetch.id.hex()}/")
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
        self._desk.journal.put(f"round/{round_.base.name}/opening/{party:02d}/{opening.part:02d}", plain)
        round_.contents.setdefault(party, []).append(content)
        round_.wants.pop(party, None)
        self._conduct.turn(round_, now)
        return None

    def ask(self, fetch: Fetch, now: int) -> None:
        round_ = next((r for r in self._rounds.values() if self._concerns(r, fetch.id)), None)
        if round_ is None:
            self._desk.fetches.drop(fetch.id)
        else:
            self._desk.journal.send("ask", fetch.owner, self._desk.sign(round_, "ask", fetch.owner, fetch.ask(now)))

    def _concerns(self, round_: CoordinatorRound, blob: bytes) -> bool:
        if (owner := self.openings.get(blob)) is not None:
            return owner[0] == round_.base.name
        return round_.bodies is not None and round_.bodies.owns(blob)

    def _catch_up(self, base: TaskView, party: int, chain: bytes) -> None:
        """Send a party the links after the last one it has followed: a rollback takes the place of all before it."""
        if chain == self._desk.chain(base)[0]:
            return
        links = [("result", raw) for _, raw in self._desk.journal.scan(f"result/{base.name}/")]
        rollback = self._desk.journal.get(f"rollback/{base.name}")
        if rollback is not None:
            since = self._desk.signed(rollback).head.round
            links = [link for link in links if self._desk.signed(link[1]).head.round > since]
            links.insert(0, ("rollback", rollback))
        digests = [self._desk.digest(raw) for _, raw in links]
        for kind, raw in links[digests.index(chain) + 1 if chain in digests else 0 :]:
            self._desk.journal.send(kind, f"party/{party}", raw)
