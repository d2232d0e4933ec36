"""The model chain as a party follows it: no manifest gets a vote whose model this party has not recomputed (SPEC.md section 5.6).

A link is a result, or the operator's rollback. Rows: "chain/<task>" is [digest of the last link followed, reference of the model it
gave, id of the state]; "followed/<task>" is [its round, the result of that round or nothing]; "pending/<task>/<digest>" the result
that follows the link of that digest and waits for its sum, or for results before it. The model's and the state's chunks stay in
the store as long as they are the last.
"""

from __future__ import annotations

from typing import Final

from blindsum.protocol.blobs import read_blob, read_own, write_blob
from blindsum.protocol.codec import convert, decode, encode
from blindsum.protocol.envelope import Signed
from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.machines.inbox import Inbox
from blindsum.protocol.machines.journal import Journal
from blindsum.protocol.messages import BlobRef, Result, Rollback, chunks_of
from blindsum.protocol.optimiser import advance
from blindsum.protocol.ring import packed_size
from blindsum.protocol.trust import Trust
from blindsum.protocol.view import TaskView, open_message, payload_of, rollback_fits
from blindsum.protocol.wrong import wrong_by_itself

__all__ = ["Chain"]

PENDING_MAX: Final = 16
"""Results kept that cannot be followed yet: as many as a coordinator keeps to send again."""


class Chain:
    """The results a party has followed, in all tasks."""

    def __init__(self, trust: Trust, journal: Journal, inbox: Inbox) -> None:
        self._trust = trust
        self._journal = journal
        self._inbox = inbox

    def start(self, base: TaskView, now: int) -> None:
        """Begin (or go on after a restart) with what the store holds of this task."""
        digest, model, _ = self.head(base)
        self._inbox.want(base.name, model, now)
        pending = self._pending(base, digest)
        if pending is not None:
            self._inbox.want(base.name, convert(pending.payload, Result).sum, now)

    def head(self, base: TaskView) -> tuple[bytes, BlobRef, bytes]:
        """(digest of the last result followed, the model it gave, id of the state); zeros, the task's own model and the empty
        state before the first."""
        value = self._journal.get(f"chain/{base.name}")
        if value is None:
            return bytes(32), base.task.model, base.first_state
        digest, ref, state = decode(value)
        return digest, convert(ref, BlobRef), state

    def keeps(self, base: TaskView) -> set[bytes]:
        """The blobs that outlive a round."""
        digest, model, state = self.head(base)
        pending = self._pending(base, digest)
        blobs = {model.id, state}
        return blobs if pending is None else blobs | {convert(pending.payload, Result).sum.id}

    def offer(self, base: TaskView, signed: Signed, now: int) -> Refused | None:
        """A result was published: recompute what its sum makes of the last model, as soon as both are here."""
        result = payload_of(signed, Result)
        if isinstance(result, Refused):
            return result
        digest, _, _ = self.head(base)
        if digest == signed.digest or signed.head.round < self.followed(base.name):
            return None
        if signed.head.round == self.followed(base.name):
            known = self._last(base.name)[1]
            if not known or self._open(known).digest == signed.digest:
                return None  # a rollback came after it
            return self._second(base, known, signed)
        if not (result.sum.sound and result.model.sound) or result.sum.size != packed_size(base.segments):
            return Refused("message-malformed", "coordinator", "blob reference")
        pending = self._pending(base, result.previous)
        if pending is not None and pending.digest != signed.digest:
            return self._second(base, pending.raw, signed)
        if pending is None and len(list(self._journal.scan(f"pending/{base.name}/"))) < PENDING_MAX:
            self._journal.put(f"pending/{base.name}/{result.previous.hex()}", signed.raw)
        if result.previous != digest:
            return Refused("chain-behind", detail="results between this one and the last followed are missing")
        return self.resume(base, now)

    def roll_back(self, base: TaskView, signed: Signed, now: int) -> Refused | None:
        """The operator goes back to an earlier model: take it for the last one. A party that has missed results before the
        rollback needs them no more."""
        rollback = payload_of(signed, Rollback)
        if isinstance(rollback, Refused):
            return rollback
        digest, model, state = self.head(base)
        if digest == signed.digest:
            return None
        if not rollback_fits(base, rollback):
            return Refused("rollback-malformed", "operator")
        followed, known = self._last(base.name)
        number = signed.head.round
        if followed > number or (followed == number and digest != rollback.previous):
            return Refused("rollback-stale", detail=f"it follows round {number}; this party has gone on from it")
        for key, raw in list(self._journal.scan(f"pending/{base.name}/")):
            pending = self._open(raw)
            if pending.head.round <= number:
                self._inbox.release(convert(pending.payload, Result).sum)
                self._journal.delete(key)
        if model != rollback.model:
            self._inbox.release(model)
        self._journal.delete_all(f"blob/{state.hex()}/")
        self._inbox.want(base.name, rollback.model, now)
        self._journal.put(f"chain/{base.name}", encode([signed.digest, rollback.model, base.first_state]))
        self._journal.put(f"followed/{base.name}", encode([number, known if followed == number else b""]))
        self._journal.event("rolled-back", task=base.name, round=number, model=rollback.model.id.hex())
        return self.resume(base, now)

    def resume(self, base: TaskView, now: int) -> Refused | None:
        """A result or a blob has arrived: follow as many results as all is here for."""
        for _ in range(PENDING_MAX):
            digest, model, _ = self.head(base)
            pending = self._pending(base, digest)
            if pending is None:
                break
            result = convert(pending.payload, Result)
            ready = [self._inbox.want(base.name, ref, now) for ref in (model, result.sum)]
            if not all(ready):
                break
            fault = self._follow(base, result, pending)
            if fault is not None:
                return fault
        return None

    def _follow(self, base: TaskView, result: Result, signed: Signed) -> Refused | None:
        _, model, state = self.head(base)
        old, total = read_blob(self._journal, model), read_blob(self._journal, result.sum)
        assert old is not None and total is not None
        self._journal.delete(f"pending/{base.name}/{result.previous.hex()}")
        self._inbox.release(result.sum)
        try:
            new, kept = advance(base, old, read_own(self._journal, state), total, result.rotation)
        except BlindsumError as error:
            return self._caught(base, error.code, signed, [old, read_own(self._journal, state), total])
        ref, chunks = chunks_of(new, base.chunk_size)
        kept_ref, kept_chunks = chunks_of(kept, base.chunk_size)
        if (ref, kept_ref.id) != (result.model, result.state):
            return self._caught(base, "model-differs", signed, [old, read_own(self._journal, state), total])
        if ref != model:
            self._inbox.release(model)
            self._journal.write(write_blob(ref, chunks))
            self._inbox.want(base.name, ref, 0)
        if kept_ref.id != state:
            self._journal.delete_all(f"blob/{state.hex()}/")
            self._journal.write(write_blob(kept_ref, kept_chunks))
        self._journal.put(f"chain/{base.name}", encode([signed.digest, ref, kept_ref.id]))
        self._journal.put(f"followed/{base.name}", encode([signed.head.round, signed.raw]))
        for key, raw in list(self._journal.scan(f"pending/{base.name}/")):
            if self._open(raw).head.round <= signed.head.round:
                self._journal.delete(key)
        self._journal.event("followed", task=base.name, round=signed.head.round, count=result.count)
        return None

    def _pending(self, base: TaskView, digest: bytes) -> Signed | None:
        """The result that is known to follow the one of this digest."""
        raw = self._journal.get(f"pending/{base.name}/{digest.hex()}")
        return None if raw is None else self._open(raw)

    def followed(self, task: str) -> int:
        """The round of the last result followed, 0 before the first."""
        return self._last(task)[0]

    def _last(self, task: str) -> tuple[int, bytes]:
        value = self._journal.get(f"followed/{task}")
        number, raw = decode(value) if value else (0, b"")
        return number, raw

    def _caught(self, base: TaskView, code: str, result: Signed, parts: list[bytes]) -> Refused:
        """Keep a result that does not follow, with all that shows it, where it follows another one."""
        context = encode([base.raw, self._last(base.name)[1], *parts])
        if wrong_by_itself(self._trust, result, context) != code:
            return Refused(code, "coordinator", "it follows a rollback")
        return self._journal.accuse(base.name, result.head.round, code, "coordinator", result.raw, b"", context)

    def _second(self, base: TaskView, first: bytes, second: Signed) -> Refused:
        number = second.head.round
        return self._journal.accuse(base.name, number, "second-result", "coordinator", first, second.raw)

    def _open(self, raw: bytes) -> Signed:
        signed = open_message(self._trust, raw)
        assert isinstance(signed, Signed)
        return signed
