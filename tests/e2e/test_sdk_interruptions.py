"""A device that is stopped, killed, offline, out of disk or of another time, in the middle of real rounds."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from blindsum.backend.provision import enrol
from blindsum.protocol.errors import BlindsumError
from blindsum.sdk import Device, Finding
from blindsum.sdk.events import State
from tests.e2e.livingfleet import (
    TASK,
    WAIT_S,
    Held,
    Living,
    round_key_of,
    some_digits,
    stop_in_time,
    until,
)

pytestmark = pytest.mark.parametrize("living", ["module_mosquitto"], indirect=True)


def test_round_goes_on_after_a_stop_while_training(living: Living) -> None:
    held = Held()
    app = living.app("paused", examples=held)
    app.device.start()
    assert held.entered.wait(WAIT_S)
    number = app.next("train").data["round"]
    assert app.device.state is State.TRAINING
    stop_in_time(app.device)  # though the examples function has not come back
    app.examples = some_digits
    app.device.start()
    held.release.set()
    ended = app.next("uploaded", "round-abandoned", round=number)
    # a machine that is slow today may miss the deadline; then the round is left cleanly
    assert ended.name == "uploaded" or ended.data["code"] == "deadline", ended
    app.next("round-finished")
    stop_in_time(app.device)
    assert app.names(number).count("uploading") <= 1


def test_round_goes_on_after_a_stop_while_uploading(living: Living) -> None:
    app = living.app("tunnel")
    app.device.cut = True
    app.device.start()
    number = app.next("uploading").data["round"]
    assert app.device.state in (State.UPLOADING, State.CONNECTING)
    stop_in_time(app.device)
    assert round_key_of(app.device._kit) == ("uploading", b"")
    app.device.cut = False
    app.device.start()
    ended = app.next("uploaded", "round-abandoned", "round-finished", round=number)
    app.next("round-finished")
    stop_in_time(app.device)
    assert app.names(number).count("uploading") == 1, ended
    assert len(living.said["header", "tunnel", number]) <= 1


def test_round_whose_deadline_passed_meanwhile_is_left_cleanly(living: Living) -> None:
    held = Held()
    app = living.app("asleep", examples=held)
    app.device.start()
    assert held.entered.wait(WAIT_S)
    number = app.next("train").data["round"]
    stop_in_time(app.device)
    held_key = round_key_of(app.device._kit)
    assert held_key is not None and held_key[0] == "training" and any(held_key[1])
    held.release.set()
    living.apps[0].next("round-finished", round=number)  # without this device
    app.examples = some_digits
    app.device.start()
    assert app.next("round-abandoned", round=number).data["code"] in ("deadline", "superseded")
    assert app.next("uploaded").data["round"] > number
    stop_in_time(app.device)
    assert ("header", "asleep", number) not in living.said
    store = (app.device._kit / "device.db").read_bytes()
    assert held_key[1] not in store  # the key of the round is erased, not only forgotten


def test_weeks_offline_and_clocks_that_jump_cost_rounds_and_nothing_else(living: Living) -> None:
    held = Held()
    app = living.app("sailor", examples=held)
    app.device.start()
    assert held.entered.wait(WAIT_S)
    number = app.next("train").data["round"]
    stop_in_time(app.device)
    held.release.set()
    app.examples = some_digits
    app.device.ahead_ms = 21 * 86_400_000  # three weeks later, or so this clock says
    before = len(app.heard)
    app.device.start()
    assert app.next("round-abandoned", round=number).data["code"] == "deadline"
    app.next("late")  # a round whose joining is long over by this clock
    assert "days ago by this device's clock" in app.device.reason and "set it (NTP)" in app.device.reason
    assert "joined" not in [event.name for event in app.heard[before:]]
    app.device.ahead_ms = -21 * 86_400_000  # while it runs
    assert app.next("refused").data["code"] == "clock-skew"
    assert "set the clock" in app.device.reason
    assert not clock_of(app.device).ok and "set the clock" in clock_of(app.device).remedy
    app.device.ahead_ms = 0
    assert app.next("uploaded").data["round"] > number
    assert clock_of(app.device).ok
    stop_in_time(app.device)
    assert clock_of(app.device).ok
    app.device.ahead_ms = -330 * 60_000
    until(lambda: "a round was announced 5 hours later" in clock_of(app.device).detail)  # as it stands in the broker
    app.device.ahead_ms = 0
    assert ("header", "sailor", number) not in living.said


def clock_of(device: Device) -> Finding:
    return next(finding for finding in device.doctor() if finding.name == "clock")


def test_device_goes_on_after_a_pause(living: Living) -> None:
    app = living.app("resting")
    app.device.start()
    app.next("uploaded")
    app.device.pause()
    assert app.device.state is State.PAUSED
    app.device.resume()
    app.next("uploaded")
    stop_in_time(app.device)


def test_full_disk_is_waited_out_and_nothing_leaves_meanwhile(
    living: Living, small_disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blindsum.sdk.device.REVIVE_S", 0.3)
    held = Held()
    app = living.app("crammed", examples=held, disk=small_disk.path)
    app.device.start()
    assert held.entered.wait(WAIT_S)
    number = app.next("train").data["round"]
    small_disk.fill()
    app.examples = some_digits
    held.release.set()
    app.next_of(lambda event: "disk-full" in str(event.data))
    assert "disk-full" in app.device.reason, app.device.reason
    with pytest.raises(BlindsumError, match="disk-full"):
        app.device.consent = True
    living.apps[0].next("round-finished")
    small_disk.empty()
    again = app.next("uploaded").data["round"]
    stop_in_time(app.device)
    assert again > number and ("header", "crammed", number) not in living.said
    assert ("update", again) in [(use.what, use.round) for use in app.device.uses()]


def test_read_only_disk_is_shown_by_state_and_error_and_costs_rounds_alone(
    living: Living, small_disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blindsum.sdk.device.REVIVE_S", 0.3)
    app = living.app("frozen", disk=small_disk.path)
    app.device.start()
    app.next("uploaded")
    stop_in_time(app.device)
    small_disk.freeze(frozen=True)
    app.device.start()
    assert str(app.next("state", state="failed").data["reason"]).startswith("database-unwritable")
    assert app.device.uses(), "what left can still be told"
    for change in (
        lambda: setattr(app.device, "consent", True),
        lambda: app.device.model(TASK).activate(),
        app.device.pause,
    ):
        with pytest.raises(BlindsumError, match="database-unwritable"):
            change()
    assert app.device.model(TASK).active is None
    stop_in_time(app.device)
    with pytest.raises(BlindsumError, match="database-unwritable"):
        app.device.erase()
    app.device.start()
    small_disk.freeze(frozen=False)
    app.next("uploaded")
    stop_in_time(app.device)


def test_disk_that_becomes_read_only_under_a_running_device_loses_nothing_and_sends_nothing_twice(
    living: Living, small_disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blindsum.sdk.device.REVIVE_S", 0.3)
    app = living.app("iced", disk=small_disk.path)
    app.device.cut = True  # the body of the upload is never through
    app.device.start()
    number = app.next("uploading").data["round"]
    small_disk.freeze(frozen=True)
    app.device.cut = False
    reason = str(app.next("state", state="failed").data["reason"])  # at the latest when it says its header again
    assert reason.startswith(("disk-failed", "database-unwritable")), reason
    app.next_of(lambda event: "database-unwritable" in str(event.data))  # it looks again, and says what it finds
    assert app.device.state is State.FAILED and next(use.round for use in app.device.uses()) == number
    living.apps[0].next("round-finished")
    small_disk.freeze(frozen=False)
    app.next("uploaded", "round-abandoned", "round-finished", round=number)
    app.next("round-finished", round=app.next("uploaded").data["round"])
    stop_in_time(app.device)
    assert app.names(number).count("uploading") == 1
    assert len(living.said["header", "iced", number]) <= 1


def test_process_killed_at_any_moment_goes_on_with_sealed_state_and_sends_nothing_twice(living: Living) -> None:
    """What it must not do, a second upload or an inexact sum, is judged for the whole fleet at the end."""

    def app(kit: Path, moment: str, sent: list[int]) -> subprocess.Popen[str]:
        command = [sys.executable, str(Path(__file__).with_name("mortal_app.py")), str(kit), TASK]
        plain = str(living.root / "plain")
        return subprocess.Popen([*command, plain, moment, *map(str, sent)], stdout=subprocess.PIPE, text=True)

    def sent_in(said: str) -> list[int]:
        return [event["round"] for event in map(json.loads, said.splitlines()) if event["event"] == "uploading"]

    moments = ["joined", "train", "trained", "masked", "uploading", "uploaded"]
    kits = enrol(living.folder, [f"mortal-{moment}" for moment in moments])
    first = {moment: app(kit, moment, []) for moment, kit in zip(moments, kits, strict=True)}
    heard = {moment: process.communicate(timeout=WAIT_S)[0] for moment, process in first.items()}
    assert {moment: process.returncode for moment, process in first.items()} == dict.fromkeys(moments, -signal.SIGKILL)
    second = {moment: app(kit, "", sent_in(heard[moment])) for moment, kit in zip(moments, kits, strict=True)}
    for moment, process in second.items():
        said = heard[moment] + process.communicate(timeout=2 * WAIT_S)[0]
        events, sent = [json.loads(line) for line in said.splitlines()], sent_in(said)
        assert process.returncode == 0 and events[-1]["state"] == "stopped"
        assert any(event["event"] == "round-finished" and event["round"] in sent for event in events), moment
        assert len(sent) == len(set(sent)), moment
