"""What the operator has enrolled and taken back: a line of JSON for each, in its kit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.revocation import REVOKED_MAX, revocations_issue, revocations_open
from blindsum.runtime.kit import read_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["REGISTER_FILE", "REVOKED_FILE", "Enrolled", "Register"]

REVOKED_FILE: Final = "revoked.crl"
REGISTER_FILE: Final = "enrolled.jsonl"


class Enrolled(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A certificate: whose, its serial number, when it was made and ends (ms). With `revoked` (ms) and `list`, that it was taken
    back by the list of this number."""

    device: str
    serial: int
    at: int
    until: int
    revoked: int = 0
    list: int = 0


class Register:
    """The file in `kit` (the operator's). What is added is durable when `add` returns, before the certificate is made."""

    def __init__(self, kit: Path) -> None:
        self._path = kit / REGISTER_FILE
        self._by_serial: dict[int, Enrolled] = {}
        if self._path.exists():
            for record in self._records():
                self._by_serial[record.serial] = record

    def valid(self, now: int) -> int:
        """How many certificates hold at `now`."""
        return sum(1 for record in self._by_serial.values() if not record.revoked and record.until > now)

    def add(self, *records: Enrolled) -> None:
        """Write down what is about to be done."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(b"".join(msgspec.json.encode(_text(record)) + b"\n" for record in records))
            file.flush()
            os.fsync(file.fileno())
        self._by_serial.update((record.serial, record) for record in records)

    def revoke(self, devices: list[str], *, now: int, issuer: str, issuer_key: Ed25519PrivateKey, ca: bytes) -> bytes:
        """The next revocation list, with every certificate of `devices` and all that were taken back before. Raises BlindsumError
        "device-unknown", or "enrolment-full" where a list has no room."""
        known = {record.device for record in self._by_serial.values()}
        if unknown := sorted(set(devices) - known):
            raise BlindsumError("device-unknown", ", ".join(unknown))
        number = 1 + max((record.list for record in self._by_serial.values()), default=0)
        fresh = [
            msgspec.structs.replace(record, revoked=now, list=number)
            for record in self._by_serial.values()
            if record.device in devices and not record.revoked
        ]
        revoked = {r.serial: r.revoked for r in (*self._by_serial.values(), *fresh) if r.revoked}
        if len(revoked) > REVOKED_MAX:
            raise BlindsumError("enrolment-full", f"a revocation list has room for {REVOKED_MAX} certificates")
        self.add(*fresh)
        if not fresh:
            number = max(1, number - 1)
            held = self._path.with_name(REVOKED_FILE)
            if held.exists() and revocations_open(raw := read_file(held), ca=ca).number == number:
                return raw
        raw = revocations_issue(issuer=issuer, issuer_key=issuer_key, number=number, revoked=revoked, now=now)
        assert revocations_open(raw, ca=ca).serials == revoked.keys()
        return raw

    def _records(self) -> Iterator[Enrolled]:
        for number, line in enumerate(read_file(self._path).splitlines(), 1):
            try:
                value = msgspec.json.decode(line)
                yield msgspec.convert(value | {"serial": int(value["serial"], 16)}, Enrolled)
            except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
                raise BlindsumError("kit-incomplete", f"{self._path}: line {number}: {error}") from None


def _text(record: Enrolled) -> dict[str, object]:
    return {**msgspec.to_builtins(record), "serial": f"{record.serial:x}"}
