"""Starting, connecting and stopping a device that has no fleet."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from blindsum.backend.broker import EmbeddedBroker
from blindsum.protocol.errors import BlindsumError
from blindsum.runtime.kit import load_trust
from blindsum.sdk import Device
from blindsum.sdk.events import State
from tests.e2e.livingfleet import (
    TASK,
    some_digits,
    stop_in_time,
    until,
)


def test_broker_that_is_not_there_is_nothing_special(lonely: Path) -> None:
    device = Device.open(lonely)
    device.task(TASK)(some_digits)
    url = device._settings.broker.url
    device.start()
    assert device.state is State.CONNECTING and url in device.reason
    stop_in_time(device)


@pytest.mark.parametrize("scheme", ["mqtt", "mqtts"])
def test_stop_does_not_wait_for_a_broker_that_does_not_answer(lonely: Path, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        authority = x509.load_der_x509_certificate(load_trust(lonely).ca)
        (lonely / "ca.pem").write_bytes(authority.public_bytes(Encoding.PEM))
        url = f"{scheme}://127.0.0.1:{mute.getsockname()[1]}"
        text = (lonely / "device.toml").read_text("utf-8").partition("[broker]")[0]
        ca = 'ca = "ca.pem"\n' if scheme == "mqtts" else ""
        (lonely / "device.toml").write_text(f'{text}[broker]\nurl = "{url}"\n{ca}', "utf-8")
        device = Device.open(lonely)
        for _ in range(2):
            device.start()
            mute.accept()
            assert device.state is State.CONNECTING
            stop_in_time(device)


def test_connection_that_comes_and_goes_shows_in_the_state(lonely: Path) -> None:
    device = Device.open(lonely)
    port = int(device._settings.broker.url.rsplit(":", 1)[1])
    broker = EmbeddedBroker()
    with device:
        for _ in range(2):
            assert device.state is State.CONNECTING
            broker.start(port)
            until(lambda: device.state is State.WAITING)
            assert device.reason == "for a round"
            broker.stop()
            until(lambda: device.state is State.CONNECTING)


def test_two_devices_on_one_kit_do_not_run_at_once(lonely: Path) -> None:
    first, second = Device.open(lonely), Device.open(lonely)
    with first:
        with pytest.raises(BlindsumError, match="database-in-use"):
            second.start()
        assert second.state is State.STOPPED
        second.stop()
        assert first.state is State.CONNECTING
    with second:
        assert second.state is State.CONNECTING


def test_device_starts_once_and_takes_no_task_while_it_runs(lonely: Path) -> None:
    device = Device.open(lonely)
    with device:
        with pytest.raises(BlindsumError, match="device-running"):
            device.start()
        with pytest.raises(BlindsumError, match="device-running"):
            device.task("late")(some_digits)
    device.task("late")(some_digits)
    device.stop()  # a second time does nothing


def test_start_that_fails_leaves_nothing_open(lonely: Path) -> None:
    settings = (lonely / "device.toml").read_text("utf-8")
    (lonely / "device.toml").write_text(settings.replace("mqtt://", "gopher:"), "utf-8")
    device = Device.open(lonely)
    before = threading.active_count()
    for _ in range(2):
        with pytest.raises(BlindsumError, match="broker-url-invalid"):
            device.start()
        assert device.state is State.STOPPED
    assert threading.active_count() == before
    (lonely / "device.toml").write_text(settings, "utf-8")
    with Device.open(lonely):
        pass  # the database was given back


def test_unusable_task_name_is_told_at_the_start(lonely: Path) -> None:
    device = Device.open(lonely)
    device.task("Fraud!")(some_digits)
    with pytest.raises(BlindsumError, match="name-unusable"):
        device.start()
    assert device.state is State.STOPPED
