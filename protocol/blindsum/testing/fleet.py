"""Keys, certificates and a small task for tests: a whole fleet from one seed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blindsum.protocol.algorithm import algorithm_of
from blindsum.protocol.envelope import Head, open_envelope, seal_envelope
from blindsum.protocol.keys import BOX_PRIVATE_SIZE, box_keypair, certificate_issue, public_of
from blindsum.protocol.machines.device import DeviceIdentity
from blindsum.protocol.messages import (
    Algorithm,
    CodecSpec,
    KeyStep,
    NoRoster,
    Payload,
    SegmentSpec,
    Task,
    ThreatSpec,
    Training,
    chunks_of,
)
from blindsum.protocol.params import Committee
from blindsum.protocol.partykeys import next_step, operator_step, rank
from blindsum.protocol.quantize import bits_for
from blindsum.protocol.trust import Trust
from blindsum.testing.entropy import Entropy

__all__ = ["START", "TestFleet", "change_key", "make_fleet", "make_task"]

START = 1_760_000_000_000
"""Where virtual time starts, in ms."""


@dataclass(frozen=True, slots=True)
class TestFleet:
    """Everybody's keys. Nothing here is secret: it all follows from the seed."""

    __test__ = False

    trust: Trust
    ca: Ed25519PrivateKey
    operator: Ed25519PrivateKey
    coordinator: Ed25519PrivateKey
    coordinator_box: bytes
    parties: tuple[Ed25519PrivateKey, ...]
    devices: tuple[DeviceIdentity, ...]
    steps: tuple[tuple[KeyStep, ...], ...] = ()
    """Of each party, the steps to its current key."""

    def key_of(self, principal: str) -> Ed25519PrivateKey:
        """The signing key of "operator", "coordinator", "party/<n>" or "device/<id>"."""
        if principal == "operator":
            return self.operator
        if principal == "coordinator":
            return self.coordinator
        role, _, name = principal.partition("/")
        if role == "party":
            return self.parties[int(name) - 1]
        return next(identity.key for identity in self.devices if identity.name == name)

    def forge(self, kind: str, sender: str, to: str, payload: Payload, *, task: str, number: int) -> bytes:
        """A message that `sender` really signed, whatever its machine thinks of it."""
        head = Head(type=kind, fleet=self.trust.fleet, task=task, round=number, sender=sender, to=to)
        return seal_envelope(self.key_of(sender), head, payload)

    def resign(self, raw: bytes, payload: Payload) -> bytes:
        """The message `raw` with another body, signed anew by the same sender."""
        head = open_envelope(raw).head
        return seal_envelope(self.key_of(head.sender), head, payload)


def change_key(fleet: TestFleet, party: int, key: Ed25519PrivateKey, *, by_operator: bool = False) -> TestFleet:
    """The fleet in which a party has signed its key over to `key`, or the operator has given it that one."""
    place, before = party - 1, fleet.steps[party - 1]
    if by_operator:
        after: tuple[KeyStep, ...] = (
            operator_step(fleet.operator, fleet.trust, party, rank(before)[0] + 1, public_of(key)),
        )
    else:
        after = (*before, next_step(fleet.parties[place], fleet.trust, party, before, public_of(key)))
    parties, steps = list(fleet.parties), list(fleet.steps)
    parties[place], steps[place] = key, after
    return replace(fleet, parties=tuple(parties), steps=tuple(steps))


def make_fleet(seed: int, *, parties: int, devices: int, name: str = "test") -> TestFleet:
    """A fleet of `parties` parties and devices "d-0000"…, with certificates valid around `START`."""
    random = Entropy(seed, "fleet")

    def key() -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(random(32))

    ca, operator, coordinator = key(), key(), key()
    box_private, box_public = box_keypair(random(BOX_PRIVATE_SIZE))
    party_keys = tuple(key() for _ in range(parties))
    root = certificate_issue(
        name=name, public=public_of(ca), issuer=name, issuer_key=ca, serial=1, now=START, days=3650, ca=True
    )
    identities = []
    for number in range(devices):
        own, device = key(), f"d-{number:04d}"
        certificate = certificate_issue(
            name=device, public=public_of(own), issuer=name, issuer_key=ca, serial=number + 2, now=START, days=365
        )
        identities.append(DeviceIdentity(device, certificate, own))
    trust = Trust(
        name, root, public_of(operator), public_of(coordinator), box_public, tuple(public_of(k) for k in party_keys)
    )
    steps: tuple[tuple[KeyStep, ...], ...] = ((),) * parties
    return TestFleet(trust, ca, operator, coordinator, box_private, party_keys, tuple(identities), steps)


def make_task(
    fleet: TestFleet,
    *,
    name: str = "sum",
    length: int = 50,
    width: int = 24,
    committee: Committee,
    devices_min: int = 2,
    devices_max: int,
    cohort_min: int = 2,
    corrupt_permille: int = 100,
    dropped_permille: int = 500,
    weight_max: int = 8,
    suite: str = "aes128-ctr",
    chunk_size: int = 1024,
    rotate: bool = False,
    rounds_max: int = 1000,
    statistics: int = 1,
    algorithm: Algorithm | None = None,
    join_ms: int = 5_000,
    upload_ms: int = 30_000,
    decide_ms: int = 20_000,
    no_roster: NoRoster | None = None,
) -> tuple[bytes, bytes, bytes]:
    """(signed task, plan, initial model) of a task with `length` quantised values and [weight, statistics…] exactly."""
    plan, model = b"a plan", np.zeros(length, "<f4").tobytes()
    codec = CodecSpec(
        clip_micros=1_000_000,
        range_micros=1_000_000,
        bits=min(32, bits_for(width, devices_max, weight_max)),
        weight_max=weight_max,
        rotate=rotate,
    )
    task = Task(
        trust=fleet.trust.digest,
        plan=chunks_of(plan, chunk_size)[0],
        model=chunks_of(model, chunk_size)[0],
        segments=[
            SegmentSpec(name="parameters", length=length, width=width, codec="quantised"),  # type: ignore[arg-type]
            SegmentSpec(name="statistics", length=1 + statistics, width=64, codec="exact"),
        ],
        codec=codec,
        threat=ThreatSpec(
            parties=committee.parties,
            threshold=committee.threshold,
            quorum=committee.quorum,
            malicious_parties=committee.equivocators,
            corrupt_permille=corrupt_permille,
            dropped_permille=dropped_permille,
            cohort_min=cohort_min,
        ),
        devices_min=devices_min,
        devices_max=devices_max,
        suite=suite,  # type: ignore[arg-type]
        training=Training(epochs=1, batch_size=8, rate_micros=100_000, proximal_micros=0, control_micros=0),
        algorithm=algorithm or algorithm_of("fedavg", rate_micros=1_000_000),
        join_ms=join_ms,
        upload_ms=upload_ms,
        decide_ms=decide_ms,
        rounds_max=rounds_max,
        eligibility=[],
        **({} if no_roster is None else {"no_roster": no_roster}),
    )
    head = Head(type="task", fleet=fleet.trust.fleet, task=name, round=0, sender="operator", to="all")
    return seal_envelope(fleet.operator, head, task), plan, model
