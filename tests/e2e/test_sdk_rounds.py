"""`Device` as an app embeds it, round after round, against real parties, a real coordinator and a real broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from blindsum.backend.provision import enrol
from blindsum.runtime.sqlite import SqliteStore
from blindsum.sdk import Context, Device, DeviceEvent, Inspection, Policy
from blindsum.sdk.device import STOP_TIMEOUT_S
from blindsum.sdk.events import State
from tests.e2e.livingfleet import (
    BATCH,
    SLACK_S,
    TASK,
    WAIT_S,
    Examples,
    Living,
    round_key_of,
    some_digits,
    stop_in_time,
)

pytestmark = pytest.mark.parametrize("living", ["embedded"], indirect=True)


def test_device_takes_part_in_round_after_round(living: Living) -> None:
    states: list[tuple[State, str]] = []

    def examples(context: Context) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        states.append((app.device.state, app.device.reason))
        yield from some_digits(context)

    app = living.app("taker", examples=examples)
    assert (app.device.state, app.device.reason) == (State.STOPPED, "not started")
    with app.device as device:
        first = app.next("round-finished").data
        second = app.next("round-finished").data
        assert device.state is not State.STOPPED
    for data in (first, second):
        life = app.names(data["round"])
        assert life == ["joined", "train", "trained", "masked", "uploading", "uploaded", "round-finished"]
    assert first["model"] != second["model"]
    trained = next(event.data for event in app.heard if event.name == "trained")
    assert trained["examples"] == 24 and 0 < trained["loss"] < 5
    assert (State.TRAINING, f"round {first['round']}") in states
    assert len(states) >= 4  # two rounds of two epochs
    assert (device.state, device.reason) == (State.STOPPED, "stopped by the app")
    model = device.model(TASK)
    assert {first["round"], second["round"]} <= {version.number for version in model.versions}
    assert model.activate(second["round"]) and model.predict(BATCH[0]).shape == (24, 10)


def test_examples_that_fail_in_any_way_cost_one_round_and_nothing_else(living: Living) -> None:
    def raising(_context: Context) -> Iterator[tuple[Any, Any]]:
        yield BATCH
        raise LookupError("the camera is gone")

    def exiting(_context: Context) -> Iterator[tuple[Any, Any]]:
        raise SystemExit(1)

    def not_a_number(_context: Context) -> Iterator[tuple[Any, Any]]:
        yield BATCH[0] * np.float32(np.nan), BATCH[1]

    def of_another_shape(_context: Context) -> Iterator[tuple[Any, Any]]:
        yield BATCH[0][:, :10], BATCH[1]

    def nothing(_context: Context) -> Iterator[tuple[Any, Any]]:
        yield from ()

    def endless(_context: Context) -> Iterator[tuple[Any, Any]]:
        while True:
            time.sleep(0.01)
            yield BATCH[0][:1], BATCH[1][:1]

    wrong: dict[str, tuple[Examples, str, str]] = {
        "raising": (raising, "training-failed", "examples-failed"),
        "exiting": (exiting, "training-failed", "examples-failed"),
        "nan": (not_a_number, "training-failed", "training-diverged"),
        "shape": (of_another_shape, "training-failed", "training-batch-invalid"),
        "nothing": (nothing, "training-failed", "no-examples"),
        "endless": (endless, "training-aborted", "the round is over"),
    }
    apps = {name: living.app(name, examples=examples) for name, (examples, _, _) in wrong.items()}
    for app in apps.values():
        app.device.start()
    lost = {}
    for name, app in apps.items():
        _, event, why = wrong[name]
        early = app.next(event).data
        assert why in (early.get("code"), early.get("reason")), early
        assert app.device.state is not State.TRAINING
        app.examples = some_digits
        lost[name] = early["round"]
    for name, app in apps.items():
        assert app.next("uploaded").data["round"] > lost[name]
        assert "uploading" not in app.names(lost[name])
        stop_in_time(app.device)
        assert ("header", name, lost[name]) not in living.said


def test_update_that_the_app_does_not_let_pass_never_leaves(living: Living) -> None:
    app = living.app("careful")
    inspected: list[int] = []

    def veto(inspection: Inspection) -> None:
        inspected.append(inspection.round)
        raise PermissionError("not this one")

    app.device._inspect = veto
    app.device.start()
    failed = app.next("training-failed").data
    stop_in_time(app.device)
    assert failed["code"] == "examples-failed" and "PermissionError" in str(failed["detail"])
    assert inspected == [failed["round"]]
    assert ("header", "careful", failed["round"]) not in living.said
    assert round_key_of(app.device._kit) is not None  # joined, and nothing spent


def test_callback_that_raises_and_one_that_stops_the_device_do_no_harm(living: Living) -> None:
    stopped = threading.Event()

    def hear(event: DeviceEvent) -> None:
        if event.name == "uploaded":
            device.stop()
            stopped.set()
        raise RuntimeError("a bug in the app")

    device = Device.open(living.app("clumsy").device._kit, on_event=hear, inspect=living.apps[-1].inspect)
    device.task(TASK)(some_digits)
    device.start()
    assert stopped.wait(WAIT_S)
    assert device.state is State.STOPPED


def test_examples_function_may_stop_the_device(living: Living) -> None:
    stopped = threading.Event()

    def stopping(_context: Context) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        app.device.stop()
        stopped.set()
        yield BATCH

    app = living.app("leaving", examples=stopping)
    app.device.start()
    assert stopped.wait(WAIT_S)
    assert app.device.state is State.STOPPED
    app.examples = some_digits
    app.device.start()  # nothing of the first life is in the way
    app.next("uploaded")


def test_device_that_only_follows_gets_the_models_and_sends_nothing(living: Living) -> None:
    kit = enrol(living.folder, ["reader"])[0]
    device = Device.open(kit)
    device.follow(TASK)
    with device:
        heard = device.events()
        numbers = [next(event.data["round"] for event in heard if event.name == "model") for _ in range(2)]
        versions = {version.number: version.sha256 for version in device.model(TASK).versions}
    assert set(numbers) <= versions.keys() and len(set(versions.values())) == len(versions) >= 2
    assert device.model(TASK).activate() and device.model(TASK).predict(BATCH[0]).shape == (24, 10)
    assert not [who for who in living.said if who[1] == "reader"] and device.uses() == []


# -- policy -----------------------------------------------------------------------------------------------------------


def test_conditions_decide_before_and_during_training(living: Living) -> None:
    now = {"charging": False, "unmetered": True}

    def unplugged(_context: Context) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield BATCH
        now["charging"] = False
        yield BATCH
        yield BATCH

    policy = Policy(require="charging and unmetered", conditions=lambda: now)
    app = living.app("picky", policy, unplugged)
    app.device.start()
    declined = app.next("declined").data
    assert declined["reason"] == "not charging"
    assert (app.device.state, app.device.reason) == (State.WAITING, "not charging")
    now["charging"] = True
    aborted = app.next("training-aborted").data
    assert aborted["reason"] == "not charging"
    assert "not charging" in app.device.reason and app.device.state is State.WAITING
    app.next("declined", reason="not charging")  # the next round finds it still unplugged
    now["charging"], app.examples = True, some_digits
    app.next("uploaded")
    stop_in_time(app.device)
    for early in (declined["round"], aborted["round"]):
        assert ("header", "picky", early) not in living.said


def test_task_below_the_policys_floor_is_refused_and_the_app_is_told(living: Living) -> None:
    app = living.app("demanding", Policy(min_cohort=3))
    app.device.start()
    refused = app.next("refused").data
    assert refused["code"] == "policy-floor"
    assert app.device.state is State.WAITING and "cohort" in app.device.reason
    stop_in_time(app.device)
    assert not [who for who in living.said if who[1] == "demanding"]


def test_withdrawn_consent_leaves_the_round_and_erases_what_was_to_leave(living: Living) -> None:
    app = living.app("revoker")
    app.device.cut = True  # the body of the upload is never through
    app.device.start()
    number = app.next("uploading").data["round"]
    began = time.monotonic()
    app.device.consent = False
    assert time.monotonic() - began < STOP_TIMEOUT_S + SLACK_S
    assert (app.device.state, app.device.reason) == (State.WAITING, "for the user's consent")
    assert round_key_of(app.device._kit) is None
    store = SqliteStore(app.device._kit / "device.db")
    plan = living.base.task.plan.id.hex()
    assert all(key.startswith(f"blob/{plan}/") for key in store.keys("blob/")) and not store.outbox()
    store.close()
    app.device.cut = False
    app.device.consent = True
    again = app.next("uploaded").data["round"]
    assert again > number
    stop_in_time(app.device)
    assert [(use.what, use.round) for use in app.device.uses() if use.round in (number, again)] == [
        ("update", again),
        ("join", again),
        ("update", number),
        ("join", number),
    ]
