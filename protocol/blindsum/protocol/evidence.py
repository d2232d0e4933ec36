"""Two signed messages that contradict each other, or one wrong by itself: anybody can see who did it (SPEC.md section 10.2).

A file of `MAGIC` and then [trust bundle, first, second, join]: the join shows the key of a device and is empty for anybody else.
Where `second` is empty the first is wrong by itself, and in place of the join stands what it is held to (`wrong`).
"""

from __future__ import annotations

from typing import Final

from blindsum.protocol.codec import DecodeError, convert, decode, encode
from blindsum.protocol.envelope import Signed, open_envelope
from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.keys import certificate_fault
from blindsum.protocol.messages import MESSAGES, Join, Offer
from blindsum.protocol.partykeys import answered_keys
from blindsum.protocol.report import Report
from blindsum.protocol.roster import beacon_commitment
from blindsum.protocol.trust import Trust, party_number
from blindsum.protocol.view import open_message
from blindsum.protocol.wrong import wrong_by_itself

__all__ = ["MAGIC", "contradiction", "verify_evidence", "write_evidence"]

MAGIC: Final = b"blindsum evidence 1\n"

_TWICE: Final = {
    # type: (code of signing two, fields that tell one question from another)
    "offer": ("second-offer", ()),
    "vote": ("second-vote", ("decides",)),
    "manifest": ("second-manifest", ()),
    "roster-proposal": ("second-roster", ()),
    "header": ("second-header", ()),
    "proposal": ("second-set", ()),
    "opening": ("second-opening", ("part",)),
    "join": ("second-join", ()),
    "roster": ("second-roster", ()),
    "result": ("second-result", ()),
    "failure": ("failure-differs", ()),
}


def contradiction(first: Signed, second: Signed) -> str:
    """The code of what one principal does wrong by signing both messages, or "". Their signatures are the caller's to check.

    Nobody honest answers one question of a round twice, opens another set than it voted for, reveals another beacon than it
    committed to, uploads under another manifest than it joined, names in a result another manifest or set than it proposed, has two
    results follow the same one, or lets a round fail twice or fail and have a result.
    """
    one, other = first.head, second.head
    if (one.sender, one.fleet, one.task) != (other.sender, other.fleet, other.task) or first.digest == second.digest:
        return ""
    try:
        for signed in (first, second):
            convert(signed.payload, MESSAGES[signed.head.type][0])
    except DecodeError:
        return ""
    if one.type == other.type == "result" and first.payload["previous"] == second.payload["previous"]:
        return "second-result"
    if one.round != other.round:
        return ""
    if one.type == other.type:
        code, question = _TWICE.get(one.type, ("", ()))
        return code if all(first.payload[name] == second.payload[name] for name in question) else ""
    if (one.type, other.type) == ("failure", "result"):
        return "failure-differs"
    if (one.type, other.type) in (("manifest", "result"), ("proposal", "result")):
        return "result-differs" if second.payload[one.type] != first.digest else ""
    if (one.type, other.type) == ("vote", "opening") and first.payload["decides"] == "set":
        return "opening-foreign" if second.payload["proposal"] != first.payload["digest"] else ""
    if (one.type, other.type) == ("join", "header"):
        return "header-foreign" if second.payload["manifest"] != first.payload["manifest"] else ""
    if (one.type, other.type) == ("offer", "vote") and second.payload["decides"] == "roster":
        committed = beacon_commitment(second.payload["beacon"], one.task, one.round, party_number(one.sender))
        return "beacon-differs" if committed != first.payload["beacon_commitment"] else ""
    return ""


def write_evidence(trust: Trust, first: bytes, second: bytes, join: bytes) -> bytes:
    """The file."""
    return MAGIC + encode([trust.encode(), first, second, join])


def verify_evidence(data: bytes, *, trust: Trust | None = None) -> Report:
    """Name who signed both messages of an evidence file. `trust`: the bundle to hold it to (else the file's own, which proves only
    that it is consistent with itself). Raises BlindsumError("evidence-unproven") where they prove nothing."""
    try:
        parts = decode(data.removeprefix(MAGIC)) if data.startswith(MAGIC) else None
        if not isinstance(parts, list) or [type(part) for part in parts] != [bytes] * 4:
            raise DecodeError("not an evidence file")
        found = Trust.decode(parts[0])
    except DecodeError as error:
        raise BlindsumError("evidence-unproven", str(error)) from None
    if trust is not None and found != trust:
        raise BlindsumError("evidence-unproven", "it is about another fleet, or other organisations")
    if not parts[2]:
        return _single(found, parts[1], parts[3])
    first, second = (_genuine(found, raw, parts[3]) for raw in parts[1:3])
    code = contradiction(first, second)
    if not code:
        raise BlindsumError("evidence-unproven", "the two messages do not contradict each other")
    report = Report(facts={"task": first.head.task, "round": first.head.round, "evidence": code})
    report.blame(first.head.sender, code, f"signed two contradicting messages: {first.head.type}, {second.head.type}")
    return report


def _single(trust: Trust, raw: bytes, context: bytes) -> Report:
    signed = _genuine(trust, raw, raw)
    code = wrong_by_itself(trust, signed, context)
    if not code:
        raise BlindsumError("evidence-unproven", "nothing is wrong with the message")
    report = Report(facts={"task": signed.head.task, "round": signed.head.round, "evidence": code})
    report.blame(signed.head.sender, code, f"signed a {signed.head.type} that nobody honest signs")
    return report


def _genuine(trust: Trust, raw: bytes, join: bytes) -> Signed:
    signed = open_message(trust, raw)
    forged = isinstance(signed, Refused) and signed.code == "signature-invalid"
    if join and join != raw and (forged or (isinstance(signed, Signed) and signed.head.sender.startswith("party/"))):
        return _by_changed_key(trust, raw, join)
    if isinstance(signed, Refused):
        raise BlindsumError("evidence-unproven", f"a message is not genuine: {signed.code}")
    if signed.head.sender.startswith("device/") and not signed.valid(_device_key(trust, signed, join)):
        raise BlindsumError("evidence-unproven", f"a message is not by {signed.head.sender}")
    return signed


def _by_changed_key(trust: Trust, raw: bytes, offer: bytes) -> Signed:
    """A message that a party signed with any key of the epoch in its offer: who signs over to the next key answers for both."""
    signed, shown = open_envelope(raw), open_message(trust, offer)
    if isinstance(shown, Signed) and (shown.head.type, shown.head.sender) == ("offer", signed.head.sender):
        try:
            steps = convert(shown.payload, Offer).keys
        except DecodeError as error:
            raise BlindsumError("evidence-unproven", str(error)) from None
        keys = answered_keys(trust, party_number(signed.head.sender), steps)
        if any(signed.valid(key) for key in keys):
            return signed
    raise BlindsumError("evidence-unproven", f"a message is not by {signed.head.sender}")


def _device_key(trust: Trust, signed: Signed, join: bytes) -> bytes:
    """The key of the certificate that a device joined the same round with, or uploaded with."""
    shown = signed.payload.get("certificate") if isinstance(signed.payload, dict) else None
    if not join and signed.head.type == "header" and isinstance(shown, bytes):
        # an upload without a roster brings its certificate along
        fault, name, key = certificate_fault(shown, ca=trust.ca, now=None)
        if fault or f"device/{name}" != signed.head.sender:
            raise BlindsumError("evidence-unproven", f"it does not show a certificate of {signed.head.sender}")
        return key
    opened = open_message(trust, join)
    same = ("join", signed.head.task, signed.head.round, signed.head.sender)
    if (
        isinstance(opened, Refused)
        or (opened.head.type, opened.head.task, opened.head.round, opened.head.sender) != same
    ):
        raise BlindsumError("evidence-unproven", f"it does not show the key of {signed.head.sender}")
    try:
        join_ = convert(opened.payload, Join)
    except DecodeError as error:
        raise BlindsumError("evidence-unproven", str(error)) from None
    fault, name, key = certificate_fault(join_.certificate, ca=trust.ca, now=None)
    if fault or f"device/{name}" != signed.head.sender or not opened.valid(key):
        raise BlindsumError("evidence-unproven", f"it does not show a certificate of {signed.head.sender}")
    return key
