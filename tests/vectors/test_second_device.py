"""A device written from the specification alone (`oracle/device.py`) in rounds of the product's coordinator, parties and devices:
honest, and then in every way that the specification lets one be otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from blindsum.protocol.errors import Refused
from blindsum.protocol.machines.step import Step
from blindsum.protocol.ring import add_packed, pack, reduce, zeros
from blindsum.protocol.transcript import verify
from blindsum.testing.checkers import CHECKERS, ExactSums, OnlySums
from blindsum.testing.entropy import Entropy
from blindsum.testing.world import World
from tests.vectors.meeting import step_of, with_openssl

NAME = "d-0002"
LIAR = f"device/{NAME}"
Oracle = Callable[[str], Any]


class Spoken:
    """The second implementation where the world has a machine."""

    deadline = None

    def __init__(self, world: World, oracle: Oracle) -> None:
        self._fault = oracle("fault").Fault
        identity = next(each for each in world.fleet.devices if each.name == NAME)
        self.device = oracle("device").BookDevice(
            NAME,
            identity.certificate,
            identity.key.private_bytes_raw(),
            world.fleet.trust.encode(),
            Entropy(9, "book"),
            self._vector,
        )
        self._world, self._pack = world, oracle("masks").pack

    def _vector(self, view: Any) -> list[list[int]]:
        segments = view.task.segments
        vector = [[(7 * at + view.number) % 256 for at in range(segment.length)] for segment in segments]
        vector[1][0] = 1
        self._world.truth[view.number, NAME] = self._pack(segments, vector)
        return vector

    def receive(self, body: bytes, now: int) -> Step:
        try:
            outs = self.device.receive(body, now)
        except self._fault as fault:
            return Step(refused=Refused(fault.code))
        return step_of(outs)

    def wake(self, now: int) -> Step:
        return Step()


def world_with_book_device(oracle: Oracle, **settings: Any) -> tuple[World, Any]:
    checkers = [kind for kind in CHECKERS if kind not in (OnlySums, *settings.pop("without", ()))]
    if settings.pop("quick", True):
        with_openssl(oracle)
    world = World(7, devices=6, length=8, checkers=checkers, faulty=(LIAR,), **settings)
    world.actors[LIAR].machine = spoken = Spoken(world, oracle)  # type: ignore[assignment]
    return world, spoken.device


def plain(world: World, number: int, names: tuple[str, ...]) -> bytes:
    segments = world.base.segments
    lanes = zeros(segments)
    for name in names:
        add_packed(segments, lanes, world.truth[number, name])
    reduce(segments, lanes)
    return pack(segments, lanes)


@pytest.mark.parametrize(("suite", "quick"), [("aes128-ctr", True), ("chacha20", False)])
def test_device_in_another_implementation_is_in_sums_that_are_exact(oracle: Oracle, suite: str, quick: bool) -> None:
    world, device = world_with_book_device(oracle, suite=suite, quick=quick)
    world.start()
    world.until("upload")
    world.stop("device/d-0000")
    world.finish()
    world.run()
    assert [NAME in result.survivors for result in world.results] == [True, True]
    assert [result.count for result in world.results] == [5, 6] and device.phase in ("uploaded", "")
    world.check()


def other_index(header: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**header, "index": (header["index"] + 1) % 6}]


def other_roster(header: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**header, "roster": bytes(32)}]


def other_manifest(header: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**header, "manifest": bytes(32)}]


def wider_ring(header: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**header, "body": {**header["body"], "size": header["body"]["size"] + 8}}]


def boxes_swapped(header: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**header, "boxes": header["boxes"][::-1]}]


def no_commitments(header: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**header, "commitments": bytes(len(header["commitments"]))}]


def edge_left_out(header: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**header, "edges": header["edges"][48:]}]


def two_headers(header: dict[str, Any]) -> list[dict[str, Any]]:
    return [header, {**header, "edges": header["edges"][::-1]}]


@pytest.mark.parametrize(
    ("lie", "code", "stays"),
    [
        (other_index, "header-foreign", False),
        (other_roster, "header-foreign", False),
        (other_manifest, "header-foreign", False),
        (wider_ring, "header-malformed", False),
        (edge_left_out, "header-malformed", False),
        (boxes_swapped, "box-unreadable", False),
        (no_commitments, "commitment-differs", False),
        (two_headers, "second-header", True),
    ],
)
def test_dishonest_upload_by_the_book_is_refused_by_its_code_and_the_sum_of_the_others_is_exact(
    oracle: Oracle, lie: Callable[[dict[str, Any]], list[dict[str, Any]]], code: str, stays: bool
) -> None:
    world, device = world_with_book_device(oracle)
    device.headers = lie
    world.run()
    assert (NAME in world.results[0].survivors) == stays and world.results[0].count == 5 + stays
    complaints = {event.data["code"] for event in world.happened("complaint")}
    assert code in complaints or world.actors["coordinator"].refusals[code]
    assert {event.data["culprit"] for event in world.happened("evidence")} <= {LIAR}
    world.check()


def test_second_join_of_a_device_is_refused_and_proves_what_it_did(oracle: Oracle) -> None:
    world, device = world_with_book_device(oracle)
    device.joins = lambda: [device.sign("join", device.join_body(key)) for key in (device.private, b"\x05" * 32)]
    world.run()
    assert world.actors["coordinator"].refusals["second-join"]
    assert {(event.data["culprit"], event.data["code"]) for event in world.happened("evidence")} <= {
        (LIAR, "second-join")
    }
    assert world.results[0].count >= 5
    world.check()


@pytest.mark.parametrize("dropped", ["", "device/d-0004"])
def test_false_pairwise_masks_for_half_of_the_neighbours_make_noise_that_nobody_is_blamed_for(
    oracle: Oracle, dropped: str
) -> None:
    """Limit 4 of the threat model: the round is lost, no signature tells why, and nobody honest is blamed."""
    world, device = world_with_book_device(oracle, without=(ExactSums,))
    masked = device.masked

    def lie(place: Any, roster: Any, index: int, seeds: Any) -> Any:
        keys = [roster.keys[index] if v % 2 else key for v, key in enumerate(roster.keys)]
        return masked(place, type(roster)(**{**vars(roster), "keys": keys}), index, seeds)

    device.masked = lie
    world.start()
    if dropped:
        world.until("upload")
        world.stop(dropped)
    world.finish()
    world.run()
    world.start()
    assert world.failed or all(NAME in each.survivors for each in world.results)
    for result in world.results:
        assert result.total != plain(world, result.number, result.survivors)
        assert not verify(result.transcript, trust=world.fleet.trust).faults
    for record in world.failed.values():
        report = verify(record, trust=world.fleet.trust)
        assert report.facts["failed"] == "sum-malformed" and not report.faults, "the weight is noise, too"
    assert not world.happened("evidence")
    device.masked = masked
    world.finish()
    assert world.results[-1].total == plain(world, 3, world.results[-1].survivors)
