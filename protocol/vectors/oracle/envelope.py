"""COSE_Sign1 and the checks in their order (SPEC.md sections 3.2, 3.3 and 4.1)."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from oracle.cbor import Value, decode, digest, encode
from oracle.curves import ed25519_sign, ed25519_verify
from oracle.fault import Fault, require
from oracle.schema import BODIES, KEYS, check_body, is_name, octets

MESSAGE_SIZE_MAX = 524_288
_HEADER = {1, "v", "type", "fleet", "task", "round", "from", "to"}


class Trust(NamedTuple):
    """The bundle of SPEC.md section 4.1."""

    fleet: str
    ca: bytes
    operator: bytes
    coordinator: bytes
    coordinator_box: bytes
    parties: list[bytes]

    @property
    def digest(self) -> bytes:
        return digest("trust", *self)

    def key_of(self, principal: str) -> bytes | None:
        names = {f"party/{i}": key for i, key in enumerate(self.parties, 1)}
        return {"operator": self.operator, "coordinator": self.coordinator, **names}.get(principal)


def party_keys(trust: Trust, party: int, steps: Value) -> list[bytes]:
    """The keys of a party from the pinned one to the one that `steps` lead to (SPEC.md section 4.4)."""
    require(1 <= party <= len(trust.parties), "signature-invalid")
    keys, taken = [trust.parties[party - 1]], {trust.operator, trust.coordinator, *trust.parties}
    first, place = (steps[0][0], 0) if steps and steps[0][1] == 0 else (0, 1)
    require(place == 1 or first >= 1, "signature-invalid")
    for number, (epoch, step, key, signature) in enumerate(steps, place):
        require((epoch, step) == (first, number) and key not in taken, "signature-invalid")
        before = keys[-1] if step else b""
        said = encode(["blindsum/1 party-key", trust.digest, party, epoch, step, before, key])
        require(ed25519_verify(before or trust.operator, signature, said), "signature-invalid")
        taken.add(key)
        keys.append(key)
    return keys


def trust_open(data: bytes) -> Trust:
    value = decode(data)
    require(isinstance(value, list) and len(value) == 6, "message-malformed")
    fleet, ca, operator, coordinator, box, parties = value
    require(isinstance(parties, list) and 1 <= len(parties) <= 10, "message-malformed")
    keys = [operator, coordinator, *parties]
    sound = all(map(octets(32, 32), keys)) and octets(0, 1024)(ca) and octets(1216, 1216)(box) and is_name(fleet)
    require(sound and len(set(keys)) == len(keys), "message-malformed")
    return Trust(fleet, ca, operator, coordinator, box, parties)


class Signed(NamedTuple):
    """A message whose envelope is sound."""

    head: dict[str, Value]
    body: Value
    digest: bytes
    tbs: bytes
    signature: bytes

    @property
    def place(self) -> tuple[str, str, int]:
        return self.head["type"], self.head["task"], self.head["round"]

    @property
    def sender(self) -> str:
        return str(self.head["from"])


def _tbs(protected: bytes, payload: bytes) -> bytes:
    return encode(["Signature1", protected, b"", payload])


def seal(seed: bytes, head: dict[str, Value], body: Value) -> tuple[bytes, bytes]:
    """(message, digest)"""
    protected, payload = encode({1: -8, "v": 1, **head}), encode(body)
    tbs = _tbs(protected, payload)
    _, signature = ed25519_sign(seed, tbs)
    return b"\xd2" + encode([protected, {}, payload, signature]), hashlib.sha256(tbs).digest()


def open_message(trust: Trust, raw: bytes) -> Signed:
    """Checks 1 to 11 of SPEC.md section 3.3."""
    require(len(raw) <= MESSAGE_SIZE_MAX, "message-too-large")
    require(raw[:1] == b"\xd2", "message-malformed")
    parts = decode(raw[1:])
    require(isinstance(parts, list) and [type(p) for p in parts] == [bytes, dict, bytes, bytes], "message-malformed")
    protected, unprotected, payload, signature = parts
    require(not unprotected and len(signature) == 64, "message-malformed")
    header = decode(protected)
    require(isinstance(header, dict) and header.get("v") == 1 and type(header["v"]) is int, "message-version")
    require(set(header) == _HEADER and header[1] == -8, "message-malformed")
    texts = [header[name] for name in ("type", "fleet", "task", "from", "to")]
    require(all(isinstance(t, str) and len(t) <= 72 for t in texts), "message-malformed")
    require(type(header["round"]) is int and 0 <= header["round"] < 1 << 31, "message-malformed")
    require(is_name(header["fleet"]) and is_name(header["task"]), "message-malformed")
    body = decode(payload)
    kind, sender = header["type"], header["from"]
    require(kind in BODIES, "message-type-unknown")
    _, role, size_max = BODIES[kind]
    require(len(raw) <= size_max, "message-too-large")
    require(header["fleet"] == trust.fleet, "fleet-foreign")
    require(role in ("any", sender.split("/")[0]), "sender-wrong-role")
    tbs = _tbs(protected, payload)
    head = {name: header[name] for name in ("type", "fleet", "task", "round", "from", "to")}
    signed = Signed(head, body, hashlib.sha256(tbs).digest(), tbs, signature)
    if sender.startswith("device/"):
        require(is_name(sender.removeprefix("device/")), "message-malformed")
        return signed
    key = trust.key_of(sender)
    if kind == "offer":
        number = sender.removeprefix("party/")
        require(number in map(str, range(1, 11)), "signature-invalid")
        steps = body.get("keys") if isinstance(body, dict) else None
        key = party_keys(trust, int(number), steps if KEYS(steps) else [])[-1]
    require(key is not None and ed25519_verify(key, signature, tbs), "signature-invalid")
    return signed


def open_inner(trust: Trust, raw: Value, place: tuple[str, str, int]) -> Signed:
    """A message inside another, at its place, with a body of its type."""
    if not isinstance(raw, bytes):
        raise Fault("message-malformed")
    signed = open_message(trust, raw)
    require(signed.place == place, "message-misplaced")  # a fault of whoever put it here
    try:
        check_body(place[0], signed.body)
    except Fault as fault:
        # a device's signature is not checked yet
        raise Fault(fault.code, "" if signed.sender.startswith("device/") else signed.sender) from None
    return signed
