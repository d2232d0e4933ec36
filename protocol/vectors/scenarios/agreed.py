"""What the product makes of tasks, manifests, rosters, uploads and records: the kinds of vectors in which roles agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NoReturn

from blindsum.protocol import masks, ring
from blindsum.protocol.arrivals import Arrival, Arrivals, admit, open_arrival, read_names
from blindsum.protocol.errors import Refused
from blindsum.protocol.messages import Header, chunks_of
from blindsum.protocol.roster import (
    Joins,
    RosterView,
    open_join,
    open_joins,
    open_roster,
    open_roster_announcement,
    read_survivors,
)
from blindsum.protocol.transcript import verify, write_records
from blindsum.protocol.trust import Trust
from blindsum.protocol.view import RoundView, TaskView, open_manifest, open_message, open_task, payload_of

__all__ = ["AGREED", "Refusal", "Values", "refuse"]

Values = dict[str, Any]


class Refusal(Exception):
    """The product refused, with this code."""


def refuse(code: str) -> NoReturn:
    raise Refusal(code)


def _survivors(given: Values) -> Values:
    found = read_survivors(given["bytes"], given["devices"])
    if isinstance(found, Refused):
        refuse(found.code)
    return {"survivors": [[index, digest] for index, digest in found.items()]}


def _transcript(given: Values) -> Values:
    records = [(name, data) for name, data in given["records"]]
    for name, place, data in given.get("replace", []):
        records[[i for i, (other, _) in enumerate(records) if other == name][place]] = (name, data)
    records += [(name, data) for name, data in given.get("add", [])]
    report = verify(b"".join(write_records(records)), trust=Trust.decode(given["trust"]))
    return {"faults": [[fault.principal, fault.code] for fault in report.faults]}


def _failed(given: Values) -> Values:
    records = [(name, data) for name, data in (given["records"][place] for place in given["take"])]
    records += [(name, data) for name, data in given.get("add", [])]
    report = verify(b"".join(write_records(records)), trust=Trust.decode(given["trust"]))
    return {"faults": [[fault.principal, fault.code] for fault in report.faults]}


# -- agreements ---------------------------------------------------------------------------------------------------------


def _take(value: Any) -> Any:
    return refuse(value.code) if isinstance(value, Refused) else value


def _task(given: Values) -> Values:
    base: TaskView = _take(open_task(Trust.decode(given["trust"]), given["bytes"]))
    return {
        "digest": base.digest,
        "self_subsets": len(base.self_subsets),
        "cap_subsets": len(base.cap_subsets),
        "packed_size": ring.packed_size(base.segments),
    }


def _view(given: Values, raw: bytes) -> RoundView:
    base: TaskView = _take(open_task(Trust.decode(given["trust"]), given["task"]))
    view: RoundView = _take(open_manifest(base, raw))
    return view


def _manifest(given: Values) -> Values:
    view = _view(given, given["bytes"])
    return {"digest": view.digest, "round": view.number, "members": [member.party for member in view.members]}


def _join(given: Values) -> Values:
    device, identity, join, digest = _take(open_join(_view(given, given["manifest"]), given["bytes"]))
    return {"device": device, "identity": identity, "key": join.key, "digest": digest}


def _agreed(given: Values) -> tuple[RoundView, Joins, RosterView]:
    view = _view(given, given["manifest"])
    proposal, _, digest = _take(open_roster_announcement(view, given["proposal"], given["votes"]))
    joins: Joins = _take(open_joins(view, given["joins"]))
    if chunks_of(joins.entries, view.base.chunk_size)[0] != proposal.entries:
        refuse("roster-malformed")
    return view, joins, _take(open_roster(view, joins.entries, digest))


def _roster(given: Values) -> Values:
    _, joins, roster = _agreed(given)
    return {
        "roster": roster.digest,
        "entries": joins.entries,
        "neighbours": [list(roster.neighbours(index)) for index in range(roster.size)],
        "survivors_min": roster.survivors_min,
    }


def _header(given: Values) -> Values:
    view, joins, roster = _agreed(given)
    signed = _take(open_message(view.trust, given["bytes"]))
    header = _take(payload_of(signed, Header))
    if header.index >= roster.size or signed.head.sender != f"device/{roster.devices[header.index]}":
        refuse("header-foreign")
    if not signed.valid(joins.identities[header.index]):
        refuse("signature-invalid")
    fault = masks.header_fault(view, roster, header, ring.packed_size(view.base.segments))
    return {"index": header.index, "digest": signed.digest} if not fault else refuse(fault)


def _arrival(given: Values) -> Values:
    view = _view(given, given["manifest"])
    signed = _take(open_message(view.trust, given["bytes"]))
    found: Arrival = _take(open_arrival(view, signed))
    roster = Arrivals.of(view)
    fault = masks.header_fault(view, roster, admit(roster, found), ring.packed_size(view.base.segments))
    return {"device": found.device, "identity": found.identity, "digest": signed.digest} if not fault else refuse(fault)


def _listed(given: Values) -> Values:
    return {"survivors": [list(row) for row in _take(read_names(given["bytes"], given["devices_max"]))]}


AGREED: Final[dict[str, Callable[[Values], Values]]] = {
    "survivors": _survivors,
    "transcript": _transcript,
    "failed": _failed,
    "task": _task,
    "manifest": _manifest,
    "join": _join,
    "roster": _roster,
    "header": _header,
    "arrival": _arrival,
    "listed": _listed,
}
