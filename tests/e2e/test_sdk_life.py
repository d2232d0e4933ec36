"""Starting, pausing, consent, erasing, asyncio: what a device does without any fleet."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from blindsum.backend.broker import EmbeddedBroker
from blindsum.backend.provision import create_fleet, enrol
from blindsum.protocol.codec import encode
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.machines.step import Write
from blindsum.runtime.driver import IDLE_MAX_S
from blindsum.runtime.ports import LinkState
from blindsum.runtime.sqlite import SqliteStore
from blindsum.sdk import Device, Policy, State, Use

WAIT_S = 30.0


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """The kit of a device whose broker is not there."""
    with EmbeddedBroker() as broker:
        url = broker.url
    folder = create_fleet(tmp_path / "fleet", fleet="lonely", malicious_parties=1, broker=url)
    return enrol(folder, ["robinson"])[0]


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def threads() -> set[str]:
    return {thread.name.split("-")[0] for thread in threading.enumerate() if "robinson" in thread.name}


def test_pause_keeps_no_connection_and_outlives_the_app(kit: Path) -> None:
    device = Device.open(kit)
    with device:
        assert device.state is State.CONNECTING and threads() == {"train", "driver", "mqtt"}
        device.pause()
        assert (device.state, device.reason) == (State.PAUSED, "by the app")
        assert not threads()
    with Device.open(kit) as again:
        assert again.state is State.PAUSED
        again.resume()
        assert again.state is State.CONNECTING
    assert device.state is State.STOPPED


def test_without_an_answer_a_device_that_asks_for_consent_does_nothing(kit: Path) -> None:
    device = Device.open(kit, policy=Policy(ask_consent=True))
    with device:
        assert device.consent is None
        assert (device.state, device.reason) == (State.WAITING, "for the user's consent") and not threads()
        device.consent = True
        assert device.state is State.CONNECTING
        device.consent = False
        assert device.state is State.WAITING and not threads()
    assert Device.open(kit).consent is False


def test_erased_device_keeps_its_kit_and_the_numbers_of_its_rounds_alone(kit: Path) -> None:
    device = Device.open(kit)
    with device:
        device.consent = True
        ledger = device._ledger()
        ledger.record(Use(1, "t", 7, "update", 1, "so"), issued_at=1)
    store = SqliteStore(kit / "device.db")
    store.commit([Write("spent/t", encode(7)), Write("state/t", b"a key of the round")])
    store.close()
    (kit / "photo.jpg").write_bytes(b"not ours")
    device.erase()
    assert device.reason == "erased" and device.uses() == [] and device.consent is None
    store = SqliteStore(kit / "device.db")
    assert list(store.scan("")) == [("spent/t", encode(7))]
    store.close()
    assert b"a key of the round" not in (kit / "device.db").read_bytes()
    with Device.open(kit) as again:
        assert again.state is State.CONNECTING
        again.erase(identity=True)
    assert [path.name for path in kit.iterdir()] == ["photo.jpg"]


def test_asyncio_app_starts_listens_and_stops(kit: Path) -> None:
    async def app() -> list[str]:
        device = Device.open(kit)
        heard = device.events()
        async with device:
            device.pause()
            device.resume()
        return [str(event.data["state"]) async for event in heard if event.name == "state"]

    assert asyncio.run(app()) == ["waiting", "paused", "waiting", "stopped"]


def test_loop_over_events_ends_when_the_device_stops(kit: Path) -> None:
    device = Device.open(kit)
    heard = device.events()
    device.start()
    threading.Timer(0.1, device.stop).start()
    assert [event.data["state"] for event in heard if event.name == "state"] == ["waiting", "stopped"]


def test_disk_that_cannot_be_written_is_shown_and_tried_again(kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blindsum.sdk.device.REVIVE_S", 0.1)
    (kit / "device.db").mkdir()  # what even root cannot open for writing
    device = Device.open(kit)
    with device:
        assert device.state is State.FAILED and "database-unwritable" in device.reason
        (kit / "device.db").rmdir()
        until(lambda: device.state is State.CONNECTING)


def test_damaged_database_is_shown_and_no_crash_of_the_app(kit: Path) -> None:
    (kit / "device.db").write_bytes(b"no database at all" * 1000)
    device = Device.open(kit)
    with device:
        assert device.state is State.FAILED and "move it away" in device.reason


def test_consent_that_cannot_be_read_is_none(kit: Path) -> None:
    (kit / "ledger.db").mkdir()
    device = Device.open(kit)
    assert device.consent is False
    with pytest.raises(BlindsumError, match="database-unwritable"):
        device.consent = True
    with device:
        assert device.state is State.WAITING and not threads()


def test_callback_may_stop_the_device_and_may_raise(kit: Path) -> None:
    stopped = threading.Event()

    def on_event(_event: object) -> None:
        device.stop()
        stopped.set()
        raise ValueError("of the app")

    device = Device.open(kit, on_event=on_event)
    device.start()
    assert stopped.wait(WAIT_S)
    assert device.state is State.STOPPED
    device.start()
    device.stop()


def test_doctor_says_what_is_wrong_with_a_device(kit: Path) -> None:
    policy = Policy(require="charging", conditions=lambda: {"charging": False}, ask_consent=True)
    findings = {finding.name: finding for finding in Device.open(kit, policy=policy).doctor()}
    assert findings["keys"].ok and findings["secrets"].ok
    wrong = {name: finding.detail for name, finding in findings.items() if not finding.ok}
    assert wrong.keys() == {"broker", "conditions", "consent"}
    assert wrong["conditions"] == "not charging"


def test_a_day_of_idling_leaves_nothing_behind_in_memory(kit: Path) -> None:
    """As many turns as a device takes in 24 hours without news, and connections that come and go all day."""
    device = Device.open(kit)
    with device:
        driver = device._life._driver  # type: ignore[union-attr]

        def idle(turns: int) -> None:
            for turn in range(turns):
                lost = [LinkState(connected=turn % 120 > 0, code="broker-unreachable", detail="gone")]
                driver._turn([], [], lost if turn % 60 == 0 else [])

        driver.call(lambda _machine, _now: idle(500)).result(WAIT_S)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        driver.call(lambda _machine, _now: idle(24 * 3600 // int(IDLE_MAX_S))).result(WAIT_S)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
    assert grown < 50_000
