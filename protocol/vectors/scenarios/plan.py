"""Tasks and rounds for vectors that need one but no signatures."""

from __future__ import annotations

from typing import Any

from blindsum.protocol.algorithm import algorithm_of
from blindsum.protocol.messages import (
    CodecSpec,
    Manifest,
    NoRoster,
    SegmentSpec,
    Task,
    ThreatSpec,
    Training,
    chunks_of,
)
from blindsum.protocol.params import Committee
from blindsum.protocol.quantize import Codec
from blindsum.protocol.ring import Segment
from blindsum.protocol.roster import RosterView
from blindsum.protocol.trust import Trust
from blindsum.protocol.view import Member, RoundView, TaskView

__all__ = ["codec_of", "plain_view", "segments_of"]

_NUMBERS = ("rate_micros", "beta1_micros", "beta2_micros", "tau_micros", "population")
_CODEC = {"clip_micros": 1_000_000, "range_micros": 1_000_000, "bits": 8, "weight_max": 1}


def segments_of(given: list[dict[str, Any]]) -> list[Segment]:
    return [Segment(s["name"], s["length"], s["width"]) for s in given]


def codec_of(given: dict[str, Any]) -> Codec:
    """Raises BlindsumError "parameters-unsafe"."""
    return Codec(
        clip_norm=given["clip_micros"] / 1e6,
        value_range=given["range_micros"] / 1e6,
        bits=given["bits"],
        weight_max=given["weight_max"],
        rotation=given["rotation"],
    )


def plain_view(given: dict[str, Any]) -> tuple[RoundView, RosterView]:
    """The round that `given` describes, as far as it describes one."""
    p, t, q, c = given.get("committee", (4, 2, 3, 1))
    empty, none = chunks_of(b"", 16_384)[0], bytes(32)
    codec = CodecSpec(**{name: given.get(name, value) for name, value in _CODEC.items()}, rotate=False)
    task = Task(
        trust=none,
        plan=empty,
        model=chunks_of(given.get("model", b""), 16_384)[0],
        segments=[SegmentSpec(**{"codec": "exact", **segment}) for segment in given["segments"]],
        codec=codec,
        threat=ThreatSpec(
            parties=p,
            threshold=t,
            quorum=q,
            malicious_parties=c,
            corrupt_permille=0,
            dropped_permille=0,
            cohort_min=2,
        ),
        devices_min=2,
        devices_max=100,
        suite=given.get("suite", "aes128-ctr"),
        training=Training(epochs=1, batch_size=1, rate_micros=0, proximal_micros=0, control_micros=0),
        algorithm=algorithm_of(
            given.get("algorithm", "fedavg"), **{name: given[name] for name in _NUMBERS if name in given}
        ),
        join_ms=1000,
        upload_ms=1000,
        decide_ms=1000,
        rounds_max=1,
        eligibility=[],
        **({"no_roster": NoRoster(staleness_max=0)} if "device" in given else {}),
    )
    trust = Trust("vectors", b"", none, none, none, (none,) * p)
    base = TaskView(trust, "sum", task, none, b"", Committee.custom(p, t, q, c))
    manifest = Manifest(
        task=none,
        previous=none,
        model=empty,
        state=none,
        offers=[],
        rotation=b"",
        issued_at=0,
        join_until=0,
        upload_until=0,
        expires_at=0,
    )
    members = tuple(Member(party, none, none, none) for party in given.get("members", ()))
    view = RoundView(base, 1, manifest, given.get("manifest", none), members, b"")
    keys = tuple(given.get("keys", ()))
    devices = tuple(f"d-{index}" for index in range(len(keys)))
    return view, RosterView(given.get("roster", none), devices, keys, 2, given.get("degree", 2))
