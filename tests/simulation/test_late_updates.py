"""Trainings that end after their round: each counts once, in a later round, discounted by its age, or not at all (SPEC 5.8)."""

from __future__ import annotations

import numpy as np
import pytest

from blindsum.protocol.codec import convert
from blindsum.protocol.envelope import open_envelope
from blindsum.protocol.machines.device import DeviceMachine
from blindsum.protocol.messages import Ask, NoRoster, Receipt
from blindsum.protocol.ring import unpack
from blindsum.protocol.update import decode_lanes
from blindsum.testing.behaviours import Behaviour, Silent
from blindsum.testing.forgery import altered
from blindsum.testing.scenario import MIXES, scenario
from blindsum.testing.world import World

SLOW = "d-0001"
LATE = f"device/{SLOW}"


def world(staleness: int = 2, **settings: object) -> World:
    given = {"devices": 5, "no_roster": NoRoster(staleness_max=staleness), **settings}
    return World(3, **given)  # type: ignore[arg-type]


def machine(made: World) -> DeviceMachine:
    found = made.actors[LATE].machine
    assert isinstance(found, DeviceMachine)
    return found


def trained(made: World, number: int) -> int | None:
    """For which round the slow device's upload in round `number` was trained, None where it made none."""
    return made.began.get((number, SLOW))


def counted(made: World) -> list[tuple[str, int]]:
    """Whose training of which round is in some sum."""
    return [(name, made.began[each.number, name]) for each in made.results for name in each.survivors]


def test_training_that_missed_its_round_is_in_the_next_one_and_the_next_training_is_of_the_newest_model() -> None:
    made = world(slow=[SLOW], updates=lambda _name, _number: np.full(8, 0.2, np.float32), length=8)
    made.run(5)
    assert [SLOW in each.survivors for each in made.results] == [False, True, False, True, False]
    assert (trained(made, 2), trained(made, 4)) == (1, 3)
    lanes = unpack(made.base.segments, made.truth[2, SLOW])
    assert decode_lanes(made.base, lanes, 2, b"") == pytest.approx(np.full(8, 0.2 / np.sqrt(2)), abs=1e-3)
    made.check()


@pytest.mark.parametrize("seed", range(len(MIXES)))
def test_no_training_counts_twice_and_every_rule_holds_under_faults_too(seed: int) -> None:
    played = scenario(seed, no_roster=True, staleness=3).play()
    found = counted(played)
    assert len(found) == len(set(found))


def test_late_device_needs_the_model_of_its_new_round_not_at_all() -> None:
    made = world(slow=[SLOW])
    made.run()
    made.start()
    made.until(lambda: (2, SLOW) in made.truth)
    late = made.view.manifest.model
    assert machine(made).blob(late) is None
    made.finish()
    made.check()


def test_training_older_than_the_task_allows_is_dropped_and_the_device_begins_anew() -> None:
    made = world(staleness=1, slow=[SLOW])
    made.run()
    kept = made._trained.pop(SLOW)
    made.run(1)
    made.stop(LATE)
    assert trained(made, 2) is None
    made._trained[SLOW] = kept
    made.slow = frozenset()
    made.run(1)
    assert trained(made, 3) == 3
    made.check()


def test_device_that_is_still_training_enters_the_round_that_is_open_when_it_is_done() -> None:
    made = world(slow=[SLOW])
    made.run()
    kept = made._trained.pop(SLOW)
    machine(made)._willing = lambda _view: "training for round 1 goes on"
    made.start()
    made.until("upload")
    made.settle(500)
    assert [event.data["round"] for event in made.happened("declined", LATE)] == [2] * len(
        made.happened("declined", LATE)
    )
    machine(made)._willing = lambda _view: ""
    made.apply(made.actors[LATE], machine(made).keep(made.task, kept, made.now))
    assert (made.phase, trained(made, 2)) == ("upload", 1)
    made.finish()
    assert SLOW in made.results[-1].survivors
    made.check()


def test_upload_that_found_the_buffer_full_is_in_a_later_one() -> None:
    made = world(staleness=5, devices=9, devices_max=4, corrupt_permille=0)
    made.run(6)
    found = counted(made)
    assert len(found) == len(set(found)) == 24
    assert {
        began < each.number
        for each in made.results
        for name in each.survivors
        for began in [made.began[each.number, name]]
    } == {
        False,
        True,
    }
    made.check()


def test_upload_of_which_nobody_says_what_became_of_it_is_never_made_again() -> None:
    """Its body never comes, and no receipt of the coordinator reaches it: it may have been counted for all it knows."""
    made = world(behaviours={LATE: Silent("chunk"), "coordinator": Silent("receipt")}, upload_ms=20_000)
    made.run(2)
    assert (trained(made, 1), trained(made, 2)) == (1, 2)
    made.check()


class SaysTooLate(Behaviour):
    """A coordinator that counts an upload and signs that it came too late, so that the training is given to it again."""

    def send(self, world: World, target: str, kind: str, body: bytes) -> bytes | None:
        if kind != "receipt" or open_envelope(body).payload["status"] != "complete":
            return body
        receipt = convert(open_envelope(body).payload, Receipt)
        return world.fleet.resign(body, altered(receipt, status="refused", code="upload-late"))


def test_coordinator_that_lies_about_what_came_too_late_gets_no_training_into_two_sums() -> None:
    """Two sums with the same trainings of all devices but one would show that one's."""
    made = world(behaviours={"coordinator": SaysTooLate()})
    made.run(3)
    assert made.refused("upload-late") == 0 and len(made.results) == 3
    found = counted(made)
    assert len(found) == len(set(found)) == 15


def test_training_is_gone_with_the_first_chunk_of_its_upload() -> None:
    """Part of a body is enough for part of a sum."""
    made = world(length=3000)
    made.start()
    made.until(lambda: made.actors[LATE].store.get("late/sum/sent") is not None)
    header = made.actors[LATE].machine._rounds["sum"].body
    assert header is not None and header.count > 4
    assert made.actors[LATE].store.get("late/sum/update") is not None
    ask = Ask(blob=header.id, have=b"", window=1)
    made.give(LATE, made.forge("ask", "coordinator", LATE, ask))
    assert not list(made.actors[LATE].store.keys("late/"))
    made.finish()
    assert SLOW in made.results[-1].survivors
    made.check()


def test_round_that_failed_costs_no_training_that_it_had_no_place_for_and_no_discount() -> None:
    """The next round starts from the same model, so that what was trained for the failed one is not stale."""
    made = world(slow=[SLOW], devices_min=5, updates=lambda _name, _number: np.full(8, 0.2, np.float32), length=8)
    made.run()
    assert made.failure == "survivors-too-few"
    made.run()
    assert trained(made, 2) == 1 and SLOW in made.results[-1].survivors
    lanes = unpack(made.base.segments, made.truth[2, SLOW])
    assert decode_lanes(made.base, lanes, 2, b"") == pytest.approx(np.full(8, 0.2), abs=1e-3)
    made.check()


def test_late_update_goes_with_the_consent_and_is_of_no_use_to_another_task() -> None:
    made = world(slow=[SLOW])
    made.run()
    kept = made._trained.pop(SLOW)
    other = altered(kept, task=bytes(32))
    for late in (kept, other):
        made.apply(made.actors[LATE], machine(made).keep(made.task, late, made.now))
        assert list(made.actors[LATE].store.keys("late/"))
        if late is kept:
            made.apply(made.actors[LATE], machine(made).abandon("consent-withdrawn"))
            assert not list(made.actors[LATE].store.keys("late/"))
    made.slow = frozenset()
    made.run()
    assert trained(made, 2) == 2 and not list(made.actors[LATE].store.keys("late/"))
    made.check()


def test_device_in_a_task_without_staleness_keeps_nothing_for_later() -> None:
    made = world(staleness=0, slow=[SLOW])
    made.run(2)
    assert trained(made, 2) is None and counted(made)
    made.check()
