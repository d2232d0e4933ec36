"""A party's side of a round (SPEC.md section 8.2).

    has                  accepts                                    gives, at most once a round and stored first
    (nothing)            offer-request                              offer: box key and beacon of this round
    offer                manifest, announcement                     manifest vote
    manifest             roster-proposal (+ joins), roster          roster vote with the beacon
    roster               header, candidate, proposal                check; set vote
    roster               certificate                                opening of the certified set
    opening              want, ask                                  further parts of the same opening
    any                  result, failure                            the next model, recomputed; the round's secrets erased
    any                  rollback                                   the model that the operator names, for the next one

A party answers one manifest, one roster and one survivor set in a round, also across restarts: the vote is written in the step
that sends it. A round number never comes back: a higher offer-request erases what was open below it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from blindsum.protocol.blobs import Fetch
from blindsum.protocol.codec import convert, decode, encode
from blindsum.protocol.envelope import Head, Signed, glance, peek
from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.evidence import contradiction
from blindsum.protocol.keys import BOX_PRIVATE_SIZE, box_keypair, public_of
from blindsum.protocol.machines.allowance import Shares
from blindsum.protocol.machines.memory import Memory
from blindsum.protocol.machines.partyclosing import PartyClosing
from blindsum.protocol.machines.partydesk import PartyDesk
from blindsum.protocol.machines.partyround import PartyRound, PartyState
from blindsum.protocol.machines.partysetup import PartySetup
from blindsum.protocol.machines.step import Step, Store
from blindsum.protocol.masks import Seal
from blindsum.protocol.messages import (
    Failure,
    KeyStep,
    Offer,
    OfferRequest,
    Payload,
)
from blindsum.protocol.partykeys import keys_of, rank
from blindsum.protocol.roster import beacon_commitment
from blindsum.protocol.trust import Trust
from blindsum.protocol.view import (
    TaskView,
    head_misfit,
    open_message,
    open_task,
    payload_of,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["TASKS_MAX", "PartyFloor", "PartyMachine"]

TASKS_MAX: Final = 1000
"""Tasks that a party takes part in."""


OWN_KEY: Final = "own-key"
"""The row with the public key that this party signed its last offer with."""


class PartyFloor(Payload, frozen=True):
    """The least this organisation insists on. `tasks` empty: any task the operator signed. `corrupt_permille`: the share of a
    round's devices that a task must take for sybils, on top of whom `cohort_min` honest ones remain; `roster`: whether a task must
    have one, and with it the second mask layer."""

    cohort_min: int = 2
    corrupt_permille: int = 0
    roster: bool = False
    tasks: tuple[str, ...] = ()


class PartyMachine:
    """Party `number` of the fleet, in any number of tasks at once."""

    def __init__(
        self,
        *,
        number: int,
        key: Ed25519PrivateKey,
        trust: Trust,
        store: Store,
        random: Callable[[int], bytes],
        seal: Seal,
        floor: PartyFloor,
        keys: Sequence[KeyStep] = (),
        threads: int = 1,
        broadcast_key: bytes = b"",
    ) -> None:
        self._number = number
        self._trust = trust
        self._random = random
        self._floor = floor
        self._desk = PartyDesk(number=number, key=key, trust=trust, store=store, broadcast_key=broadcast_key)
        self._setup = PartySetup(self._desk)
        self._closing = PartyClosing(self._desk, seal=seal, threads=threads)
        self._keys, self._public = list(keys), public_of(key)
        self._memory = Memory(number, trust, keys_of(trust, number, keys), self._desk.journal)
        self._journal, self._inbox, self._chain = self._desk.journal, self._desk.inbox, self._desk.chain
        self._bases: dict[str, TaskView] = {}
        self._rounds: dict[str, PartyRound] = {}
        self._shares = Shares()
        self._restore()
        self._change_key()

    # -- inputs ---------------------------------------------------------------------------------------------------

    def receive(self, body: bytes, now: int) -> Step:
        if not peek(body):
            return self._journal.take(self._chunk(body, now))
        head = glance(body)
        if head is None or head.sender in ("coordinator", "operator"):
            return self._journal.take(self._message(body, now))
        if (refused := self._unwanted(head, len(body), now)) is not None:
            return self._journal.take(refused)
        step = self._journal.take(self._message(body, now))
        if not step.writes:
            self._shares.charge(head.sender, now)
        return step

    def wake(self, now: int) -> Step:
        for task, round_ in list(self._rounds.items()):
            if now >= round_.expires_at:
                self._erase(task, "expired")
        for fetch, task in self._inbox.due(now):
            self._ask(task, fetch, now)
        return self._journal.take()

    @property
    def deadline(self) -> int | None:
        times = [self._inbox.deadline, *(round_.expires_at for round_ in self._rounds.values())]
        return min((time for time in times if time is not None), default=None)

    # -- commands -------------------------------------------------------------------------------------------------

    def forget(self, now: int) -> Step:
        """The database was lost, or brought back from a copy: erase every round, and sit out those that may be under way."""
        self._lose(now)
        return self._journal.take()

    def revoke(self, revocations: bytes) -> Step:
        """Go by this revocation list (DER) from now on. Raises BlindsumError "revocations-invalid" or "revocations-stale"."""
        if self._desk.revoked.take(revocations):
            for round_ in self._rounds.values():
                self._closing.drop_revoked(round_)
        return self._journal.take()

    def learn(self, keys: bytes) -> Step:
        """Go by later keys of parties (`parties.cbor`) from now on. Raises BlindsumError "party-keys-invalid"."""
        self._desk.keys.learn(keys)
        return self._journal.take()

    # -- messages -------------------------------------------------------------------------------------------------

    def _unwanted(self, head: Head, size: int, now: int) -> Refused | None:
        """Why a message of `size` bytes with this head, which is not the coordinator's, would be of no use, whoever signed it."""
        round_ = self._rounds.get(head.task)
        if (misfit := head_misfit(self._trust, head, size)) is not None:
            return misfit
        if head.type != "header" or head.to not in ("all", "parties", f"party/{self._number}"):
            return Refused("message-misplaced", detail=f"{head.type} to {head.to}")
        if head.task not in self._bases:
            return Refused("task-unknown", detail=head.task)
        if round_ is None or round_.state.number != head.round:
            return Refused("round-stale", detail=f"{head.type} of round {head.round}")
        if not self._shares.left(head.sender, now):
            return Refused("sender-over-share", detail=head.sender)
        return None

    def _message(self, raw: bytes, now: int) -> Refused | None:
        signed = open_message(self._trust, raw)
        if isinstance(signed, Refused):
            return signed
        head = signed.head
        if head.to not in ("all", "parties", f"party/{self._number}"):
            return Refused("message-misplaced", detail=f"to {head.to}")
        if head.type == "offer-request":
            return self._on_offer_request(signed, now)
        round_ = self._rounds.get(head.task)
        if head.sender == "coordinator" and self._memory.forgotten(signed, self._last(head.task), round_):
            return self._on_forgotten(signed, now)
        if head.task not in self._bases:
            return Refused("task-unknown", detail=head.task)
        if head.type == "result" and head.sender == "coordinator":
            return self._on_result(signed, now)
        if head.type == "rollback":
            return self._chain.roll_back(self._bases[head.task], signed, now)
        if round_ is None or round_.state.number != head.round:
            return Refused("round-stale", detail=f"{head.type} of round {head.round}")
        if head.type == "header":
            return self._closing.on_header(round_, signed)
        handler = {
            "manifest": self._setup.on_manifest,
            "announcement": self._setup.on_announcement,
            "roster-proposal": self._setup.on_roster_proposal,
            "roster": self._setup.on_roster,
            "candidate": self._closing.on_candidate,
            "proposal": self._closing.on_proposal,
            "certificate": self._closing.on_certificate,
            "want": self._closing.on_want,
            "ask": self._closing.on_ask,
            "failure": self._on_failure,
        }.get(head.type)
        if handler is None or head.sender != "coordinator":
            return Refused("message-misplaced", detail=head.type)
        return handler(round_, signed, now)

    def _on_offer_request(self, signed: Signed, now: int) -> Refused | None:
        request = payload_of(signed, OfferRequest)
        if isinstance(request, Refused):
            return request
        task, number = signed.head.task, signed.head.round
        base = self._bases.get(task)
        if base is None or base.raw != request.task:
            opened = self._adopt_task(task, request.task, now)
            if isinstance(opened, Refused):
                return opened
            base = opened
        round_ = self._rounds.get(task)
        if round_ is not None and round_.state.number == number:
            self._journal.send("offer", "coordinator", round_.state.offer)
            return None
        if number <= self._last(task) or number > base.task.rounds_max:
            return Refused("round-stale", detail=f"round {number}")
        if rank(self._desk.keys.steps(self._number)) > rank(self._keys):
            return Refused("key-retired", detail="the operator has given this party another key")
        if self._memory.lost(base, now):
            return Refused("memory-lost", detail=f"round {number} may be one that this party has forgotten")
        if round_ is not None:
            self._erase(task, "superseded")
        box_private, box_public = box_keypair(self._random(BOX_PRIVATE_SIZE))
        beacon = self._random(32)
        offer = Offer(
            box_key=box_public,
            beacon_commitment=beacon_commitment(beacon, task, number, self._number),
            chain=self._chain.head(base)[0],
            keys=self._keys,
        )
        raw = self._desk.sign(task, number, "offer", offer)
        state = PartyState(number=number, since=now, box_private=box_private, beacon=beacon, offer=raw)
        self._rounds[task] = PartyRound(base, state)
        self._journal.put(f"last/{task}", encode(number))
        self._journal.put(OWN_KEY, self._public)
        self._desk.save(self._rounds[task])
        self._journal.send("offer", "coordinator", raw)
        self._journal.event("offered", task=task, round=number)
        return None

    def _on_failure(self, round_: PartyRound, signed: Signed, now: int) -> Refused | None:
        failure = payload_of(signed, Failure)
        if isinstance(failure, Refused):
            return failure
        self._journal.put(f"failed/{signed.head.task}", signed.raw)
        self._erase(signed.head.task, failure.code)
        return None

    def _on_result(self, signed: Signed, now: int) -> Refused | None:
        base, round_ = self._bases[signed.head.task], self._rounds.get(signed.head.task)
        if round_ is not None and round_.state.number == signed.head.round:
            differs = self._closing.on_result(round_, signed)
            if differs is not None:
                return differs
        fault = self._chain.offer(base, signed, now)
        self._settle(base.name)
        self._compare(base.name, signed)
        return fault

    def _compare(self, task: str, result: Signed) -> None:
        """A round that failed has no result. It is followed all the same: who has not heard of the failure does, too."""
        raw = self._journal.get(f"failed/{task}")
        failure = None if raw is None else open_message(self._trust, raw)
        if isinstance(failure, Signed) and (code := contradiction(failure, result)):
            self._journal.accuse(task, result.head.round, code, result.head.sender, failure.raw, result.raw)

    def _settle(self, task: str) -> None:
        """Erase a round once its result is followed."""
        round_ = self._rounds.get(task)
        if round_ is not None and round_.state.number <= self._chain.followed(task):
            self._erase(task, "finished")

    # -- chunks ---------------------------------------------------------------------------------------------------

    def _chunk(self, raw: bytes, now: int) -> Refused | None:
        accepted = self._inbox.accept(raw)
        if accepted is None or isinstance(accepted, Refused):
            return accepted
        fetch, task = accepted
        if not fetch.complete:
            if fetch.outstanding == 0:
                self._ask(task, fetch, now)
            return None
        round_ = self._rounds.get(task)
        waiting = dict(round_.waiting) if round_ is not None else {}
        for name, message in waiting.items():
            assert round_ is not None
            round_.waiting.pop(name, None)
            fault = self._message(message, now)
            if fault is not None:
                return fault
        fault = self._chain.resume(self._bases[task], now)
        self._settle(task)
        return fault

    def _ask(self, task: str, fetch: Fetch, now: int) -> None:
        round_ = self._rounds.get(task)
        number = round_.state.number if round_ is not None else self._last(task)
        self._journal.send("ask", "coordinator", self._desk.sign(task, number, "ask", fetch.ask(now)))

    def _adopt_task(self, task: str, raw: bytes, now: int) -> TaskView | Refused:
        known = self._bases.get(task)
        if known is not None:
            return Refused("task-differs", detail="another record under this name was adopted before")
        if len(self._bases) >= TASKS_MAX:
            return Refused("tasks-too-many", detail=f"{TASKS_MAX} tasks are here")
        base = open_task(self._trust, raw)
        if isinstance(base, Refused):
            return base
        if base.name != task:
            return Refused("message-misplaced", "coordinator", "task of another name")
        if self._floor.tasks and task not in self._floor.tasks:
            return Refused("policy-floor", detail=f"task {task} is not allowed here")
        if base.task.threat.cohort_min < self._floor.cohort_min:
            return Refused("policy-floor", detail=f"cohort {base.task.threat.cohort_min} < {self._floor.cohort_min}")
        if base.task.threat.corrupt_permille < self._floor.corrupt_permille:
            told = f"{base.task.threat.corrupt_permille} permille corrupt < {self._floor.corrupt_permille}"
            return Refused("policy-floor", detail=told)
        if self._floor.roster and not base.has_roster:
            return Refused(
                "policy-floor", detail="a task without a roster has one mask layer; this party insists on two"
            )
        self._bases[task] = base
        self._journal.put(f"task/{task}", raw)
        self._chain.start(base, now)
        return base

    # -- state ----------------------------------------------------------------------------------------------------

    def _last(self, task: str) -> int:
        value = self._journal.get(f"last/{task}")
        return int(decode(value)) if value else 0

    def _erase(self, task: str, why: str) -> None:
        """End a round: every seed, key, sum and message of it goes; that its number is spent stays."""
        round_ = self._rounds.pop(task)
        self._journal.delete(f"state/{task}")
        self._journal.delete_all(f"round/{task}/")
        self._inbox.release_task(task, keep=self._chain.keeps(round_.base))
        self._sweep()
        self._journal.event("round-over", task=task, round=round_.state.number, why=why)

    def _on_forgotten(self, signed: Signed, now: int) -> Refused:
        """The round is never taken up again, and whatever else may be forgotten is sat out."""
        task, number = signed.head.task, signed.head.round
        base = self._bases.get(task)
        if base is None or not self._memory.lost(base, now):
            self._lose(now)
        self._journal.put(f"last/{task}", encode(number))
        return Refused("memory-lost", detail=f"{signed.head.type} of round {number} shows a signature of this party")

    def _lose(self, now: int) -> None:
        self._memory.lose(now)
        for task in list(self._rounds):
            self._erase(task, "memory-lost")
        self._journal.event("memory-lost")

    def _restore(self) -> None:
        for _, raw in self._journal.scan("task/"):
            base = open_task(self._trust, raw)
            assert isinstance(base, TaskView)
            self._bases[base.name] = base
            self._chain.start(base, 0)
        for key, value in self._journal.scan("state/"):
            task = key.removeprefix("state/")
            round_ = PartyRound(self._bases[task], convert(decode(value), PartyState))
            round_.restore(self._journal)
            self._rounds[task] = round_

    def _change_key(self) -> None:
        """Rounds begun with another key are left: this party says nothing more in them, neither with that key nor with this one.
        Raises BlindsumError "kit-incomplete" where the key is one that this party has given up."""
        if self._desk.keys.take(self._number, self._keys) is not None:
            raise BlindsumError(
                "kit-incomplete", f"key.pem of party {self._number} is not the latest: it has been replaced"
            )
        before = self._journal.get(OWN_KEY)
        for task in list(self._rounds) if before not in (None, self._public) else ():
            self._erase(task, "key-changed")

    def _sweep(self) -> None:
        """Delete the blobs that nobody keeps or waits for any more, also those that an earlier life had begun to fetch."""
        keep = self._inbox.blobs
        keep.update(blob for base in self._bases.values() for blob in self._chain.keeps(base))
        for round_ in self._rounds.values():
            keep.update(self._desk.opening(raw).content.id for raw in round_.state.openings)
            if round_.state.roster_proposal:
                keep.add(self._desk.joins(round_).id)
        for key in list(self._journal.keys("blob/")):
            if bytes.fromhex(key.split("/")[1]) not in keep:
                self._journal.delete(key)
