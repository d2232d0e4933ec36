"""What must hold in every world, whatever goes wrong: one object a rule. A broken rule is an AssertionError.

A checker watches what its world's roles store and send, and is asked once more by `World.check`. Rules speak about honest roles:
those in `world.faulty` may do anything.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING, Final

from blindsum.protocol.algorithm import STATE_VECTORS
from blindsum.protocol.codec import decode, decode_chunk
from blindsum.protocol.envelope import open_envelope
from blindsum.protocol.evidence import verify_evidence, write_evidence
from blindsum.protocol.machines.desk import RESULTS_KEPT
from blindsum.protocol.machines.step import Step
from blindsum.protocol.params import arrivals_min, survivors_min
from blindsum.protocol.ring import add_packed, pack, reduce, to_signed, unpack, zeros
from blindsum.protocol.transcript import verify
from blindsum.testing.closure import Round, leak, rounds
from blindsum.testing.wiretap import Wiretap

if TYPE_CHECKING:
    from blindsum.testing.world import World

__all__ = [
    "CHECKERS",
    "Checker",
    "CohortKept",
    "CountedOnce",
    "ExactSums",
    "HonestUnblamed",
    "OneAnswer",
    "OneUpload",
    "OnlySums",
    "RoundsForgotten",
    "Transcripts",
    "Unreadable",
]


class Checker:
    """Watches a world; every method may assert."""

    def stored(self, world: World, role: str, step: Step) -> None:
        """`role` has stored a step."""

    def sent(self, world: World, role: str, kind: str, body: bytes) -> None:
        """`role` sends `body` (to however many receivers)."""

    def ended(self, world: World) -> None:
        """The world is about to be left; no round is under way."""


class ExactSums(Checker):
    """A published sum is the plain ring sum over exactly its survivors, bit for bit."""

    def ended(self, world: World) -> None:
        for result in world.results:
            lanes = zeros(result.segments)
            for device in result.survivors:
                add_packed(result.segments, lanes, world.truth[result.number, device])
            reduce(result.segments, lanes)
            assert pack(result.segments, lanes) == result.total, f"round {result.number}: not the plain ring sum"
            assert result.count == len(result.survivors), f"round {result.number}: another count than survivors"


class CountedOnce(Checker):
    """Where every device adds 1 in a coordinate of its own, the sum has 1 for each survivor and 0 for everybody else."""

    def ended(self, world: World) -> None:
        for result in world.results:
            if not world.ballots:
                continue
            ballots = to_signed(result.segments[1], unpack(result.segments, result.total)[1])[1:].tolist()
            wanted = [int(name in result.survivors) for name in world.devices]
            assert ballots == wanted, f"round {result.number}: a device is counted twice or not at all"


class OneAnswer(Checker):
    """Nobody signs two different messages where one is due: votes, offers, joins, uploads, openings, proposals, results. All that
    was ever sent counts, also by earlier lives of a role."""

    KINDS: Final = (
        *("offer", "manifest", "vote", "announcement", "join", "roster-proposal", "roster"),
        *("header", "candidate", "proposal", "certificate", "opening", "result"),
    )

    def __init__(self) -> None:
        self.seen: dict[tuple[object, ...], bytes] = {}

    def sent(self, world: World, role: str, kind: str, body: bytes) -> None:
        if kind not in self.KINDS or role in world.faulty:
            return
        signed = open_envelope(body)
        head, payload = signed.head, signed.payload
        if head.sender != role:
            return  # passed on for somebody else
        question = (role, kind, head.task, head.round, payload.get("decides"), payload.get("part"))
        first = self.seen.setdefault(question, signed.digest)
        assert first == signed.digest, f"{role} signs two different {kind}s in round {head.round}"


class OneUpload(Checker):
    """A device sends one masked vector a round, and so no mask covers two."""

    def __init__(self) -> None:
        self._headers: defaultdict[str, set[int]] = defaultdict(set)
        self._bodies: defaultdict[str, set[bytes]] = defaultdict(set)

    def sent(self, world: World, role: str, kind: str, body: bytes) -> None:
        if not role.startswith("device/") or role in world.faulty:
            return
        if kind == "header":
            self._headers[role].add(open_envelope(body).head.round)
        elif kind == "chunk":
            self._bodies[role].add(decode_chunk(body)[0])
            assert len(self._bodies[role]) <= len(self._headers[role]), f"{role} sends more vectors than uploads"


class CohortKept(Checker):
    """Nothing is opened over fewer devices than the threat model demands."""

    def stored(self, world: World, role: str, step: Step) -> None:
        for event in step.events:
            if event.name in ("opened", "round-finished") and role not in world.faulty:
                opened = event.data["survivors" if event.name == "opened" else "count"]
                number = event.data["round"]
                assert isinstance(number, int)
                task, threat = world.base.task, world.base.threat
                least = survivors_min(len(world.rosters[number]), threat)
                if not world.base.has_roster:
                    least = arrivals_min(task.devices_min, task.devices_max, threat)
                assert isinstance(opened, int) and opened >= least, f"{role} opens {opened} devices, least is {least}"


class HonestUnblamed(Checker):
    """An honest role names only faulty ones: in events, and as culprits of what it refuses. What it keeps as evidence proves it to
    anybody."""

    def stored(self, world: World, role: str, step: Step) -> None:
        if role in world.faulty:
            return
        for event in step.events:
            culprit = event.data.get("culprit", "")
            assert not culprit or culprit in world.faulty, f"{role} blames honest {culprit}: {event}"
        refused = step.refused
        assert refused is None or not refused.culprit or refused.culprit in world.faulty, f"{role} blames: {refused}"

    def ended(self, world: World) -> None:
        for role, actor in world.actors.items():
            for _, row in () if role in world.faulty else actor.store.scan("evidence/"):
                culprit, first, second, join = decode(row)
                report = verify_evidence(
                    write_evidence(world.fleet.trust, first, second, join), trust=world.fleet.trust
                )
                assert [fault.principal for fault in report.faults] == [culprit], f"{role} holds {culprit} guilty"


class Transcripts(Checker):
    """Anybody can recompute a finished round from its transcript, and finds nobody at fault but the faulty."""

    def ended(self, world: World) -> None:
        for result in world.results:
            report = verify(result.transcript, trust=world.fleet.trust)
            blamed = [fault for fault in report.faults if fault.principal not in world.faulty]
            assert not blamed, f"round {result.number}: {blamed}"
            assert report.facts.get("survivors") == result.count, f"round {result.number}: {report.facts}"
        for number, record in world.failed.items():
            report = verify(record, trust=world.fleet.trust)
            blamed = [fault for fault in report.faults if fault.principal not in world.faulty]
            assert not blamed and "failed" in report.facts, f"round {number}: {blamed}"


class OnlySums(Checker):
    """Whatever was sent and opened, no coalition that the task allows for can compute more of honest updates than the sum over the
    one opened set, nor a coalition below the quorum more than sums over connected survivors."""

    def __init__(self) -> None:
        self.tap = Wiretap()

    def stored(self, world: World, role: str, step: Step) -> None:
        self.tap.stored(role, step)

    def sent(self, world: World, role: str, kind: str, body: bytes) -> None:
        self.tap.sent(kind, body)

    def ended(self, world: World) -> None:
        seen = rounds(world, self.tap)
        summed = {round_.view.number for round_ in seen if round_.derivable(world.faulty)}
        missed = [result.number for result in world.results if result.number not in summed]
        assert not missed, (
            f"rounds {missed} gave a sum, and the coordinator is said to know none: this checker is blind"
        )
        for round_ in seen:
            for coalition in self._coalitions(world, round_):
                told = leak(round_, coalition)
                assert not told, f"round {round_.view.number}: {sorted(coalition)} can compute {told}"

    def _coalitions(self, world: World, round_: Round) -> Iterator[frozenset[str]]:
        """All largest sets of parties that either layer withstands, each alone and with devices that the seed chooses."""
        dice = random.Random(f"{world.seed}/coalitions/{round_.view.number}")
        everybody = [f"party/{number}" for number in range(1, world.committee.parties + 1)]
        honest = sorted(set(round_.uploads.values()))
        few = min(round_.view.base.threat.corrupt(round_.roster.capacity), len(honest))
        for size in (world.committee.threshold - 1, world.committee.quorum - 1):
            for parties in combinations(everybody, size):
                if not world.faulty.intersection(everybody) <= set(parties):
                    continue
                yield world.faulty.union(parties)
                yield world.faulty.union(parties, dice.sample(honest, few))
                yield world.faulty.union(parties, dice.sample(honest, dice.randint(0, len(honest))))


class RoundsForgotten(Checker):
    """When a round is over, devices and parties keep no secret of it; what anybody keeps does not grow with the rounds."""

    _KEYS: Final = ("keys/", "own-key")
    PARTY: Final = (
        "task/",
        "last/",
        "chain/",
        "pending/",
        "followed/",
        "evidence/",
        "failed/",
        "blob/",
        "memory/",
        "revoked",
        *_KEYS,
    )
    DEVICE: Final = ("spent/", "blob/", "late/")

    def ended(self, world: World) -> None:
        world.rest()
        blobs = {
            role: {key.split("/")[1] for key in actor.store.rows if key.startswith("blob/")}
            for role, actor in world.actors.items()
        }
        for role, actor in world.actors.items():
            if role in world.faulty or role == "coordinator":
                continue
            allowed = self.PARTY if role.startswith("party/") else self.DEVICE
            left = [key for key in actor.store.rows if not key.startswith(allowed)]
            assert not left, f"{role} keeps {left} of a round that is over"
            most = 1 + (role.startswith("party/") and STATE_VECTORS[world.base.task.algorithm.name] > 0)
            assert len(blobs[role]) <= most, f"{role} keeps {len(blobs[role])} blobs"
            kept = [role for secret in world.drawn[role] if actor.store.holds(secret)]
            assert not kept, f"{role} keeps {len(kept)} secrets of its own of rounds that are over"
        # plan, first model, last two models, sums of the last results; bodies, joins, entries and survivors of the last round
        most = 4 + RESULTS_KEPT + len(world.devices) + 4
        assert len(blobs["coordinator"]) <= most, f"the coordinator keeps {len(blobs['coordinator'])} blobs"
        retained = sum(bool(chunks) for chunks in world.network.retained.values())
        assert retained <= most, f"the broker retains {retained} blobs"


class Unreadable(Checker):
    """No message and no row of anybody but the device itself ever contains a device's vector (costly: not among `CHECKERS`)."""

    def stored(self, world: World, role: str, step: Step) -> None:
        for write in step.writes:
            if write.value is not None and not role.startswith("device/"):
                self._look(world, f"{role}'s row {write.key}", write.value)

    def sent(self, world: World, role: str, kind: str, body: bytes) -> None:
        self._look(world, f"{role}'s {kind}", body)

    def _look(self, world: World, where: str, data: bytes) -> None:
        for (number, device), packed in world.truth.items():
            at = world.base.segments[0].packed_size
            assert packed[:at] not in data, f"{where} shows the update of {device} in round {number}"
            assert packed[at:] not in data, f"{where} shows the statistics of {device} in round {number}"


CHECKERS: Final[tuple[type[Checker], ...]] = (
    ExactSums,
    CountedOnce,
    OneAnswer,
    OneUpload,
    OnlySums,
    CohortKept,
    HonestUnblamed,
    Transcripts,
    RoundsForgotten,
)
"""The rules that every world is held to unless it says otherwise."""
