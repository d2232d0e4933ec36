"""Algorithms with a state: every party recomputes it, nobody sends it, and a transcript shows it (SPEC.md section 9.3)."""

from __future__ import annotations

import hashlib

import pytest

from blindsum.protocol.algorithm import algorithm_of
from blindsum.protocol.blobs import read_own
from blindsum.protocol.codec import encode_chunk
from blindsum.protocol.messages import Result
from blindsum.protocol.transcript import read_records, verify, write_records
from blindsum.testing.behaviours import Silent
from blindsum.testing.forgery import Forged, altered, body_of, hand
from blindsum.testing.world import World

ALGORITHMS = {
    "fedavgm": algorithm_of("fedavgm", rate_micros=1_000_000, beta1_micros=900_000),
    "fedadam": algorithm_of(
        "fedadam", rate_micros=20_000, beta1_micros=900_000, beta2_micros=990_000, tau_micros=1_000
    ),
    "fedyogi": algorithm_of(
        "fedyogi", rate_micros=20_000, beta1_micros=900_000, beta2_micros=990_000, tau_micros=1_000
    ),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_parties_follow_model_and_state_also_after_they_were_away(name: str) -> None:
    world = World(11, devices=4, algorithm=ALGORITHMS[name])
    world.run(1)
    world.start()
    world.until("upload")
    world.stop("party/3")
    world.finish()
    world.crash("party/2")
    world.run(2)
    world.settle()
    world.check()
    assert [event.data["round"] for event in world.happened("followed", "party/3")] == [1, 2, 3, 4]
    result = body_of(world.round.state.result, Result)
    assert result.state != world.base.first_state
    states = {
        read_own(world.actors[role].store, result.state) for role in ("coordinator", "party/1", "party/2", "party/3")
    }
    assert len(states) == 1 and len(states.pop()) == world.base.task.model.size * (1 if name == "fedavgm" else 2)


def test_old_states_are_deleted_everywhere() -> None:
    world = World(12, devices=4, algorithm=ALGORITHMS["fedadam"])
    old = []
    for _ in range(3):
        world.run(1)
        old.append(world.view.manifest.state)
    world.run(1)
    world.settle()
    for role in ("coordinator", "party/1"):
        assert not any(read_own(world.actors[role].store, state) for state in old)


def test_parties_vote_for_no_manifest_of_another_state() -> None:
    world = World(13, devices=4, algorithm=ALGORITHMS["fedadam"], faulty=("coordinator",))
    world.run(1)
    world.settle()
    world.start()
    world.until("manifest")
    raw = world.round.state.manifest
    lie = world.fleet.resign(raw, altered(body_of(raw, type(world.view.manifest)), state=hashlib.sha256(b"").digest()))
    for party in (1, 2, 3, 4):
        step = world.give(f"party/{party}", lie)
        assert (step.refused.code, step.refused.culprit) == ("chain-differs", "coordinator")


def test_result_of_a_state_that_does_not_follow_is_not_followed() -> None:
    world = World(14, devices=4, algorithm=ALGORITHMS["fedyogi"], faulty=("coordinator",))
    world.start()
    world.until("open")
    world.actors["coordinator"].behaviour = Silent("result", "chunk")
    world.finish()
    world.settle()
    honest = body_of(world.round.state.result, Result)
    total = read_own(world.actors["coordinator"].store, honest.sum.id)
    lie = world.forge("result", "coordinator", "all", altered(honest, state=bytes(range(32))))
    step = hand(world, "party/1", Forged(lie, (encode_chunk(honest.sum.id, 0, total),)))
    assert (step.refused.code, step.refused.culprit) == ("model-differs", "coordinator")
    assert not world.happened("followed", "party/1")


def test_transcript_shows_the_state_and_who_altered_it() -> None:
    world = World(15, devices=4, algorithm=ALGORITHMS["fedadam"])
    world.run(2)
    transcript = world.results[-1].transcript or b"".join(write_records(world.coordinator.records(world.task)))
    assert verify(transcript, trust=world.fleet.trust).valid
    records = read_records(transcript)
    assert len(records["state"][0]) == 2 * world.base.task.model.size
    spoilt = {**records, "state": [bytes(1) + records["state"][0][1:]]}
    report = verify(b"".join(write_records((name, data) for name, datas in spoilt.items() for data in datas)))
    assert [(fault.principal, fault.code) for fault in report.faults] == [("coordinator", "blob-altered")]
