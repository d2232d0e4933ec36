"""The operator takes a task back to an earlier model, or stages it: SPEC.md sections 5.6, 8.3 and 10."""

from __future__ import annotations

import numpy as np
import pytest

from blindsum.protocol.algorithm import algorithm_of
from blindsum.protocol.codec import convert
from blindsum.protocol.eligibility import place_of
from blindsum.protocol.envelope import open_envelope
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.messages import Result, Rollback, chunks_of
from blindsum.protocol.transcript import read_records, verify, write_records
from blindsum.testing.faults import Faults
from blindsum.testing.world import World

ADAM = algorithm_of("fedadam", rate_micros=10_000, beta1_micros=900_000, beta2_micros=990_000, tau_micros=1000)


def result(world: World, number: int) -> tuple[bytes, Result]:
    """Digest and body of a round's result."""
    record = next(finished for finished in world.results if finished.number == number)
    signed = open_envelope(read_records(record.transcript)["result"][0])
    return signed.digest, convert(signed.payload, Result)


def model(world: World, number: int) -> bytes:
    """What the round made."""
    record = next(finished for finished in world.results if finished.number == number)
    return read_records(record.transcript)["next"][0]


def rollback(world: World, *, after: int, to: int, **changes: object) -> bytes:
    world._file()
    previous, _ = result(world, after)
    origin, made = result(world, to) if to else (bytes(32), None)
    fields = {
        "task": world.base.digest,
        "previous": previous,
        "origin": origin,
        "model": made.model if made else world.base.task.model,
    }
    return world.forge("rollback", "operator", "all", Rollback(**{**fields, **changes}), number=after)


def go_back(world: World, raw: bytes, data: bytes) -> None:
    world._command(lambda: world.coordinator.roll_back(raw, model=data))


def transcript(world: World) -> bytes:
    world._file()
    return world.results[-1].transcript


def body_of(raw: bytes) -> Rollback:
    return convert(open_envelope(raw).payload, Rollback)


@pytest.mark.parametrize("algorithm", [None, ADAM])
def test_rounds_go_on_from_the_model_that_the_operator_went_back_to(algorithm: object) -> None:
    world = World(3, devices=5, length=9, algorithm=algorithm)
    world.run(3)
    raw = rollback(world, after=3, to=1)
    go_back(world, raw, model(world, 1))
    world.run(2)
    assert [finished.number for finished in world.results] == [1, 2, 3, 4, 5]
    world.check()
    manifest = read_records(world.results[3].transcript)
    assert manifest["model"][0] == model(world, 1) != model(world, 3)
    assert manifest["state"][0] == b""
    report = verify(world.results[3].transcript, trust=world.fleet.trust)
    assert report.valid
    assert (report.facts["rolled_back_after"], report.facts["rolled_back_to"]) == (3, result(world, 1)[0].hex())
    after = verify(world.results[4].transcript, trust=world.fleet.trust)
    assert after.valid and "rolled_back_after" not in after.facts
    assert len(world.happened("rolled-back")) == 5


def test_task_goes_back_to_its_own_first_model_and_twice_in_a_row() -> None:
    world = World(4, devices=5, length=9)
    world.run(2)
    first = rollback(world, after=2, to=0)
    go_back(world, first, world.model)
    second = rollback(world, after=2, to=1, previous=open_envelope(first).digest)
    go_back(world, second, model(world, 1))
    world.run(1)
    assert read_records(transcript(world))["model"][0] == model(world, 1)
    with pytest.raises(BlindsumError, match="rollback-refused"):
        go_back(world, first, world.model)
    world._command(
        lambda: world.coordinator.roll_back(second, model=model(world, 1))
    )  # the last one may be handed over again: nothing happens
    world.run(1)
    assert world.phase == "done"
    world.check()


def test_party_that_was_away_takes_the_rollback_for_all_that_it_missed() -> None:
    world = World(5, devices=5, length=9)
    world.run(1)
    world.stop("party/4")
    for _ in range(2):
        world._file()
        world.number += 1
        world._command(lambda: world.coordinator.start("sum", world.now))
        world.finish()
    raw = rollback(world, after=3, to=2)
    go_back(world, raw, model(world, 2))
    world.run(2)
    assert world.phase == "done"
    followed = [event.data["round"] for event in world.happened("followed", "party/4")]
    assert 4 in followed and not {2, 3} & set(followed)
    world.check()


def test_party_follows_a_rollback_under_loss_repetition_and_crashes() -> None:
    world = World(6, devices=6, length=9, faults=Faults(loss=0.1, duplicate=0.2, crash_after_commit=0.01))
    world.run(2)
    while world.phase != "done":
        world.run(1)
    last = world.number
    go_back(world, rollback(world, after=last, to=world.results[0].number), model(world, world.results[0].number))
    world.rest()
    world.run(2)
    assert world.phase == "done"
    world.check()


def test_rollback_that_is_old_forged_or_of_another_model_is_refused() -> None:
    world = World(7, devices=5, length=9, faulty=["operator"])
    world.run(2)
    world.rest()
    early = rollback(world, after=1, to=1)
    for raw, data in (
        (early, model(world, 1)),
        (rollback(world, after=2, to=1), model(world, 2)),
        (rollback(world, after=2, to=1, task=bytes(32)), model(world, 1)),
        (rollback(world, after=2, to=1, model=chunks_of(bytes(8), 1024)[0]), bytes(8)),
        (world.fleet.forge("rollback", "coordinator", "all", body_of(early), task="sum", number=2), model(world, 1)),
    ):
        with pytest.raises(BlindsumError, match="rollback-refused"):
            go_back(world, raw, data)
    for raw, code in (
        (early, "rollback-stale"),
        (rollback(world, after=2, to=1, task=bytes(32)), "rollback-malformed"),
        (
            world.fleet.forge("rollback", "coordinator", "all", body_of(early), task="sum", number=2),
            "sender-wrong-role",
        ),
    ):
        refused = world.give("party/1", raw).refused
        assert refused is not None and refused.code == code
    world.start()
    with pytest.raises(BlindsumError, match="round-active"):
        go_back(world, rollback(world, after=2, to=1), model(world, 1))
    world.finish()
    assert world.phase == "done"


def test_transcript_whose_rollback_is_another_one_is_not_valid() -> None:
    world = World(8, devices=5, length=9)
    world.run(2)
    raw = rollback(world, after=2, to=1)
    go_back(world, raw, model(world, 1))
    world.run(1)
    records = list(world.coordinator.records("sum"))
    other = rollback(world, after=2, to=2)
    for changed, code in (
        ([(name, other if name == "rollback" else data) for name, data in records], "rollback-differs"),
        ([*records, ("rollback", raw)], "transcript-malformed"),
        ([(name, world.task_raw if name == "rollback" else data) for name, data in records], "message-misplaced"),
    ):
        report = verify(b"".join(write_records(changed)), trust=world.fleet.trust)
        assert [(fault.principal, fault.code) for fault in report.faults] == [("coordinator", code)]


def test_staged_task_takes_the_devices_of_its_share_and_no_others_and_widens() -> None:
    world = World(9, devices=12, length=9)
    staged = sorted(world.devices, key=lambda device: place_of(device, "sum"))
    permille = place_of(staged[4], "sum") + 1
    world._command(lambda: world.coordinator.stage("sum", permille))
    world.run(1)
    assert set(world.rosters[1]) == set(staged[:5])
    assert world.refused("not-staged") >= 7
    world._command(lambda: world.coordinator.stage("sum", 1000))
    world.run(1)
    assert set(world.rosters[2]) == set(world.devices)
    world.check()


def test_device_that_is_not_taken_fetches_no_model() -> None:
    world = World(10, devices=6, length=9)
    world._command(lambda: world.coordinator.stage("sum", 0))
    world.run(1)
    assert world.failure == "cohort-too-small"
    for device in world.devices:
        assert not list(world.actors[f"device/{device}"].store.keys("blob/"))


def test_model_after_a_rollback_is_the_earlier_one_plus_the_new_mean() -> None:
    world = World(11, devices=4, length=5, updates=lambda _name, number: np.full(5, 0.1 * number, np.float32))
    world.run(2)
    go_back(world, rollback(world, after=2, to=1), model(world, 1))
    world.run(1)
    read = [np.frombuffer(data, "<f4") for data in (model(world, 1), read_records(transcript(world))["next"][0])]
    assert np.allclose(read[1] - read[0], 0.3, atol=1e-3)
