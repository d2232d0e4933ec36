"""The straight-line round and the functions that the machines call do the same work: SPEC.md section 7."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blindsum.protocol.algorithm import algorithm_of
from blindsum.protocol.graph import degree_for
from blindsum.protocol.keys import SEED_SIZE, derive, edge_keypair
from blindsum.protocol.masks import Seeds, Upload, dropped_edges, edge_secret, mask_upload, open_box, self_sum
from blindsum.protocol.messages import (
    CodecSpec,
    Header,
    Manifest,
    OpeningContent,
    SegmentSpec,
    Task,
    ThreatSpec,
    Training,
    chunks_of,
)
from blindsum.protocol.openings import combine, make_content
from blindsum.protocol.params import Committee
from blindsum.protocol.reference import Round, run_round
from blindsum.protocol.ring import Lane, add_packed, pack, reduce, unpack, zeros
from blindsum.protocol.roster import RosterView
from blindsum.protocol.trust import Trust
from blindsum.protocol.view import Member, RoundView, TaskView

ZERO = bytes(32)
FOUR, SEVEN = Committee.for_f(1), Committee.for_f(2)


def draw(name: str, size: int = 32) -> bytes:
    return derive(name.encode(), "test", size=size)


@dataclass
class Case:
    """One round seen from both sides: what the straight line made of `vectors`, and the views that the machines would have."""

    devices: int
    survivors: Sequence[int]
    committee: Committee = FOUR
    suite: str = "aes128-ctr"
    widths: tuple[int, ...] = (24, 64)
    degree: int = 2
    members: Sequence[int] = ()
    random: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.base = TaskView(self._trust(), "sum", self._task(), ZERO, b"", self.committee)
        members = self.members or range(1, self.committee.parties + 1)
        self.view = RoundView(
            self.base, 3, self._manifest(), draw("manifest"), tuple(Member(p, ZERO, ZERO, ZERO) for p in members), b""
        )
        size = sum(s.packed_size for s in self.base.segments)
        self.vectors = [draw(f"vector {index}", size) for index in range(self.devices)]
        self.reference = self._reference()
        keys = tuple(edge_keypair(private)[1] for private in self.random[: self.devices])
        names = tuple(f"d-{index:02d}" for index in range(self.devices))
        self.roster = RosterView(draw("roster"), names, keys, 2, self.degree)

    def lanes(self, index: int) -> list[Lane]:
        return unpack(self.base.segments, self.vectors[index])

    def seeds(self, index: int) -> list[bytes]:
        """The self seeds, then the cap seeds that the straight line drew for a device."""
        n, own, cap = self.devices, len(self.base.self_subsets), len(self.base.cap_subsets)
        first, second = n + own * index, n + own * n + cap * index
        return [*self.random[first : first + own], *self.random[second : second + cap]]

    def upload(self, index: int) -> Upload:
        """The machine's upload of a device that draws the same secrets; its boxes are left open."""
        seeds = iter(self.seeds(index))
        return mask_upload(
            self.view,
            self.roster,
            index=index,
            private=self.random[index],
            lanes=self.lanes(index),
            random=lambda _size: next(seeds),
            seal=lambda _public, _info, plain: plain,
        )

    def party_seeds(self, header: Header, party: int) -> Seeds:
        seeds = open_box(self.view, self.roster, header, party=party, opener=lambda _info, box: box)
        assert isinstance(seeds, Seeds), seeds
        return seeds

    def contents(self, headers: dict[int, Header]) -> dict[int, list[OpeningContent]]:
        contents = {}
        for member in self.view.members:
            seeds = {index: self.party_seeds(header, member.party) for index, header in headers.items()}
            made, _ = make_content(self.view, self.roster, party=member.party, survivors=sorted(headers), seeds=seeds)
            contents[member.party] = [made]
        return contents

    def _reference(self) -> Round:
        def random(size: int) -> bytes:
            self.random.append(draw(f"secret {len(self.random)}", size))
            return self.random[-1]

        return run_round(
            self.base.segments,
            [self.lanes(index) for index in range(self.devices)],
            self.survivors,
            committee=self.committee,
            degree=self.degree,
            manifest=draw("manifest"),
            roster=draw("roster"),
            random=random,
            suite=self.suite,
        )

    def _trust(self) -> Trust:
        return Trust("test", b"", ZERO, ZERO, ZERO, (ZERO,) * self.committee.parties)

    def _task(self) -> Task:
        committee, empty = self.committee, chunks_of(b"", 1024)[0]
        return Task(
            trust=ZERO,
            plan=empty,
            model=empty,
            segments=[
                SegmentSpec(name=f"s{place}", length=5 + place, width=width, codec="exact")  # type: ignore[arg-type]
                for place, width in enumerate(self.widths)
            ],
            codec=CodecSpec(clip_micros=1, range_micros=1, bits=8, weight_max=1, rotate=False),
            threat=ThreatSpec(
                parties=committee.parties,
                threshold=committee.threshold,
                quorum=committee.quorum,
                malicious_parties=committee.equivocators,
                corrupt_permille=0,
                dropped_permille=0,
                cohort_min=2,
            ),
            devices_min=2,
            devices_max=100,
            suite=self.suite,  # type: ignore[arg-type]
            training=Training(epochs=1, batch_size=1, rate_micros=0, proximal_micros=0, control_micros=0),
            algorithm=algorithm_of("fedavg"),
            join_ms=1000,
            upload_ms=1000,
            decide_ms=1000,
            rounds_max=9,
            eligibility=[],
        )

    def _manifest(self) -> Manifest:
        return Manifest(
            task=ZERO,
            previous=ZERO,
            model=self.base.task.model,
            state=self.base.first_state,
            offers=[],
            rotation=b"",
            issued_at=0,
            join_until=1,
            upload_until=2,
            expires_at=3,
        )


CASES = [
    Case(2, [0, 1]),
    Case(6, [0, 1, 2, 3, 4, 5]),
    Case(6, [1, 2, 4]),
    Case(5, [0, 3], suite="chacha20", widths=(16, 32)),
    Case(4, [0, 1, 3], degree=9),
    Case(5, [0, 2, 4], committee=SEVEN, widths=(64,)),
    Case(7, [0, 1, 3, 5, 6], members=(1, 3, 4)),
    Case(4, [0, 2, 3], committee=SEVEN, members=(2, 3, 5, 6, 7)),
    Case(5, [1, 2, 3], committee=Committee.custom(3, 2, 3, 1)),
]


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case.devices}-{len(case.survivors)}-{case.committee.parties}"
)
class TestSameRandomness:
    def test_uploads_are_the_same_bytes(self, case: Case) -> None:
        assert [b"".join(case.upload(index).chunks) for index in range(case.devices)] == list(case.reference.bodies)

    def test_parties_open_the_same_sums(self, case: Case) -> None:
        headers = {index: case.upload(index).header for index in case.survivors}
        for subset, outside in enumerate(case.base.self_subsets):
            for party in (member.party for member in case.view.members if member.party not in outside):
                held = [(i, case.party_seeds(headers[i], party).self_seeds[subset]) for i in case.survivors]
                assert self_sum(case.view, case.roster, subset, held) == case.reference.openings[subset]

    def test_edges_that_lost_an_end_are_the_same(self, case: Case) -> None:
        edges = list(dropped_edges(case.roster, case.survivors))
        secrets = [edge_secret(case.view, case.roster, case.random[u], u, v) for u, v in edges]
        assert [(u, v, secret) for (u, v), secret in zip(edges, secrets, strict=True)] == list(case.reference.edges)
        assert bool(edges) == (len(case.survivors) < case.devices)

    def test_openings_leave_the_same_sum_which_is_the_plain_one(self, case: Case) -> None:
        segments = case.base.segments
        headers = {index: case.upload(index).header for index in case.survivors}
        lanes, plain = zeros(segments), zeros(segments)
        for index in case.survivors:
            add_packed(segments, lanes, case.reference.bodies[index])
            add_packed(segments, plain, case.vectors[index])
        reduce(segments, plain)
        combined = combine(case.view, case.roster, lanes, headers=headers, contents=case.contents(headers))
        assert combined.complete and not combined.faults
        assert pack(segments, lanes) == case.reference.total == pack(segments, plain)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_round_sums_its_survivors(data: st.DataObject) -> None:
    devices = data.draw(st.integers(2, 12))
    survivors = sorted(data.draw(st.sets(st.integers(0, devices - 1), min_size=1)))
    degree = degree_for(devices, 100, data.draw(st.sampled_from([0, 100, 400])))
    case = Case(devices, survivors, degree=degree, suite=data.draw(st.sampled_from(["aes128-ctr", "chacha20"])))
    segments, plain = case.base.segments, zeros(case.base.segments)
    for index in survivors:
        add_packed(segments, plain, case.vectors[index])
    reduce(segments, plain)
    assert case.reference.total == pack(segments, plain)
    index = data.draw(st.integers(0, devices - 1))
    assert b"".join(case.upload(index).chunks) == case.reference.bodies[index]


def test_body_depends_on_manifest_and_roster() -> None:
    """Devices that are shown different models or rosters make masks that have nothing in common."""
    case = Case(3, [0, 1, 2])
    other = RoundView(case.base, 3, case.view.manifest, draw("another manifest"), case.view.members, b"")
    bodies = set()
    for view, roster in (
        (case.view, case.roster),
        (other, case.roster),
        (case.view, RosterView(draw("another roster"), case.roster.devices, case.roster.keys, 2, 2)),
    ):
        seeds = iter(case.seeds(0))
        made = mask_upload(
            view,
            roster,
            index=0,
            private=case.random[0],
            lanes=zeros(case.base.segments),
            random=lambda _size, seeds=seeds: next(seeds),  # type: ignore[misc]
            seal=lambda _public, _info, plain: plain,
        )
        bodies.add(b"".join(made.chunks))
    assert len(bodies) == 3


def test_seeds_of_a_box_are_those_of_the_subsets_its_party_is_not_in() -> None:
    case = Case(3, [0, 1, 2])
    header = case.upload(1).header
    drawn = case.seeds(1)
    for party in range(1, 5):
        seeds = case.party_seeds(header, party)
        own = {s: drawn[s] for s, outside in enumerate(case.base.self_subsets) if party not in outside}
        cap = {s: drawn[4 + s] for s, outside in enumerate(case.base.cap_subsets) if party not in outside}
        assert (seeds.self_seeds, seeds.cap_seeds) == (own, cap)
        assert (len(own), len(cap)) == (3, 3)


def test_box_with_another_seed_or_size_is_complained_about() -> None:
    case = Case(3, [0, 1, 2])
    header = case.upload(1).header

    def complaint(box: bytes | None) -> object:
        return open_box(case.view, case.roster, header, party=2, opener=lambda _info, _box: box)

    right = header.boxes[1]
    assert complaint(None) == complaint(right[:-1]) == complaint(right + b"x") == complaint(b"") == "box-unreadable"
    for at in range(0, len(right), SEED_SIZE):
        assert complaint(right[:at] + bytes([right[at] ^ 1]) + right[at + 1 :]) == "commitment-differs"


@pytest.mark.parametrize("liars", [(2,), (1, 7)])
def test_parties_that_give_wrong_shares_are_named_and_the_sum_is_right(liars: tuple[int, ...]) -> None:
    """All of a liar's 15 shares are false here: to try every combination of what was given would take 2^15 and 2^20 hashes."""
    case = Case(5, [0, 2, 4], committee=SEVEN, widths=(64,))
    segments = case.base.segments
    headers = {index: case.upload(index).header for index in case.survivors}
    contents = case.contents(headers)
    for liar in liars:
        (content,) = contents[liar]
        false = bytes(byte ^ liar for byte in content.shares)
        contents[liar] = [OpeningContent(hashes=content.hashes, shares=false, vectors=content.vectors)]
    lanes = zeros(segments)
    for index in case.survivors:
        add_packed(segments, lanes, case.reference.bodies[index])
    combined = combine(case.view, case.roster, lanes, headers=headers, contents=contents)
    assert combined.complete and pack(segments, lanes) == case.reference.total
    assert combined.faults == [(f"party/{liar}", "edge-share-differs") for liar in liars]


def test_device_that_capped_an_edge_falsely_is_named_where_all_parties_opened() -> None:
    case = Case(6, [1, 2, 4])
    headers = {index: case.upload(index).header for index in case.survivors}
    liar = case.reference.edges[0][0]
    fields = {name: getattr(headers[liar], name) for name in Header.__struct_fields__}
    false = bytes(byte ^ 1 for byte in headers[liar].edges)
    headers[liar] = Header(**{**fields, "edges": false})
    contents = case.contents(headers)
    combined = combine(case.view, case.roster, zeros(case.base.segments), headers=headers, contents=contents)
    assert (combined.complete, combined.hopeless) == (False, "edge-false")
    assert combined.faults == [(f"device/d-{liar:02d}", "edge-false")]
    del contents[4]
    combined = combine(case.view, case.roster, zeros(case.base.segments), headers=headers, contents=contents)
    assert not combined.complete and not combined.faults
