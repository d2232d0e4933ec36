"""Starting, pausing, consent, erasing, asyncio: what a device does without any fleet."""

from __future__ import annotations

import asyncio
import gc
import selectors
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from blindsum.backend.broker import EmbeddedBroker
from blindsum.protocol.codec import encode
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.machines.step import Write
from blindsum.runtime import mqtt
from blindsum.runtime.driver import IDLE_MAX_S
from blindsum.runtime.ports import LinkState
from blindsum.runtime.sqlite import SqliteStore
from blindsum.sdk import Device, Policy, State, Use
from blindsum.sdk import __main__ as commands
from tests.e2e.livingfleet import WAIT_S, at_broker, until

HOUR_MS = 3_600_000


def threads() -> set[str]:
    return {thread.name.split("-")[0] for thread in threading.enumerate() if "robinson" in thread.name}


def test_pause_keeps_no_connection_and_outlives_the_app(lonely: Path) -> None:
    device = Device.open(lonely)
    with device:
        assert device.state is State.CONNECTING and threads() == {"train", "driver", "mqtt"}
        device.pause()
        assert (device.state, device.reason) == (State.PAUSED, "by the app")
        assert not threads()
    with Device.open(lonely) as again:
        assert again.state is State.PAUSED
        again.resume()
        assert again.state is State.CONNECTING
    assert device.state is State.STOPPED


def test_without_an_answer_a_device_that_asks_for_consent_does_nothing(lonely: Path) -> None:
    device = Device.open(lonely, policy=Policy(ask_consent=True))
    with device:
        assert device.consent is None
        assert (device.state, device.reason) == (State.WAITING, "for the user's consent") and not threads()
        device.consent = True
        assert device.state is State.CONNECTING
        device.consent = False
        assert device.state is State.WAITING and not threads()
    assert Device.open(lonely).consent is False


def test_erased_device_keeps_its_kit_and_the_numbers_of_its_rounds_alone(lonely: Path) -> None:
    device = Device.open(lonely)
    with device:
        device.consent = True
        ledger = device._ledger()
        ledger.record(Use(1, "t", 7, "update", 1, "so"), issued_at=1)
    store = SqliteStore(lonely / "device.db")
    store.commit([Write("spent/t", encode(7)), Write("state/t", b"a key of the round")])
    store.close()
    (lonely / "photo.jpg").write_bytes(b"not ours")
    device.erase()
    assert device.reason == "erased" and device.uses() == [] and device.consent is None
    store = SqliteStore(lonely / "device.db")
    assert list(store.scan("")) == [("spent/t", encode(7))]
    store.close()
    assert b"a key of the round" not in (lonely / "device.db").read_bytes()
    with Device.open(lonely) as again:
        assert again.state is State.CONNECTING
        again.erase(identity=True)
    assert [path.name for path in lonely.iterdir()] == ["photo.jpg"]


def test_asyncio_app_starts_listens_and_stops(lonely: Path) -> None:
    async def app() -> list[str]:
        device = Device.open(lonely)
        heard = device.events()
        async with device:
            device.pause()
            device.resume()
        return [str(event.data["state"]) async for event in heard if event.name == "state"]

    assert asyncio.run(app()) == ["waiting", "paused", "waiting", "stopped"]


def test_loop_over_events_ends_when_the_device_stops(lonely: Path) -> None:
    device = Device.open(lonely)
    heard = device.events()
    device.start()
    threading.Timer(0.1, device.stop).start()
    assert [event.data["state"] for event in heard if event.name == "state"] == ["waiting", "stopped"]


def test_disk_that_cannot_be_written_is_shown_and_tried_again(lonely: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blindsum.sdk.device.REVIVE_S", 0.1)
    (lonely / "device.db").mkdir()  # what even root cannot open for writing
    device = Device.open(lonely)
    with device:
        assert device.state is State.FAILED and "database-unwritable" in device.reason
        (lonely / "device.db").rmdir()
        until(lambda: device.state is State.CONNECTING)


def test_damaged_database_is_shown_and_no_crash_of_the_app(lonely: Path) -> None:
    (lonely / "device.db").write_bytes(b"no database at all" * 1000)
    device = Device.open(lonely)
    with device:
        assert device.state is State.FAILED and "move it away" in device.reason


def test_consent_that_cannot_be_read_is_none(lonely: Path) -> None:
    (lonely / "ledger.db").mkdir()
    device = Device.open(lonely)
    assert device.consent is False
    with pytest.raises(BlindsumError, match="database-unwritable"):
        device.consent = True
    with device:
        assert device.state is State.WAITING and not threads()


def test_callback_may_stop_the_device_and_may_raise(lonely: Path) -> None:
    stopped = threading.Event()

    def on_event(_event: object) -> None:
        device.stop()
        stopped.set()
        raise ValueError("of the app")

    device = Device.open(lonely, on_event=on_event)
    device.start()
    assert stopped.wait(WAIT_S)
    assert device.state is State.STOPPED
    device.start()
    device.stop()


def test_doctor_says_what_is_wrong_with_a_device(lonely: Path) -> None:
    policy = Policy(require="charging", conditions=lambda: {"charging": False}, ask_consent=True)
    findings = {finding.name: finding for finding in Device.open(lonely, policy=policy).doctor()}
    assert findings["keys"].ok and findings["secrets"].ok
    wrong = {name: finding.detail for name, finding in findings.items() if not finding.ok}
    assert wrong.keys() == {"broker", "conditions", "consent"}
    assert wrong["conditions"] == "not charging"


def test_doctors_command_takes_the_secret_of_a_sealed_kit_and_seals_none(
    lonely: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(range(32)))
    assert commands.main(["doctor", str(lonely), "--secret", str(secret)]) == 1  # its broker is away
    assert b"PRIVATE KEY" in (lonely / "key.pem").read_bytes()
    Device.open(lonely, secret=secret.read_bytes())
    assert b"PRIVATE KEY" not in (lonely / "key.pem").read_bytes()
    capsys.readouterr()
    for given, code in ([], "secret-missing"), (["--secret", str(lonely)], "secret-unusable"):
        assert commands.main(["doctor", str(lonely), *given]) == 1
        assert code in capsys.readouterr().err
    assert commands.main(["doctor", str(lonely), "--secret", str(secret)]) == 1
    told = capsys.readouterr().out
    assert "ok       keys" in told and "ok       clock" in told and "PROBLEM  broker" in told


class Napping(Device):
    """A device whose clock goes by the turns of its driver."""

    at: int | None = None

    def _now(self) -> int:
        return super()._now() if self.at is None else self.at

    def nap(self, hours: float) -> int:
        """Let so many hours pass in its clock without news. Returns how often it woke."""
        driver = self._life._driver  # type: ignore[union-attr]
        changed, really = driver._changed, driver._changed.wait

        def wait(timeout_s: float | None = None) -> bool:
            assert timeout_s is not None and self.at is not None, "it would sleep for ever"
            self.at += round(1000 * timeout_s)
            return True

        def turns(_machine: object, now: int) -> int:
            self.at, count = now, 0
            changed.wait = wait  # type: ignore[method-assign]
            try:
                while self.at - now < hours * HOUR_MS:
                    driver._turn(*driver._wait())
                    count += 1
            finally:
                changed.wait, self.at = really, None  # type: ignore[method-assign]
            return count

        return driver.call(turns).result(WAIT_S)


def test_a_day_without_news_is_slept_through_and_leaves_nothing_behind_in_memory(lonely: Path) -> None:
    """24 hours of a connected device in its own clock: how often it wakes, and what of it stays."""
    with EmbeddedBroker() as broker:
        at_broker(lonely, broker.url)
        device = Napping.open(lonely)
        device.task("t")(lambda _context: [])
        with device:
            until(lambda: device.state is State.WAITING)
            store, commits = device._life._store, []  # type: ignore[union-attr]
            store.commit = lambda *_: commits.append(1)  # type: ignore[method-assign, assignment]
            heard = device.events()
            device.nap(1)
            blocks, alive = sys.getallocatedblocks(), threading.active_count()
            woken = device.nap(24)
            gc.collect()
            grown = sys.getallocatedblocks() - blocks
            assert threading.active_count() == alive
            assert device.state is State.WAITING
        assert [event.data["state"] for event in heard] == ["stopped"]
        assert not commits, "the disk sleeps too"
    assert woken <= 24 * 3600 / IDLE_MAX_S + 1
    assert grown < 1000, "small objects of Python; one an hour would be fine"


def test_connection_at_rest_wakes_for_its_keep_alive_and_no_more(lonely: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    class Selector(selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> list[Any]:
            waits.append(-1.0 if timeout is None else timeout)
            return super().select(timeout)

    with EmbeddedBroker() as broker:
        at_broker(lonely, broker.url)
        monkeypatch.setattr("blindsum.runtime.mqtt.selectors.DefaultSelector", Selector)
        with Device.open(lonely) as device:
            until(lambda: device.state is State.WAITING)
            until(lambda: waits[-1] == mqtt.IDLE_MAX_S)
            seen = len(waits)
            time.sleep(1.0)
            assert len(waits) <= seen + 3  # none, but for what is still on its way
    assert mqtt.IDLE_MAX_S >= 5.0


def test_connections_that_come_and_go_all_day_leave_nothing_behind_in_memory(lonely: Path) -> None:
    device = Device.open(lonely)
    with device:
        driver = device._life._driver  # type: ignore[union-attr]

        def come_and_go(times: int) -> None:
            for turn in range(times):
                driver._turn([], [LinkState(connected=turn % 2 > 0, code="broker-unreachable", detail="gone")])

        driver.call(lambda _machine, _now: come_and_go(100)).result(WAIT_S)
        blocks = sys.getallocatedblocks()
        driver.call(lambda _machine, _now: come_and_go(24 * 60)).result(WAIT_S)
        gc.collect()
        assert sys.getallocatedblocks() - blocks < 1000


def test_import_brings_no_more_than_it_needs() -> None:
    """Seconds depend on the machine (docs/SDK.md has them); modules are what they come from."""
    code = "import sys; import blindsum.sdk; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    ours = [name for name in loaded if name.split(".")[0] == "blindsum"]
    assert len(ours) <= 90, "each takes 2 ms"
    assert {name.split(".")[1] for name in ours if "." in name} == {"protocol", "runtime", "sdk"}
    heavy = {"asyncio", "keyring", "multiprocessing", "onnx", "onnxruntime", "rich", "typer", "unittest"}
    assert not heavy & set(loaded)
