"""The transcript of a round and its verification by anybody (SPEC.md section 10).

A file of `MAGIC` and then one deterministic CBOR item a record, [name, bytes]. Every byte of it is covered by a signature, a
digest that a signature covers, or the recomputation, so an altered byte always shows. A round that failed has one, too: what
there was of it, and the message that ended it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from typing import Final

from blindsum.protocol.codec import DecodeError, decode, encode
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.failed import FailedVerifier
from blindsum.protocol.report import Fault, Report
from blindsum.protocol.trust import Trust
from blindsum.protocol.verifier import KEEPER, Stop, Verifier

__all__ = ["MAGIC", "Fault", "Report", "read_records", "verify", "write_records"]

MAGIC: Final = b"blindsum transcript 1\n"
_ONCE: Final = (
    "trust",
    "announcement",
    "certificate",
    "survivors",
    "result",
    "sum",
    "model",
    "state",
    "next",
)
_ANY: Final = ("rollback", "roster", "joins", "listed")
"""At most one of each: `roster` and `joins` where the task has a roster, else `listed`."""
_MANY: Final = ("header", "body", "opening", "content", "check", "evidence")
_FAILED_ONCE: Final = ("trust", "failure")
_FAILED_ANY: Final = (
    "task",
    "manifest",
    "announcement",
    "joins",
    "roster-proposal",
    "roster",
    "listed",
    "candidate",
    "proposal",
    "certificate",
    "survivors",
    "model",
    "state",
)
"""At most one of each, as far as the round came."""
_FAILED_MANY: Final = ("offer", "vote", *_MANY)


def write_records(records: Iterable[tuple[str, bytes]]) -> Iterator[bytes]:
    """The pieces of a transcript file, to be written one after another."""
    yield MAGIC
    for name, data in records:
        yield encode([name, data])


def read_records(data: bytes | memoryview, wanted: Container[str] | None = None) -> dict[str, list[bytes]]:
    """The records of a transcript by name, in file order; of a round that failed there is "failure". Where some are `wanted`, the
    others are there empty, and were not read. Raises `DecodeError` where it is not one."""
    if data[: len(MAGIC)] != MAGIC:
        raise DecodeError("not a transcript: the first line is not the magic")
    records: dict[str, list[bytes]] = {
        name: [] for name in {*_ONCE, *_ANY, *_MANY, *_FAILED_ONCE, *_FAILED_ANY, *_FAILED_MANY}
    }
    start = len(MAGIC)
    while start < len(data):
        at, start = start, _record_end(data, start)
        if wanted is not None and _name(data, at) not in wanted:
            continue
        record = decode(bytes(data[at:start]))
        if not (isinstance(record, list) and [type(part) for part in record] == [str, bytes] and record[0] in records):
            raise DecodeError(f"record at byte {at} is of no known kind")
        records[record[0]].append(record[1])
    once, perhaps, many = (_FAILED_ONCE, _FAILED_ANY, _FAILED_MANY) if records["failure"] else (_ONCE, _ANY, _MANY)
    for name, found in records.items():
        if wanted is not None and name not in wanted:
            continue
        most = len(found) if name in many else int(name in once or name in perhaps)
        if not int(name in once) <= len(found) <= most:
            raise DecodeError(f"{len(found)} records {name!r} where {most} may be")
    return records


def verify(data: bytes, *, trust: Trust | None = None) -> Report:
    """Recompute a round from its transcript. `trust`: the bundle to hold it to (else the transcript's own, which proves only that
    it is consistent with itself). Never raises for what is in the transcript."""
    report = Report()
    try:
        records = read_records(data)
        found = Trust.decode(records["trust"][0])
    except DecodeError as error:
        report.blame(KEEPER, "transcript-malformed", str(error))
        return report
    if trust is not None and found != trust:
        report.blame(KEEPER, "trust-differs")
        return report
    try:
        (FailedVerifier if records["failure"] else Verifier)(found, records, report).run()
    except Stop:
        pass
    except (BlindsumError, DecodeError) as error:
        report.blame(KEEPER, "transcript-malformed", str(error))
    return report


def _name(data: bytes | memoryview, start: int) -> str:
    """The name of the record that begins there; "" where none does."""
    first = data[start + 1] if start + 1 < len(data) else 0
    return bytes(data[start + 2 : start + 2 + (first & 0x1F)]).decode("utf-8", "replace")


def _record_end(data: bytes | memoryview, start: int) -> int:
    """Where a record ends by the lengths that its name and its bytes state; whether it is one, `decode` says."""
    at = start + 2 + (data[start + 1] & 0x1F if start + 1 < len(data) else 0)
    first = data[at] & 0x1F if at < len(data) else 0
    width = {24: 1, 25: 2, 26: 4, 27: 8}.get(first, 0)
    return at + 1 + width + (int.from_bytes(data[at + 1 : at + 1 + width], "big") if width else first)
