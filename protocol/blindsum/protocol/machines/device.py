"""The device's side of a round (SPEC.md section 8.1).

    phase       accepts                         leaves by
    (none)      announcement                    join sent -> joined
    joined      receipt, roster, chunk          roster, own entry and blobs checked -> training
    training    chunk; command upload, keep     upload stored as spent -> uploading
    uploading   ask, receipt                    receipt "complete" -> uploaded
    uploaded    result, failure                 -> (none)

A newer announcement, a failure or the manifest's expiry leaves any phase. Everything else is refused. A round number is
spent, durably and for ever, in the same step that makes the upload or leaves the round: no key masks two vectors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from msgspec import UNSET
from msgspec.structs import replace

from blindsum.protocol.blobs import RESEND_MS, Fetches, bits_set, read_blob, write_blob
from blindsum.protocol.codec import decode, encode
from blindsum.protocol.envelope import Signed, message_digest, peek
from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.keys import SEED_SIZE, edge_private, public_of
from blindsum.protocol.machines.deviceround import (
    DeviceIdentity,
    DeviceRound,
    DeviceState,
    Floor,
    announcement_fault,
    body_is_pushed,
    open_announcement,
    open_until,
    read_state,
    sign_message,
    state_writes,
)
from blindsum.protocol.machines.following import Following
from blindsum.protocol.machines.journal import Journal
from blindsum.protocol.machines.late import LateUpdate, LateUpdates
from blindsum.protocol.machines.step import Step, Store
from blindsum.protocol.masks import Seal, mask_upload
from blindsum.protocol.messages import Ask, BlobRef, Failure, Join, Receipt, Result
from blindsum.protocol.trust import Trust
from blindsum.protocol.versions import upgrade_required
from blindsum.protocol.view import CLOCK_SKEW_MAX_MS, RoundView, open_message, payload_of

__all__ = ["DeviceIdentity", "DeviceMachine", "Floor"]


class DeviceMachine:
    """One device in any number of tasks. `willing(view)` says "" or why it does not take part now (it is asked again at each
    announcement, which coordinators repeat). Where `follow(view)` holds, the model of a round that it declines is fetched all the
    same, and told as the event "model"."""

    def __init__(
        self,
        *,
        identity: DeviceIdentity,
        trust: Trust,
        tasks: frozenset[str],
        store: Store,
        random: Callable[[int], bytes],
        seal: Seal,
        floor: Floor,
        willing: Callable[[RoundView], str],
        broadcast_key: bytes = b"",
        follow: Callable[[RoundView], bool] = lambda _view: False,
    ) -> None:
        self._identity = identity
        self._trust = trust
        self._tasks = tasks
        self._random = random
        self._seal = seal
        self._floor = floor
        self._willing = willing
        self._journal = Journal(store)
        self._fetches = Fetches(self._journal, broadcast_key)
        self._follow, self.following = follow, Following(self._journal, self._fetches)
        self.late = LateUpdates(self._journal)
        self._declined: dict[str, Signed] = {}
        self._rounds: dict[str, DeviceRound] = {}
        self._restore()

    # -- inputs ---------------------------------------------------------------------------------------------------

    def receive(self, body: bytes, now: int) -> Step:
        if self.knows(body):
            return self._journal.take()
        return self._journal.take(self._message(body, now) if peek(body) else self._chunk(body, now))

    def knows(self, body: bytes) -> bool:
        """Whether it brought a round as far as that is: coordinators repeat such messages, and nothing comes of copies."""
        return True in [each.knows(body) for each in self._rounds.values()]

    @property
    def known(self) -> list[bytes]:
        """The messages that it `knows`, an announcement first."""
        bodies = [body for each in self._rounds.values() for body in (each.state.announcement, each.state.roster)]
        return [body for body in bodies if body]

    def wake(self, now: int) -> Step:
        for task, round_ in list(self._rounds.items()):
            manifest, state = round_.view.manifest, round_.state
            if now >= manifest.expires_at or (state.phase in ("joined", "training") and now >= manifest.upload_until):
                self._leave(task, "round-abandoned", code="deadline")
            elif (due := round_.resend_at) is not None and now >= due:
                kind = "join" if state.phase == "joined" else "header"
                self._send(round_, kind, state.join if kind == "join" else state.header, now)
        for fetch in list(self._fetches.due(now)):
            self._ask(fetch.id, now)
        return self._journal.take()

    @property
    def deadline(self) -> int | None:
        times, overdue_at = [each.deadline for each in self._rounds.values()], self._fetches.deadline
        return min(times if overdue_at is None else [*times, overdue_at], default=None)

    def upload(self, task: str, number: int, lanes: list[np.ndarray], now: int, late: LateUpdate | None = None) -> Step:
        """Mask `lanes` and publish them: the one upload of this round. Raises BlindsumError("round-over"), and sends nothing, where
        it is waited for no longer. `late`: what they were made from, for a task that takes late updates; a later round may have it
        where the coordinator says before it asks for the body that there is no place for it."""
        round_ = self._rounds.get(task)
        if round_ is None or round_.state.phase != "training" or round_.state.number != number:
            raise BlindsumError("round-over", f"round {number} of {task}")
        if now >= round_.view.manifest.upload_until:
            self._leave(task, "round-abandoned", code="deadline")
            return self._journal.take()
        roster = round_.roster
        assert roster is not None
        index = roster.index_of(self._identity.name)
        assert index is not None
        upload = mask_upload(
            round_.view,
            roster,
            index=index,
            private=round_.key() if round_.view.base.has_roster else b"",
            lanes=lanes,
            random=self._random,
            seal=self._seal,
            certificate=UNSET if round_.view.base.has_roster else self._identity.certificate,
        )
        raw = sign_message(self._identity, round_.view, "header", upload.header)
        self._journal.put(f"spent/{task}", encode(number))
        self.late.sent(task, late)
        self._journal.write(write_blob(upload.header.body, upload.chunks))
        self._forget_inputs(round_)
        self._save(round_, phase="uploading", key=b"", header=raw)
        body = upload.header.body
        round_.own, round_.header_digest, round_.body = None, message_digest(raw), body
        self._send(round_, "header", raw, now)
        if body_is_pushed(round_.view, roster):
            self._journal.send_chunks("coordinator", body.id, range(min(4, body.count)))
        facts = {"bytes": body.size + len(raw), "devices": roster.capacity, "neighbours": len(roster.neighbours(index))}
        self._journal.event("uploading", task=task, round=number, **facts)
        return self._journal.take()

    def keep(self, task: str, late: LateUpdate, now: int) -> Step:
        """Keep what was trained for a round that is over, for the next one that takes it: that is in phase training at once,
        without its model (`late.fit`)."""
        self.late.keep(task, late)
        self._journal.event("kept", task=task, round=late.began)
        declined = self._declined.pop(task, None)
        if task in self._rounds:
            self._advance(self._rounds[task])
        elif declined is not None:
            self._on_announcement(declined, now)
        return self._journal.take()

    def abandon(self, code: str) -> Step:
        """Leave every round that is under way and forget what was to leave for it: its number is spent, its key erased."""
        for task in list(self._rounds):
            self._leave(task, "round-abandoned", code=code)
        self.late.drop_all()
        return self._journal.take()

    def blob(self, ref: BlobRef) -> bytes | None:
        """The bytes of a blob of the current round (model, plan), or None."""
        return read_blob(self._journal, ref)

    def view(self, task: str) -> RoundView | None:
        """The current round of `task`, if any."""
        return self._rounds[task].view if task in self._rounds else None

    def phase(self, task: str) -> str:
        """The current phase of `task`, "" between rounds."""
        return self._rounds[task].state.phase if task in self._rounds else ""

    # -- messages -------------------------------------------------------------------------------------------------

    def _message(self, raw: bytes, now: int) -> Refused | None:
        signed = open_message(self._trust, raw)
        if isinstance(signed, Refused):
            return upgrade_required(self._trust, raw) or signed
        head = signed.head
        if head.sender != "coordinator" or head.to not in ("all", f"device/{self._identity.name}"):
            return Refused("message-misplaced", detail=f"to {head.to}")
        if head.task not in self._tasks:
            return Refused("task-unknown", detail=head.task)
        if head.type == "announcement":
            return self._on_announcement(signed, now)
        round_ = self._rounds.get(head.task)
        if round_ is None or round_.state.number != head.round:
            return Refused("round-stale", detail=f"{head.type} of round {head.round}")
        handler = {
            "receipt": self._on_receipt,
            "roster": self._on_roster,
            "ask": self._on_ask,
            "result": self._on_end,
            "failure": self._on_end,
        }.get(head.type)
        if handler is None:
            return Refused("message-misplaced", detail=head.type)
        return handler(round_, signed, now)

    def _on_announcement(self, signed: Signed, now: int) -> Refused | None:
        task, number = signed.head.task, signed.head.round
        current = self._rounds.get(task)
        if current is not None and number <= current.state.number:
            return None if number == current.state.number else Refused("round-stale")
        if number <= self._spent(task):
            return Refused("round-stale", detail=f"round {number} is spent")
        view = open_announcement(self._trust, signed)
        if isinstance(view, Refused):
            return view
        fault = announcement_fault(view, self._floor, now)
        if fault is not None:
            late = now - open_until(view)
            if late >= CLOCK_SKEW_MAX_MS:  # an old one that the broker kept, or a clock ahead
                self._journal.event("late", task=task, round=number, ms=late)
            return fault
        if current is not None and view.base.staleness_max:  # it is over, and its training may go into this one
            self._leave(task, "round-abandoned", code="superseded")
            current = None
        reason = self._willing(view)
        if reason:
            if view.base.staleness_max:
                self._declined[task] = signed
            self._journal.event("declined", task=task, round=number, reason=reason)
            if self._follow(view):
                used = {ref.id for r in self._rounds.values() for ref in (r.view.manifest.model, r.view.task.plan)}
                self.following.begin(view, used, now)
            return None
        if current is not None:
            self._leave(task, "round-abandoned", code="superseded")
        private, raw, own = b"", b"", None
        if view.base.has_roster:
            private = self._random(SEED_SIZE)
            own = edge_private(private)
            join = Join(manifest=view.digest, certificate=self._identity.certificate, key=public_of(own))
            raw = sign_message(self._identity, view, "join", join)
        state = DeviceState(
            number=number,
            phase="joined",
            key=private,
            acknowledged=False,
            announcement=signed.raw,
            join=raw,
        )
        round_ = DeviceRound(state, view, message_digest(raw) if raw else b"", own=own)
        self._rounds[task] = round_
        self._journal.write(state_writes(task, state, None))
        if raw:
            self._send(round_, "join", raw, now)
        elif self.late.fit(view) is None:
            self._fetch_inputs(round_, now)
        self._journal.event("joined", task=task, round=number)
        return self._advance(round_)

    def _on_receipt(self, round_: DeviceRound, signed: Signed, now: int) -> Refused | None:
        receipt = payload_of(signed, Receipt)
        if isinstance(receipt, Refused):
            return receipt
        if receipt.subject not in (round_.join_digest, round_.header_digest):
            return Refused("receipt-foreign", detail=receipt.status)
        if receipt.status == "refused":
            self.late.left(signed.head.task, receipt.code)
            self._leave(signed.head.task, "round-abandoned", code=receipt.code)
        elif receipt.subject == round_.join_digest:
            if not round_.state.acknowledged:
                self._save(round_, acknowledged=True)
                self._fetch_inputs(round_, now)  # not before: a device that is not taken spares itself the model
        elif receipt.status == "complete" and round_.state.phase == "uploading":
            assert round_.body is not None
            self._journal.delete_all(f"blob/{round_.body.id.hex()}/")
            self.late.drop(signed.head.task)
            self._save(round_, phase="uploaded", header=b"")
            self._journal.event("uploaded", task=signed.head.task, round=round_.state.number)
        return None

    def _on_roster(self, round_: DeviceRound, signed: Signed, now: int) -> Refused | None:
        if round_.state.phase != "joined" or round_.state.roster or not round_.view.base.has_roster:
            return None
        fault = round_.open_roster(signed)
        if fault is not None:
            return fault
        self._save(round_, roster=signed.raw)
        self._fetch_inputs(round_, now)
        return self._advance(round_)

    def _on_ask(self, round_: DeviceRound, signed: Signed, now: int) -> Refused | None:
        ask = payload_of(signed, Ask)
        if isinstance(ask, Refused):
            return ask
        body = round_.body
        if round_.state.phase != "uploading" or body is None or ask.blob != body.id:
            return Refused("blob-unknown", detail=ask.blob.hex())
        missing = sorted(set(range(body.count)) - bits_set(ask.have, body.count))
        if missing:
            self.late.drop(signed.head.task)  # from here on nobody can show that it is in no sum
        self._journal.send_chunks("coordinator", body.id, missing[: ask.window])
        round_.sent_at = now
        return None

    def _on_end(self, round_: DeviceRound, signed: Signed, now: int) -> Refused | None:
        end: Result | Failure | Refused = payload_of(signed, Result if signed.head.type == "result" else Failure)
        if isinstance(end, Refused):
            return end
        if end.manifest != round_.view.digest:
            return Refused("manifest-differs", signed.head.sender)
        if isinstance(end, Result):
            self._leave(signed.head.task, "round-finished", count=end.count, model=end.model.id.hex())
        else:
            self._leave(signed.head.task, "round-abandoned", code=end.code)
        return None

    def _chunk(self, raw: bytes, now: int) -> Refused | None:
        accepted = self._fetches.accept(raw)
        if isinstance(accepted, Refused):
            return accepted
        fetch, write = accepted
        if write is None:
            return None
        fetch.keep_pace(now)
        self._journal.write([write])
        if not fetch.complete:
            if fetch.outstanding == 0:
                self._ask(fetch.id, now)
            return None
        self.following.tell(fetch.id)
        for round_ in list(self._rounds.values()):
            self._journal.listen(round_.view.name, fetch.id, on=False)
            fault = self._advance(round_)
            if fault is not None:
                return fault
        return None

    # -- progress -------------------------------------------------------------------------------------------------

    def _advance(self, round_: DeviceRound) -> Refused | None:
        """joined -> training as soon as roster, model and plan are there and the roster holds what this device sent."""
        state, view = round_.state, round_.view
        if state.phase != "joined" or (view.base.has_roster and not state.roster):
            return None
        held = [self._fetches.get(ref.id) for ref in (view.manifest.model, view.task.plan)]
        if self.late.fit(view) is None and not all(fetch is not None and fetch.complete for fetch in held):
            return None
        roster = round_.read_roster(self._journal, self._identity)
        if roster is None:
            return None
        if not isinstance(roster, Refused) and roster.survivors_min < self._floor.cohort_min:
            roster = Refused("policy-floor")
        if isinstance(roster, Refused):
            self._leave(view.name, "round-abandoned", code=roster.code)
            return None
        round_.roster = roster
        self._save(round_, phase="training")
        self._journal.event("train", task=view.name, round=state.number, devices=roster.capacity)
        return None

    def _fetch_inputs(self, round_: DeviceRound, now: int) -> None:
        for ref in filter(None, (round_.view.manifest.model, round_.view.task.plan, round_.entries)):
            fetch = self._fetches.want(ref, "coordinator", now, pushed=ref.count)
            if not fetch.complete:
                self._journal.listen(round_.view.name, ref.id)

    def _forget_inputs(self, round_: DeviceRound) -> None:
        """Drop what only training needed, unless another task's round needs it too; the plan stays, later rounds use it again."""
        others = (other.view for other in self._rounds.values() if other is not round_)
        shared = {ref.id for view in others for ref in (view.manifest.model, view.task.plan)}
        for ref in (round_.view.manifest.model, round_.entries):
            if ref is not None and ref.id not in shared:
                self._fetches.drop(ref.id)
                self._journal.delete_all(f"blob/{ref.id.hex()}/")

    def _leave(self, task: str, name: str, **data: object) -> None:
        round_ = self._rounds.pop(task)
        self._forget_inputs(round_)
        if not any(other.view.task.plan.id == round_.view.task.plan.id for other in self._rounds.values()):
            self._fetches.drop(round_.view.task.plan.id)
        if round_.body is not None:
            self._journal.delete_all(f"blob/{round_.body.id.hex()}/")
        self.late.left(task, "")
        # a late copy of the announcement must not make this device join again under another key
        self._journal.put(f"spent/{task}", encode(round_.state.number))
        self._journal.write(state_writes(task, None, round_.state))
        self._journal.event(name, task=task, round=round_.state.number, **data)

    # -- helpers --------------------------------------------------------------------------------------------------

    def _ask(self, blob: bytes, now: int) -> None:
        fetch = self._fetches.get(blob)
        assert fetch is not None
        wanting = next(
            (r for r in self._rounds.values() if blob in (r.view.manifest.model.id, r.view.task.plan.id)), None
        ) or next((r for r in self._rounds.values() if r.entries is not None and r.entries.id == blob), None)
        if wanting is None and self.following.wants(blob):
            fetch.ask(now)  # nobody answers it: the broadcast may still bring it
        elif wanting is None:
            self._fetches.drop(blob)
        else:
            self._journal.send("ask", "coordinator", sign_message(self._identity, wanting.view, "ask", fetch.ask(now)))

    def _send(self, round_: DeviceRound, kind: str, raw: bytes, now: int) -> None:
        round_.wait_ms = RESEND_MS if round_.sent_at == 0 else min(2 * round_.wait_ms, 8 * RESEND_MS)
        round_.sent_at = now
        self._journal.send(kind, "coordinator", raw)

    def _spent(self, task: str) -> int:
        value = self._journal.get(f"spent/{task}")
        return int(decode(value)) if value else 0

    def _save(self, round_: DeviceRound, **changes: object) -> None:
        before, round_.state = round_.state, replace(round_.state, **changes)
        if "phase" in changes:
            round_.sent_at, round_.wait_ms = 0, RESEND_MS
        self._journal.write(state_writes(round_.view.name, round_.state, before))

    def _restore(self) -> None:
        for key, value in self._journal.scan("state/"):
            task = key.removeprefix("state/")
            state = read_state(self._journal, task, value)
            signed = open_message(self._trust, state.announcement)
            if isinstance(signed, Refused) or task not in self._tasks:
                continue
            view = open_announcement(self._trust, signed)
            assert isinstance(view, RoundView)
            round_ = DeviceRound(state, view)
            self._rounds[task] = round_
            round_.restore(self._journal, self._identity)
            if state.phase == "joined" and (state.acknowledged or state.roster or not view.base.has_roster):
                self._fetch_inputs(round_, 0)
            if state.phase == "training":
                assert round_.roster is not None
                self._journal.event("train", task=task, round=state.number, devices=round_.roster.capacity)
