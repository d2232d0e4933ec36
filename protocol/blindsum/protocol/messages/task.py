"""The task: what the operator signs once, and what no coordinator may change later (SPEC.md section 5.1)."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from blindsum.protocol.messages.common import (
    BYTES_MAX,
    DEVICES_MAX,
    PARTIES_MAX,
    BlobRef,
    Bytes32,
    Count,
    Name,
    Payload,
)

__all__ = [
    "Algorithm",
    "CodecSpec",
    "Criterion",
    "NoRoster",
    "Rollback",
    "SegmentSpec",
    "Task",
    "ThreatSpec",
    "Training",
]

Micros = Annotated[int, Meta(ge=0, le=2**53)]
Decay = Annotated[int, Meta(ge=0, le=999_999)]
Duration = Annotated[int, Meta(ge=100, le=7 * 86_400_000)]


class SegmentSpec(Payload, frozen=True):
    """One part of the vector: model parameters ("quantised") or exact integers ("exact")."""

    name: Name
    length: Annotated[int, Meta(ge=1, le=BYTES_MAX // 2)]
    width: Literal[16, 24, 32, 64]
    codec: Literal["quantised", "exact"]


class CodecSpec(Payload, frozen=True):
    """How an update becomes ring elements; lengths are in 10^-6 (no float travels)."""

    clip_micros: Annotated[int, Meta(ge=1, le=2**53)]
    range_micros: Annotated[int, Meta(ge=1, le=2**53)]
    bits: Annotated[int, Meta(ge=2, le=32)]
    weight_max: Annotated[int, Meta(ge=1, le=2**24)]
    rotate: bool


class ThreatSpec(Payload, frozen=True):
    """Who may misbehave, and the committee that follows from it."""

    parties: Annotated[int, Meta(ge=1, le=PARTIES_MAX)]
    threshold: Annotated[int, Meta(ge=1, le=PARTIES_MAX)]
    quorum: Annotated[int, Meta(ge=1, le=PARTIES_MAX)]
    malicious_parties: Annotated[int, Meta(ge=1, le=PARTIES_MAX)]
    corrupt_permille: Annotated[int, Meta(ge=0, le=1000)]
    dropped_permille: Annotated[int, Meta(ge=0, le=1000)]
    cohort_min: Annotated[int, Meta(ge=2, le=DEVICES_MAX)]


class Training(Payload, frozen=True):
    """What a device does between model and update."""

    epochs: Annotated[int, Meta(ge=1, le=1000)]
    batch_size: Annotated[int, Meta(ge=1, le=65_536)]
    rate_micros: Micros
    proximal_micros: Micros
    """FedProx: the pull of a step towards the model of the round, in 10^-6; 0: none."""
    control_micros: Micros
    """SCAFFOLD: a control variate travels as this many 10^-6 times itself; 0 for any other algorithm."""


class Algorithm(Payload, frozen=True):
    """What turns a sum into the next model. Numbers that its formula has no place for are 0 (SPEC.md section 9.3)."""

    name: Literal["fedavg", "fedavgm", "fedadam", "fedyogi", "scaffold", "evaluate"]
    rate_micros: Micros
    beta1_micros: Decay
    beta2_micros: Decay
    tau_micros: Micros
    population: Annotated[int, Meta(ge=0, le=2**53)]
    """SCAFFOLD: the weight of all devices together, in a round or not."""


class Criterion(Payload, frozen=True):
    """Whom the operator wants: a kind and version that devices know, or are not eligible (`protocol.eligibility`)."""

    kind: Name
    version: Annotated[int, Meta(ge=1, le=255)]
    values: Annotated[list[Annotated[int, Meta(ge=0, le=2**53)]], Meta(max_length=4)]


class NoRoster(Payload, frozen=True):
    """The no-roster profile: layer 1 alone. A device may upload what it trained on a model of at most so many rounds before."""

    staleness_max: Annotated[int, Meta(ge=0, le=100)]


class Task(Payload, frozen=True):
    """Everything constant over the rounds of a task. Round 1 starts from `model`."""

    trust: Bytes32
    plan: BlobRef
    model: BlobRef
    segments: Annotated[list[SegmentSpec], Meta(min_length=1, max_length=16)]
    codec: CodecSpec
    threat: ThreatSpec
    devices_min: Annotated[int, Meta(ge=2, le=DEVICES_MAX)]
    devices_max: Annotated[int, Meta(ge=2, le=DEVICES_MAX)]
    suite: Literal["aes128-ctr", "chacha20"]
    training: Training
    algorithm: Algorithm
    join_ms: Duration
    upload_ms: Duration
    decide_ms: Duration
    rounds_max: Count
    eligibility: Annotated[list[Criterion], Meta(max_length=8)]
    no_roster: NoRoster | UnsetType = UNSET
    """Absent: rounds have a roster, and both mask layers."""


class Rollback(Payload, frozen=True):
    """The operator takes a task back to an earlier model. A link of the chain after the one of digest `previous`, which is of the
    round that the envelope names: the next round starts from `model`, as the result of digest `origin` made it (zeros: the task's
    own), and from the empty state."""

    task: Bytes32
    previous: Bytes32
    origin: Bytes32
    model: BlobRef
