"""The versions of a task's model: what each round made, of which version, with whose votes; read from the transcripts of a
coordinator's kit, and the way back to an earlier one (SPEC.md sections 5.6 and 10)."""

from __future__ import annotations

import hashlib
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blindsum.backend.provision import trust_of
from blindsum.backend.tasks import read_task, task_place, transcript_path, transcripts
from blindsum.protocol.codec import DecodeError, convert
from blindsum.protocol.envelope import Head, Signed, seal_envelope
from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.messages import Announcement, Certificate, Manifest, Result, Rollback, chunks_of
from blindsum.protocol.ring import unpack
from blindsum.protocol.transcript import read_records, verify
from blindsum.protocol.trust import party_number
from blindsum.protocol.update import exact_sums
from blindsum.protocol.view import TaskView, open_message
from blindsum.runtime.kit import load_key, read_file, write_whole

__all__ = ["Version", "roll_back", "rollback_model", "rollback_of", "shared_parameters", "version", "versions"]

ROLLBACK_FILE: Final = "rollback.cose"
ROLLBACK_MODEL: Final = "rollback.bin"
MILLION: Final = 1e6
_NAMES: Final = frozenset({"announcement", "certificate", "result", "rollback", "sum", "next"})
"""What a version is read from; the bodies of the uploads, nearly all of a transcript, are passed over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """The model that a round made. `model`: SHA-256 of its float32 values as devices get them. `parent`: the round whose model it
    started from, 0 for the task's own first, None where that transcript is gone; `rolled_back`: the operator went back to that one.
    `result` and `certificate`: digests of the coordinator's signed result and of the survivor set with its votes; `voters`: the
    parties that voted for the set; `loss`: the devices' mean training loss. Times in ms."""

    round: int
    at: int
    model: str
    parent: int | None
    rolled_back: bool
    result: str
    certificate: str
    voters: list[int]
    contributors: int
    weight: int
    examples: int
    loss: float | None


def versions(kit: Path, name: str) -> list[Version]:
    """All versions whose transcripts are in a coordinator's kit, in order. Nothing is verified but that each follows from the one
    it names (`version` verifies one). Raises BlindsumError "task-not-here", "task-invalid", or "version-unknown" for a
    transcript that cannot be read."""
    found = read_task(kit, name)
    known = {bytes(32): 0}
    listed = []
    for number, path in transcripts(kit, name).items():
        made, digest = _read(found.view, number, path, known)
        known[digest] = number
        listed.append(made)
    return listed


def version(kit: Path, name: str, number: int) -> tuple[Version, bytes]:
    """One version and its model, after its whole round was recomputed and held to the kit's trust bundle. Raises BlindsumError as
    `versions`, "version-unknown" for a round without a transcript or one that does not verify."""
    listed = {made.round: made for made in versions(kit, name)}
    if number not in listed:
        raise BlindsumError("version-unknown", f"round {number} of {name}; here are {len(listed)}")
    path = transcript_path(kit, name, number)
    data = read_file(path)
    report = verify(data, trust=trust_of(kit))
    if not report.valid:
        fault = report.faults[0]
        raise BlindsumError(
            "version-unknown", f"{path} does not verify: {fault.principal}: {fault.code} {fault.detail}"
        )
    return listed[number], read_records(data, frozenset({"next"}))["next"][0]


def shared_parameters(view: TaskView, model: bytes) -> tuple[float, ...]:
    """The parameters in a model as it travels: for SCAFFOLD all but the control variate."""
    values = struct.unpack(f"<{len(model) // 4}f", model)
    return values[: len(values) // 2] if view.task.algorithm.name == "scaffold" else values


def roll_back(operator: Path, kit: Path, name: str, number: int) -> Version | None:
    """Sign, with the operator's kit, that a task goes on from the model that round `number` made (0: its own first one), and put
    it where a coordinator looks for it. Returns that version, None for the first model. Raises BlindsumError "rollback-refused"
    where the task is not paused or has had no round, and as `version`."""
    found = read_task(kit, name)
    if found.control.state != "paused":
        raise BlindsumError("rollback-refused", f"{name} is {found.control.state}")
    if not found.last_round:
        raise BlindsumError("rollback-refused", f"{name} has had no round")
    target, model = version(kit, name, number) if number else (None, read_file(task_place(kit, name) / "model.bin"))
    rollback = Rollback(
        task=found.view.digest,
        previous=_last_link(found.view, kit, found.last_round),
        origin=bytes.fromhex(target.result) if target else bytes(32),
        model=chunks_of(model, found.view.chunk_size)[0],
    )
    fleet = found.view.trust.fleet
    head = Head(type="rollback", fleet=fleet, task=name, round=found.last_round, sender="operator", to="all")
    place = task_place(kit, name)
    write_whole(place / ROLLBACK_MODEL, model)
    write_whole(place / ROLLBACK_FILE, seal_envelope(load_key(operator / "operator.pem"), head, rollback))
    return target


def rollback_of(kit: Path, name: str) -> bytes:
    """The operator's last rollback of a task, b"" where there is none."""
    path = task_place(kit, name) / ROLLBACK_FILE
    return read_file(path) if path.exists() else b""


def rollback_model(kit: Path, name: str) -> bytes:
    """The model that it names."""
    return read_file(task_place(kit, name) / ROLLBACK_MODEL)


def _last_link(view: TaskView, kit: Path, last: int) -> bytes:
    """What a rollback now follows: one that was made since the last round, else the result of that round."""
    earlier = rollback_of(kit, view.name)
    if earlier and (signed := _signed(view, earlier)).head.round == last:
        return signed.digest
    return _signed(view, _records(transcript_path(kit, view.name, last))["result"][0]).digest


def _read(view: TaskView, number: int, path: Path, known: dict[bytes, int]) -> tuple[Version, bytes]:
    """The version in a transcript, and the digest of its result. `known`: round by digest of the result."""
    records = _records(path)
    signed = _signed(view, records["result"][0])
    result = convert(signed.payload, Result)
    announcement = convert(_signed(view, records["announcement"][0]).payload, Announcement)
    certificate = _signed(view, records["certificate"][0])
    voters = [_signed(view, raw).head.sender for raw in convert(certificate.payload, Certificate).votes]
    previous, rolled_back = convert(_signed(view, announcement.manifest).payload, Manifest).previous, False
    if records["rollback"]:
        previous, rolled_back = convert(_signed(view, records["rollback"][0]).payload, Rollback).origin, True
    weight, examples, *rest = exact_sums(view, unpack(view.segments, records["sum"][0])).tolist()
    trains = view.task.algorithm.name != "evaluate"
    made = Version(
        round=number,
        at=path.stat().st_mtime_ns // 1_000_000,
        model=hashlib.sha256(records["next"][0]).hexdigest(),
        parent=known.get(previous),
        rolled_back=rolled_back,
        result=signed.digest.hex(),
        certificate=certificate.digest.hex(),
        voters=sorted(party_number(voter) for voter in voters),
        contributors=result.count,
        weight=weight,
        examples=examples if records["next"][0] else 0,  # a query counts other things
        loss=rest[0] / MILLION / examples if trains and rest and examples > 0 else None,
    )
    return made, signed.digest


def _records(path: Path) -> dict[str, list[bytes]]:
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as data,
        ):
            return read_records(data, _NAMES)
    except (OSError, ValueError, DecodeError) as error:
        raise BlindsumError("version-unknown", f"{path}: {error}") from None


def _signed(view: TaskView, raw: bytes) -> Signed:
    signed = open_message(view.trust, raw)
    if isinstance(signed, Refused):
        raise BlindsumError("version-unknown", f"a transcript of {view.name}: {signed.code}")
    return signed
