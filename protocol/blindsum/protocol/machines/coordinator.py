"""The coordinator's side of a round (SPEC.md section 8.3).

Trusted for progress, never for privacy. It may die at any step: what it asked is asked again from the stored state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from blindsum.protocol.arrivals import Arrival, admit, open_arrival
from blindsum.protocol.blobs import write_blob
from blindsum.protocol.codec import convert, decode, encode
from blindsum.protocol.envelope import Head, glance, peek
from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.machines.account import failed_records, finished_records
from blindsum.protocol.machines.allowance import Shares
from blindsum.protocol.machines.bodies import Totals
from blindsum.protocol.machines.conduct import Conduct
from blindsum.protocol.machines.coordinatorround import CoordinatorRound, CoordinatorState
from blindsum.protocol.machines.desk import Desk
from blindsum.protocol.machines.intake import Intake
from blindsum.protocol.machines.step import Step, Store, Write
from blindsum.protocol.messages import (
    Candidate,
    Opening,
    OpeningContent,
    Result,
    Rollback,
    chunk_key,
    chunks_of,
)
from blindsum.protocol.roster import (
    open_join,
)
from blindsum.protocol.trust import Trust, party_number
from blindsum.protocol.versions import upgrade_required
from blindsum.protocol.view import TaskView, head_misfit, open_message, open_task, payload_of, rollback_fits

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["CoordinatorMachine"]


class CoordinatorMachine:
    """The coordinator of any number of tasks, one round at a time in each. With `totals` others may store chunks of bodies in its
    store beside it (`stored` tells it so) and add bodies up for it."""

    def __init__(
        self,
        *,
        key: Ed25519PrivateKey,
        box_private: bytes,
        trust: Trust,
        store: Store,
        random: Callable[[int], bytes],
        threads: int = 1,
        totals: Totals | None = None,
    ) -> None:
        self._trust = trust
        self._desk = Desk(key=key, trust=trust, store=store, random=random)
        self._shared = totals is not None
        self._conduct = Conduct(self._desk, threads=threads, totals=totals)
        self._journal, self._fetches = self._desk.journal, self._desk.fetches
        self._bases: dict[str, TaskView] = {}
        self._rounds: dict[str, CoordinatorRound] = {}
        self._shares = Shares()
        self._intake = Intake(self._desk, self._conduct, self._rounds, box_private=box_private)
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

    def stage(self, task: str, permille: int) -> Step:
        """From now on let devices with a place below `permille` join, and no others."""
        self._journal.put(f"stage/{task}", encode(permille))
        return self._journal.take()

    def roll_back(self, raw: bytes, *, model: bytes) -> Step:
        """Go on from the model that the operator's rollback names; one that was taken before changes nothing. Raises BlindsumError
        "rollback-refused" where it is not the operator's, not for the last link of the chain or not of this model, or
        "round-active"."""
        signed = open_message(self._trust, raw)
        if isinstance(signed, Refused) or signed.head.type != "rollback" or signed.head.task not in self._bases:
            raise BlindsumError("rollback-refused", "no rollback of a task here, signed by the operator")
        base, rollback = self._bases[signed.head.task], payload_of(signed, Rollback)
        if isinstance(rollback, Refused) or not rollback_fits(base, rollback):
            raise BlindsumError("rollback-refused", f"it does not fit the task {base.name}")
        if self._journal.get(f"rollback/{base.name}") == raw:
            return self._journal.take()
        round_ = self._rounds.get(base.name)
        if round_ is not None and round_.active:
            raise BlindsumError("round-active", f"round {round_.state.number} of {base.name}")
        previous, old, state = self._desk.chain(base)
        if rollback.previous != previous:
            raise BlindsumError("rollback-refused", f"it follows round {signed.head.round}, and others have come since")
        made, chunks = chunks_of(model, base.chunk_size)
        if made != rollback.model:
            raise BlindsumError("rollback-refused", "the model beside it is not the one that the operator named")
        kept = {
            ref.id for ref in (base.task.model, made, *([round_.view.manifest.model] if round_ and round_.view else []))
        }
        if old.id not in kept:
            self._desk.unserve(base.name, old)
        self._journal.delete_all(f"blob/{state.hex()}/")
        self._journal.write(write_blob(made, chunks))
        self._desk.serve(made)
        self._journal.put(f"chain/{base.name}", encode([signed.digest, made, base.first_state]))
        self._journal.put(f"rollback/{base.name}", raw)
        for party in range(1, base.committee.parties + 1):
            self._journal.send("rollback", f"party/{party}", raw)
        self._journal.event("rolled-back", task=base.name, round=signed.head.round, model=made.id.hex())
        return self._journal.take()

    def start(self, task: str, now: int) -> Step:
        """Begin the next round of a task. What the last one left (transcript rows, bodies) is deleted. Raises BlindsumError
        "task-invalid", "round-active" or "task-finished"."""
        base = self._bases.get(task)
        if base is None:
            raise BlindsumError("task-invalid", f"no task {task} here")
        old = self._last_round(task)
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

    def clear(self, task: str) -> Step:
        """Delete what the last round of a task left already now. Raises BlindsumError "round-active"."""
        old = self._last_round(task)
        if old is not None:
            self._clear(old)
            del self._rounds[task]
            self._journal.delete(f"state/{task}")
        return self._journal.take()

    def revoke(self, revocations: bytes) -> Step:
        """Go by this revocation list (DER) from now on. Raises BlindsumError "revocations-invalid" or "revocations-stale"."""
        if self._desk.revoked.take(revocations):
            for round_ in self._rounds.values():
                self._intake.drop_revoked(round_)
        return self._journal.take()

    def learn(self, keys: bytes) -> Step:
        """Go by later keys of parties (`parties.cbor`) from now on. Raises BlindsumError "party-keys-invalid"."""
        self._desk.keys.learn(keys)
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
        """The transcript of the round that is just over, finished or failed (`transcript.write_records` makes a file of it)."""
        round_ = self._rounds[task]
        records = finished_records if round_.state.phase == "done" else failed_records
        return records(self._desk, round_)

    # -- inputs ---------------------------------------------------------------------------------------------------

    def receive(self, body: bytes, now: int) -> Step:
        if not peek(body):
            return self._journal.take(self._intake.chunk(body, now))
        head = glance(body)
        if head is None:
            return self._journal.take(self._unreadable(body, now))
        if (refused := self._unwanted(head, len(body), now)) is not None:
            return self._journal.take(refused)
        if (heard := self._intake.heard(self._rounds[head.task], head, body)) is not None:
            return self._journal.take(self._intake.on_again(self._rounds[head.task], heard, now))
        step = self._journal.take(self._message(body, now))
        if not step.writes:
            self._shares.charge(head.sender, now)
        return step

    def stored(self, blobs: Iterable[bytes], now: int) -> Step:
        """Somebody else has stored chunks of these blobs."""
        for blob in blobs:
            if (fetch := self._fetches.get(blob)) is not None:
                self._intake.look(fetch, now)
        return self._journal.take()

    def wake(self, now: int) -> Step:
        for round_ in self._rounds.values():
            round_.grace_over = round_.grace_over or now >= round_.grace_until
            if round_.active:
                self._conduct.turn(round_, now)
            if round_.active and now - round_.sent_at >= round_.wait_ms:
                self._conduct.request(round_, now)
            if round_.bodies is not None and round_.state.phase == "upload":
                round_.bodies.fill_slots(now)
        for fetch in list(self._fetches.due(now, whole=self._shared)):
            if self._shared and self._fetches.get(fetch.id) is fetch and self._intake.look(fetch, now):
                continue
            if not fetch.complete:
                self._intake.ask(fetch, now)
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

    def _unreadable(self, raw: bytes, now: int) -> Refused:
        refused = open_message(self._trust, raw)
        assert isinstance(refused, Refused)
        if refused.code != "message-version":
            return refused
        return self._intake.on_foreign(raw, now) or upgrade_required(self._trust, raw) or refused

    def _unwanted(self, head: Head, size: int, now: int) -> Refused | None:
        """Why a message of `size` bytes with this head would be of no use, whoever signed it."""
        round_ = self._rounds.get(head.task)
        if (misfit := head_misfit(self._trust, head, size)) is not None:
            return misfit
        if head.to not in ("coordinator", "all"):
            return Refused("message-misplaced", detail=f"to {head.to}")
        if round_ is None:
            return Refused("task-unknown", detail=head.task)
        if round_.state.number != head.round and not (head.type == "ask" and head.sender.startswith("party/")):
            return Refused("round-stale", detail=f"{head.type} of round {head.round}")
        if not self._shares.left(head.sender, now):
            return Refused("sender-over-share", detail=head.sender)
        return None

    def _message(self, raw: bytes, now: int) -> Refused | None:
        signed = open_message(self._desk.keys.trust, raw)
        if isinstance(signed, Refused):
            return (signed.code == "key-retired" and self._desk.retired(self._rounds, raw)) or signed
        head, round_ = signed.head, self._rounds[signed.head.task]
        handler = {
            "offer": self._intake.on_offer,
            "vote": self._intake.on_vote,
            "join": self._intake.on_join,
            "header": self._intake.on_header,
            "ask": self._intake.on_ask,
            "check": self._intake.on_check,
            "opening": self._intake.on_opening,
        }.get(head.type)
        if handler is None:
            return Refused("message-misplaced", detail=head.type)
        return handler(round_, signed, now)

    def _last_round(self, task: str) -> CoordinatorRound | None:
        """The last round of a task, which must be over."""
        last = self._rounds.get(task)
        if last is not None and last.active:
            raise BlindsumError("round-active", f"round {last.state.number} of {task}")
        return last

    def _clear(self, round_: CoordinatorRound) -> None:
        """Delete what a finished round left: joins, headers, bodies, openings, rosters."""
        name = round_.base.name
        _, current, state = self._desk.chain(round_.base)
        if round_.view is not None and round_.view.manifest.model not in (round_.base.task.model, current):
            self._desk.unserve(name, round_.view.manifest.model)
        if round_.view is not None and round_.view.manifest.state != state:
            self._journal.delete_all(f"blob/{round_.view.manifest.state.hex()}/")
        if round_.bodies is not None:
            for header in round_.bodies.headers.values():
                self._journal.write(Write(chunk_key(header.body.id, part), None) for part in range(header.body.count))
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
            self._intake.openings.pop(blob, None)
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
        elif state.announcement and not round_.base.has_roster:
            arrivals = self._conduct.set_arrivals(round_)
            for _, raw in self._journal.scan(f"round/{name}/header/"):
                assert round_.view is not None
                arrival = open_arrival(round_.view, self._desk.signed(raw))
                assert isinstance(arrival, Arrival)
                admit(arrivals, arrival)
        if round_.bodies is not None:
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
                self._intake.openings[opening.content.id] = (name, raw)
                self._fetches.want(opening.content, signed.head.sender, 0)
