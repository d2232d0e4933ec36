"""Sides that speak different protocol versions, and how they find out (SPEC.md section 3.4)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from blindsum.protocol import PROTOCOL_VERSION
from blindsum.protocol.codec import DecodeError, decode, encode
from blindsum.protocol.envelope import is_name, peek
from blindsum.protocol.errors import Refused
from blindsum.protocol.keys import sign_verify
from blindsum.protocol.trust import Trust

__all__ = ["UPGRADE_REQUIRED", "Foreign", "foreign", "upgrade_required"]

UPGRADE_REQUIRED: Final = "upgrade-required"
_TEXTS: Final = ("fleet", "task", "from")


@dataclass(frozen=True, slots=True)
class Foreign:
    """What no version changes of a message of another version. `digest` names it; whether `sender` signed it is not checked."""

    version: int
    fleet: str
    task: str
    sender: str
    digest: bytes
    tbs: bytes
    signature: bytes


def foreign(raw: bytes) -> Foreign | None:
    """A message of another protocol version, or None for anything else."""
    try:
        parts = decode(raw[1:]) if peek(raw) else None
        if not isinstance(parts, list) or [type(part) for part in parts] != [bytes, dict, bytes, bytes]:
            return None
        protected, _, body, signature = parts
        head = decode(protected)
    except DecodeError:
        return None
    if not isinstance(head, dict) or type(head.get("v")) is not int or head["v"] == PROTOCOL_VERSION:
        return None
    fleet, task, sender = (head.get(name) for name in _TEXTS)
    if not (isinstance(fleet, str) and isinstance(task, str) and isinstance(sender, str) and is_name(task)):
        return None
    tbs = encode(["Signature1", protected, b"", body])
    return Foreign(head["v"], fleet, task, sender, hashlib.sha256(tbs).digest(), tbs, signature)


def upgrade_required(trust: Trust, raw: bytes) -> Refused | None:
    """Why nothing will come of the exchange, where one of the trust bundle has truly signed a message of another version. (Only
    a true one counts: nobody else shall be able to send people looking for another version.)"""
    found = foreign(raw)
    key = trust.key_of(found.sender) if found is not None else None
    if found is None or key is None or found.fleet != trust.fleet or not sign_verify(key, found.signature, found.tbs):
        return None
    older = "this side" if found.version > PROTOCOL_VERSION else found.sender
    detail = f"{found.sender} speaks version {found.version}, this side {PROTOCOL_VERSION}: {older} is the older one"
    return Refused(UPGRADE_REQUIRED, detail=detail)
