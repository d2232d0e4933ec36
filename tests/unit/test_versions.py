"""Sides of different protocol versions find out, and are not led astray."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blindsum.protocol import envelope
from blindsum.protocol.envelope import Head, seal_envelope
from blindsum.protocol.errors import Refused
from blindsum.protocol.keys import box_keypair, box_seal, public_of
from blindsum.protocol.machines.device import DeviceIdentity, DeviceMachine, Floor
from blindsum.protocol.messages import Failure
from blindsum.protocol.trust import Trust
from blindsum.protocol.versions import foreign, upgrade_required
from blindsum.runtime.memory import MemoryStore

COORDINATOR = Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\1")
OTHERS = [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in range(1, 6)]
TRUST = Trust(
    "clinics",
    b"",
    public_of(OTHERS[0]),
    public_of(COORDINATOR),
    box_keypair(bytes(96))[1],
    tuple(public_of(key) for key in OTHERS[1:]),
)


def spoken(version: int, key: Ed25519PrivateKey = COORDINATOR, **changes: str) -> bytes:
    """A message as a side of protocol `version` would send it."""
    head = Head(
        **{"type": "failure", "fleet": "clinics", "task": "t", "round": 1, "sender": "coordinator", "to": "all"}
        | changes
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(envelope, "PROTOCOL_VERSION", version)
        return seal_envelope(key, head, Failure(manifest=bytes(32), code="deadline"))


def device() -> DeviceMachine:
    return DeviceMachine(
        identity=DeviceIdentity("phone", b"", OTHERS[0]),
        trust=TRUST,
        tasks=frozenset({"t"}),
        store=MemoryStore(),
        random=bytes,
        seal=box_seal,
        floor=Floor(),
        willing=lambda _view: "",
    )


@pytest.mark.parametrize(("version", "older"), [(2, "this side"), (0, "coordinator")])
def test_device_is_told_to_upgrade_by_a_true_message_of_another_version(version: int, older: str) -> None:
    step = device().receive(spoken(version), 0)
    assert step.refused is not None and step.refused.code == "upgrade-required"
    assert step.refused.detail.endswith(f"{older} is the older one")
    assert not step.messages


def test_nobody_else_can_send_people_looking_for_another_version() -> None:
    forged = spoken(2, OTHERS[4])
    foreign_fleet = spoken(2, fleet="banks")
    unknown = spoken(2, sender="device/phone")
    for raw in (forged, foreign_fleet, unknown):
        assert upgrade_required(TRUST, raw) is None
        assert device().receive(raw, 0).refused.code == "message-version"


def test_same_version_and_junk_are_not_foreign() -> None:
    good = spoken(1)
    assert foreign(good) is None and upgrade_required(TRUST, good) is None
    for junk in (b"", b"\xd2", good[:-1], b"\xd2\x84\x40\xa0\x40\x40", spoken(2)[:40]):
        assert foreign(junk) is None


def test_party_that_speaks_another_version_is_named() -> None:
    refused = upgrade_required(TRUST, spoken(3, OTHERS[1], sender="party/1"))
    assert isinstance(refused, Refused)
    assert "party/1 speaks version 3, this side 1" in refused.detail
