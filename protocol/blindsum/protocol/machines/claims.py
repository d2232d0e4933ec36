"""Whose upload a header is: a device of the roster, or whoever has a certificate (SPEC.md sections 5.4, 5.8)."""

from __future__ import annotations

from blindsum.protocol.arrivals import ARRIVALS_SPARE, Arrival, Arrivals, open_arrival
from blindsum.protocol.eligibility import place_of
from blindsum.protocol.envelope import Signed
from blindsum.protocol.errors import Refused
from blindsum.protocol.machines.coordinatorround import CoordinatorRound
from blindsum.protocol.machines.desk import Desk
from blindsum.protocol.messages import Header
from blindsum.protocol.roster import RosterView
from blindsum.protocol.view import RoundView, payload_of

__all__ = ["arrived", "expected"]


def expected(round_: CoordinatorRound, roster: RosterView, signed: Signed) -> Arrival | Refused:
    """The header of a device of the roster."""
    header = payload_of(signed, Header)
    if isinstance(header, Refused):
        return header
    if header.index >= roster.size or signed.head.sender != f"device/{roster.devices[header.index]}":
        return Refused("header-foreign", detail=signed.head.sender)
    device = roster.devices[header.index]
    identity = round_.joins[device][1]
    if not signed.valid(identity):
        return Refused("signature-invalid", detail=signed.head.sender)
    return Arrival(device, identity, 0, header)


def arrived(desk: Desk, view: RoundView, roster: Arrivals, signed: Signed, *, held: int) -> Arrival | Refused:
    """The header of whoever has a certificate, where so many are `held` already. A device that is not wanted is told why."""
    found = open_arrival(view, signed)
    if isinstance(found, Refused) or found.device in roster.numbers:
        return found
    code = ""
    if found.serial in desk.revoked.current.serials:
        code = "certificate-revoked"
    elif held >= ARRIVALS_SPARE * roster.capacity:
        code = "cohort-full"
    elif place_of(found.device, view.name) >= desk.stage(view.name):
        code = "not-staged"
    if code:
        desk.receipt(view, found.device, signed.digest, "refused", code)
        return Refused(code, detail=found.device)
    return found
