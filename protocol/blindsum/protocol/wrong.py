"""One signed message that nobody honest signs, whatever else was said (SPEC.md section 10.2).

What it must be held to, beside the trust bundle, is its *context*: the signed task for a manifest, [task, result before, model,
state, sum] for a result, nothing for what stands for itself.
"""

from __future__ import annotations

from typing import Final

from blindsum.protocol.codec import DecodeError, convert, decode
from blindsum.protocol.envelope import Signed
from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.keys import box_usable, key_usable
from blindsum.protocol.messages import MESSAGES, Announcement, Join, Offer, Result, chunks_of
from blindsum.protocol.optimiser import advance
from blindsum.protocol.trust import Trust
from blindsum.protocol.view import RoundView, TaskView, count_votes, open_manifest, open_message, open_task

__all__ = ["wrong_by_itself"]

_CONTEXT_PARTS: Final = 5


def wrong_by_itself(trust: Trust, signed: Signed, context: bytes) -> str:
    """The code of what is wrong with a message, or "" where it does not prove its sender wrong. Its signature is the caller's to
    check. Never raises for what is in the bytes."""
    kind = signed.head.type
    try:
        payload = convert(signed.payload, MESSAGES[kind][0])
    except DecodeError:
        return "message-malformed"
    if isinstance(payload, Offer):
        return "" if box_usable(payload.box_key) else "offer-malformed"
    if isinstance(payload, Join):
        return "" if key_usable(payload.key) else "join-malformed"
    if isinstance(payload, Result):
        return _result_fault(trust, signed, payload, context)
    if kind == "manifest":
        return _manifest_fault(trust, signed.raw, signed, context)[1]
    if isinstance(payload, Announcement):
        view, fault = _manifest_fault(trust, payload.manifest, signed, payload.task)
        if view is None:
            return fault
        votes = count_votes(view, payload.votes, decides="manifest", digest=view.digest)
        return "votes-too-few" if len(votes) < view.base.committee.quorum else ""
    return ""


def _manifest_fault(trust: Trust, raw: bytes, signed: Signed, task: bytes) -> tuple[RoundView | None, str]:
    """The manifest as everybody sees it, or the code of what its coordinator did wrong."""
    base = open_task(trust, task)
    if not isinstance(base, TaskView) or base.name != signed.head.task:
        return None, ""
    view = open_manifest(base, raw)
    if isinstance(view, Refused):
        return None, view.code if view.culprit == "coordinator" else ""
    return view, ""


def _result_fault(trust: Trust, signed: Signed, result: Result, context: bytes) -> str:
    """Whether the model that a result publishes follows from its sum and from what the result before it left."""
    try:
        parts = decode(context)
    except DecodeError:
        return ""
    if not isinstance(parts, list) or [type(part) for part in parts] != [bytes] * _CONTEXT_PARTS:
        return ""
    task, before, model, state, total = parts
    base = open_task(trust, task)
    if not isinstance(base, TaskView) or base.name != signed.head.task:
        return ""
    last, ref, kept = bytes(32), base.task.model, base.first_state
    if before:
        opened = open_message(trust, before)
        if not isinstance(opened, Signed) or (opened.head.type, opened.head.task) != ("result", base.name):
            return ""
        try:
            previous = convert(opened.payload, Result)
        except DecodeError:
            return ""
        last, ref, kept = opened.digest, previous.model, previous.state
    found = [chunks_of(data, base.chunk_size)[0] for data in (model, state, total)]
    if result.previous != last or found[0] != ref or found[1].id != kept or found[2] != result.sum:
        return ""
    try:
        made, left = advance(base, model, state, total, result.rotation)
    except BlindsumError as error:
        return error.code
    stated = chunks_of(made, base.chunk_size)[0], chunks_of(left, base.chunk_size)[0].id
    return "" if stated == (result.model, result.state) else "model-differs"
