"""What a role knows of a task and round once signatures and votes are checked (SPEC.md section 5).

The openers take bytes from anybody and give a frozen view or a `Refused`; everything behind a view is trusted inside. Devices,
parties, the coordinator and `verify` all look through these, so there is one reading of every message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

from msgspec import UNSET

from blindsum.protocol.algorithm import algorithm_fault, state_size
from blindsum.protocol.codec import DecodeError, convert
from blindsum.protocol.envelope import Head, Signed, is_name, open_envelope
from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.graph import degree_for
from blindsum.protocol.keys import HASH_SIZE, SEED_SIZE, box_usable
from blindsum.protocol.memo import shared
from blindsum.protocol.messages import (
    MESSAGE_SIZE_MAX,
    MESSAGES,
    NEIGHBOURS_MAX,
    KeyStep,
    Manifest,
    Offer,
    Payload,
    Rollback,
    Task,
    Vote,
    chunks_of,
)
from blindsum.protocol.messages.common import BLOB_CHUNKS_MAX
from blindsum.protocol.params import Committee, ThreatModel, arrivals_min
from blindsum.protocol.partykeys import keys_of, shown_keys
from blindsum.protocol.quantize import Codec, bits_for
from blindsum.protocol.ring import Segment, packed_size
from blindsum.protocol.sharing import subsets
from blindsum.protocol.trust import Trust, party_number

__all__ = [
    "CLOCK_SKEW_MAX_MS",
    "Member",
    "RoundView",
    "TaskView",
    "count_votes",
    "expect",
    "head_misfit",
    "open_manifest",
    "open_message",
    "open_task",
    "opening_size_max",
    "payload_of",
    "rollback_fits",
]

ROTATION_SIZE = 16
LOST_PERMILLE_MAX = 900
"""Up to here, and not far above, every device of every round has at most `NEIGHBOURS_MAX` neighbours."""
DECISIONS_MAX = 8
"""A round expires at most this many `decide_ms` after uploading ends: secrets do not lie about for longer."""
CLOCK_SKEW_MAX_MS = 300_000
"""A manifest issued further in the future than this means that this clock, or the coordinator's, is wrong."""

P = TypeVar("P", bound=Payload)


# -- envelopes --------------------------------------------------------------------------------------------------------


@shared(64, lambda trust, raw: (raw, trust))
def open_message(trust: Trust, raw: bytes) -> Signed | Refused:
    """Size, syntax, version, type, fleet, role and (except for devices, whose key comes with their join) signature."""
    if len(raw) > MESSAGE_SIZE_MAX:
        return Refused("message-too-large")
    try:
        signed = open_envelope(raw)
    except DecodeError as error:
        return Refused("message-version" if str(error) == "version" else "message-malformed", detail=str(error))
    head = signed.head
    if (misfit := head_misfit(trust, head, len(raw))) is not None:
        return misfit
    if head.sender.startswith("device/"):
        if not is_name(head.sender.removeprefix("device/")):
            return Refused("message-malformed", detail="device name")
        return signed
    if head.type == "offer":
        key = next(reversed(shown_keys(trust, party_number(head.sender), signed.payload)), None)
    else:
        key = trust.key_of(head.sender)
    if key is None or not signed.valid(key):
        retired = key is not None and any(signed.valid(old) for old in trust.retired(head.sender))
        return Refused("key-retired" if retired else "signature-invalid", detail=head.sender)
    return signed


def head_misfit(trust: Trust, head: Head, size: int) -> Refused | None:
    """Why no message of `size` bytes with this head can be one of the fleet."""
    if head.type not in MESSAGES:
        return Refused("message-type-unknown", detail=head.type)
    _, role, size_max = MESSAGES[head.type]
    if size > size_max:
        return Refused("message-too-large", detail=head.type)
    if head.fleet != trust.fleet:
        return Refused("fleet-foreign", detail=head.fleet)
    if role not in ("any", head.sender.split("/")[0]):
        return Refused("sender-wrong-role", detail=f"{head.type} from {head.sender}")
    return None


@shared(64, lambda signed, kind: (signed.raw, kind))
def payload_of(signed: Signed, kind: type[P]) -> P | Refused:
    """The typed body, or the sender's fault (not a device's: its signature is not checked yet)."""
    try:
        return convert(signed.payload, kind)
    except DecodeError as error:
        sender = signed.head.sender
        return Refused("message-malformed", "" if sender.startswith("device/") else sender, f"{sender}: {error}")


def expect(trust: Trust, raw: bytes, name: str, kind: type[P], *, task: str, number: int) -> tuple[Signed, P] | Refused:
    """Open an embedded message of one type, task and round."""
    signed = open_message(trust, raw)
    if isinstance(signed, Refused):
        return signed
    if (signed.head.type, signed.head.task, signed.head.round) != (name, task, number):
        # whoever put it here is at fault, not who signed it for another place
        return Refused("message-misplaced", detail=f"{signed.head.type} where {name} belongs")
    payload = payload_of(signed, kind)
    return payload if isinstance(payload, Refused) else (signed, payload)


# -- tasks ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskView:
    """A task the operator signed, with what follows from it."""

    trust: Trust
    name: str
    task: Task
    digest: bytes
    raw: bytes = field(repr=False)
    committee: Committee

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        return tuple(Segment(s.name, s.length, s.width) for s in self.task.segments)

    @property
    def has_roster(self) -> bool:
        """Whether devices join before they upload, and mask each other's updates too (layer 2)."""
        return self.task.no_roster is UNSET

    @property
    def staleness_max(self) -> int:
        """How many rounds ago a device may have begun what it uploads."""
        return 0 if self.task.no_roster is UNSET else self.task.no_roster.staleness_max

    @property
    def chunk_size(self) -> int:
        """Bytes a chunk of every blob of this task: what its plan was cut into."""
        return self.task.plan.chunk_size

    @cached_property
    def first_state(self) -> bytes:
        """The id of the state before the first round, which is empty."""
        return chunks_of(b"", self.chunk_size)[0].id

    @cached_property
    def threat(self) -> ThreatModel:
        spec = self.task.threat
        return ThreatModel(
            malicious_parties=spec.malicious_parties,
            corrupt_permille=spec.corrupt_permille,
            dropped_permille=spec.dropped_permille,
            cohort_min=spec.cohort_min,
        )

    @cached_property
    def self_subsets(self) -> tuple[tuple[int, ...], ...]:
        """Layer 1: all sets of t - 1 parties; each seed goes to every party outside its set."""
        return subsets(self.committee.parties, self.committee.threshold - 1)

    @cached_property
    def cap_subsets(self) -> tuple[tuple[int, ...], ...]:
        """Layer 2: all sets of q - 1 parties; none where there is no roster, and so no second layer."""
        return subsets(self.committee.parties, self.committee.quorum - 1) if self.has_roster else ()

    def codec(self, rotation: bytes) -> Codec:
        spec = self.task.codec
        return Codec(
            clip_norm=spec.clip_micros / 1e6,
            value_range=spec.range_micros / 1e6,
            bits=spec.bits,
            weight_max=spec.weight_max,
            rotation=rotation,
        )


@shared(8, lambda trust, raw: (raw, trust))
def open_task(trust: Trust, raw: bytes) -> TaskView | Refused:
    """A task is taken only with the operator's signature, this trust bundle, and parameters that are safe together."""
    signed = open_message(trust, raw)
    if isinstance(signed, Refused):
        return signed
    if signed.head.type != "task":
        return Refused("message-misplaced", detail=signed.head.type)
    task = payload_of(signed, Task)
    if isinstance(task, Refused):
        return task
    if task.trust != trust.digest:
        return Refused("trust-differs", "operator")
    spec = task.threat
    try:
        committee = Committee.custom(
            parties=spec.parties, threshold=spec.threshold, quorum=spec.quorum, equivocators=spec.malicious_parties
        )
        for segment in task.segments:
            if segment.codec == "quantised":
                best = bits_for(segment.width, task.devices_max, task.codec.weight_max)
                if task.codec.bits > best:
                    raise BlindsumError(
                        "parameters-unsafe",
                        f"{task.codec.bits}-bit values wrap in {segment.width} bits; {best} fit {task.devices_max} devices",
                    )
        base = TaskView(trust, signed.head.task, task, signed.digest, raw, committee)
        # what a threat model or a codec refuses is refused here, not in the middle of a round
        _, _ = base.threat, base.codec(bytes(ROTATION_SIZE) if task.codec.rotate else b"")
    except BlindsumError as error:
        return Refused("parameters-unsafe", "operator", error.detail)
    fault = _task_fault(base)
    return Refused("parameters-unsafe", "operator", fault) if fault else base


def rollback_fits(base: TaskView, rollback: Rollback) -> bool:
    """Whether a rollback is of this task and names a model that its rounds can start from."""
    model, first = rollback.model, base.task.model
    same = (model.size, model.chunk_size) == (first.size, first.chunk_size)
    return rollback.task == base.digest and rollback.previous != bytes(32) and model.sound and same


def _task_fault(base: TaskView) -> str:
    task = base.task
    exact = [segment for segment in task.segments if segment.codec == "exact"]
    if task.threat.parties != len(base.trust.parties):
        return f"the task names {task.threat.parties} parties, the trust bundle {len(base.trust.parties)}"
    if not task.threat.cohort_min <= task.devices_min <= task.devices_max:
        return "cohort_min <= devices_min <= devices_max does not hold"
    if task.threat.corrupt_permille + task.threat.dropped_permille > LOST_PERMILLE_MAX:
        return (
            f"with over {LOST_PERMILLE_MAX} permille corrupt or dropped a device needs over {NEIGHBOURS_MAX} neighbours"
        )
    if not (task.plan.sound and task.model.sound):
        return "a blob reference has the wrong number of digests"
    if len({segment.name for segment in task.segments}) != len(task.segments):
        return "two segments share a name"
    if len(exact) != 1 or exact[0].width != 64:
        return "the segments are not one exact of 64 bits and some quantised"
    if fault := algorithm_fault(task):
        return fault
    if not base.has_roster and arrivals_min(task.devices_min, task.devices_max, base.threat) > task.devices_max:
        return f"cohort_min honest devices beside {base.threat.corrupt(task.devices_max)} corrupt ones are over devices_max"
    if base.staleness_max and task.algorithm.name in ("scaffold", "evaluate"):
        return f"{task.algorithm.name} needs the model of the round: no staleness"
    opening, state, room = opening_size_max(base), state_size(task), BLOB_CHUNKS_MAX * base.chunk_size
    if max(opening, state) > room:
        return f"an opening may have {opening} bytes, the state {state}, {BLOB_CHUNKS_MAX} chunks only {room}"
    return ""


def opening_size_max(base: TaskView) -> int:
    """What a party may have to open at once: every self-mask sum it holds, and its shares of the edges of as many dropped
    devices as the threat model allows (a device has up to a quarter more neighbours than the graph's least)."""
    task, threat = base.task, base.threat
    sums = sum(1 not in outside for outside in base.self_subsets)
    shares = sum(1 not in outside for outside in base.cap_subsets)
    degree = degree_for(task.devices_max, threat.corrupt_permille, threat.dropped_permille) if base.has_roster else 0
    edges = threat.dropped(task.devices_max) * degree * 5 // 4
    return sums * (packed_size(base.segments) + 2 * HASH_SIZE) + shares * edges * SEED_SIZE + 4096


# -- manifests --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Member:
    """A party that offered to take part in this round."""

    party: int
    box_key: bytes = field(repr=False)
    beacon_commitment: bytes
    chain: bytes
    keys: tuple[KeyStep, ...] = ()


@dataclass(frozen=True)
class RoundView:
    """One round of a task: a manifest whose offers are genuine. (That it is the round's only one is what votes are for.)"""

    base: TaskView
    number: int
    manifest: Manifest
    digest: bytes
    members: tuple[Member, ...]
    raw: bytes = field(repr=False)

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def task(self) -> Task:
        return self.base.task

    @property
    def trust(self) -> Trust:
        return self.base.trust

    def member(self, party: int) -> Member | None:
        return next((member for member in self.members if member.party == party), None)

    def head(self, kind: str, sender: str, to: str) -> Head:
        return Head(type=kind, fleet=self.trust.fleet, task=self.name, round=self.number, sender=sender, to=to)


@shared(8, lambda base, raw: (raw, base.digest))
def open_manifest(base: TaskView, raw: bytes) -> RoundView | Refused:
    """A manifest of this task signed by the coordinator, with at least a quorum of genuine offers and deadlines in order."""
    opened = open_message(base.trust, raw)
    if isinstance(opened, Refused):
        return opened
    number = opened.head.round
    if opened.head.type != "manifest" or opened.head.task != base.name or number < 1:
        return Refused("message-misplaced", detail=opened.head.type)
    manifest = payload_of(opened, Manifest)
    if isinstance(manifest, Refused):
        return manifest
    members: list[Member] = []
    trust = base.trust
    for raw_offer in manifest.offers:
        offer = expect(base.trust, raw_offer, "offer", Offer, task=base.name, number=number)
        if isinstance(offer, Refused):
            return Refused("offer-malformed", "coordinator", offer.code)
        signed, body = offer
        if not box_usable(body.box_key):
            return Refused("offer-malformed", "coordinator", f"{signed.head.sender} offers an unusable box key")
        party = party_number(signed.head.sender)
        trust = trust.after(party, keys_of(base.trust, party, body.keys))
        members.append(Member(party, body.box_key, body.beacon_commitment, body.chain, tuple(body.keys)))
    parties = [member.party for member in members]
    if parties != sorted(set(parties)) or len(parties) < base.committee.quorum:
        return Refused("offers-too-few", "coordinator", f"{len(parties)} offers, {base.committee.quorum} needed")
    ordered = manifest.issued_at < manifest.join_until < manifest.upload_until < manifest.expires_at
    durations = (
        manifest.join_until - manifest.issued_at <= base.task.join_ms
        and manifest.upload_until - manifest.join_until <= base.task.upload_ms
        and manifest.expires_at - manifest.upload_until <= DECISIONS_MAX * base.task.decide_ms
    )
    if (
        manifest.task != base.digest
        or not manifest.model.sound
        or manifest.model.size != base.task.model.size
        or not (ordered and durations)
        or len(manifest.rotation) != (ROTATION_SIZE if base.task.codec.rotate else 0)
        or (manifest.previous == bytes(32) and (manifest.model, manifest.state) != (base.task.model, base.first_state))
    ):
        return Refused(
            "manifest-differs", "coordinator", "task, model, state, times or rotation are not what the task states"
        )
    # from here on everything of the round is held to the keys that its members have shown
    held = base if trust == base.trust else replace(base, trust=trust)
    return RoundView(held, number, manifest, opened.digest, tuple(members), raw)


def count_votes(
    view: RoundView, raws: Sequence[bytes], *, decides: str, digest: bytes
) -> dict[int, tuple[bytes, Vote]]:
    """The distinct members whose genuine votes for (`decides`, `digest`) are among `raws`. Anything else is passed over."""
    votes: dict[int, tuple[bytes, Vote]] = {}
    for raw in raws:
        opened = expect(view.trust, raw, "vote", Vote, task=view.name, number=view.number)
        if isinstance(opened, Refused):
            continue
        signed, vote = opened
        party = party_number(signed.head.sender)
        if vote.decides == decides and vote.digest == digest and view.member(party) is not None:
            votes[party] = (raw, vote)
    return votes
