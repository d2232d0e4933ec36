"""The load that chose the embedded broker (docs/adr/0003-embedded-broker.md): `python tests/broker/load.py --help`.

Uploads: each device sends its update in 256 KiB chunks, four in flight, and sends a chunk again until the coordinator's receipt
names it. Model: one blob as retained chunks, read by every device. Small: signed-message-sized traffic. Each may be run with the
broker killed and started again after a quarter. A run is sound when everything arrived; it is clean when nothing had to go twice.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import multiprocessing
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from paho.mqtt.enums import MQTTProtocolVersion

from blindsum.backend.broker import EmbeddedBroker, local_mosquitto_config
from blindsum.runtime.mqtt import MqttLink
from blindsum.runtime.ports import Inbound, Outcome

CHUNK = 262_144
WINDOW = 4
RETRY_S = 2.0
TIMEOUT_S = 60.0
ROOT = "blindsum/1/load"


@dataclass(frozen=True)
class Load:
    """`devices` upload `chunks` chunks of `size` bytes each; `model_chunks` are first read by all of them."""

    devices: int
    chunks: int
    size: int
    model_chunks: int = 0
    restart: bool = False


LOADS = {
    "demo": Load(devices=24, chunks=16, size=CHUNK),
    "demo-restart": Load(devices=24, chunks=16, size=CHUNK, restart=True),
    "many": Load(devices=200, chunks=4, size=CHUNK),
    "small": Load(devices=50, chunks=40, size=1000),
    "model": Load(devices=24, chunks=1, size=1000, model_chunks=16),
    "model-restart": Load(devices=24, chunks=1, size=1000, model_chunks=16, restart=True),
}


@dataclass
class Result:
    broker: str
    load: str
    ok: bool
    seconds: float
    missing: int
    again: int
    cpu_s: float
    rss_mb: float


class Sender:
    """A link with a bounded queue of its own in front of the link's window."""

    def __init__(self, url: str, name: str) -> None:
        self.link = MqttLink(url, name)
        if os.environ.get("LOAD_MQTT") == "3.1.1":  # amqtt leaves a CONNECT of version 5 with properties unanswered
            self.link._version = MQTTProtocolVersion.MQTTv311
        self.waiting: deque[tuple[str, bytes, bool]] = deque()

    def pump(self) -> None:
        while self.waiting and self.link.room:
            message = self.waiting[0]
            topic, body, retain = message
            if not self.link.publish(topic, body, retain=retain, done=partial(self._done, message)):
                return
            self.waiting.popleft()

    def _done(self, message: tuple[str, bytes, bool], outcome: Outcome) -> None:
        if outcome is Outcome.LOST:
            self.waiting.append(message)


class Device(Sender):
    """Reads the model if there is one, then uploads until every chunk has its receipt."""

    def __init__(self, url: str, name: str, load: Load) -> None:
        super().__init__(url, name)
        self.name, self.load = name, load
        self.model: set[int] = set()
        self.open: dict[int, float] = dict.fromkeys(range(load.chunks), 0.0)  # chunk -> when to send it (again)
        self.tries = [0] * load.chunks
        self.again = 0
        self.asked = 0.0
        self.body = os.urandom(load.size)
        topics = [f"{ROOT}/dn/{name}/+"] + ([f"{ROOT}/bc/t/chunk/m/+"] if load.model_chunks else [])
        self.link.open(topics, on_message=self.arrived, on_state=lambda _state: None)

    def arrived(self, inbound: Inbound) -> bool:
        if "/bc/" in inbound.topic:
            index, crc = int.from_bytes(inbound.body[:4]), int.from_bytes(inbound.body[4:8])
            if zlib.crc32(inbound.body[8:]) == crc:
                self.model.add(index)
        else:
            for index in json.loads(inbound.body):
                self.open.pop(index, None)
        self.link.ack(inbound.token)
        return True

    def step(self, now: float) -> bool:
        """Whether it is finished."""
        if len(self.model) < self.load.model_chunks:
            if now > self.asked + RETRY_S:
                if self.asked:
                    self.again += 1
                    missing = [index for index in range(self.load.model_chunks) if index not in self.model]
                    self.waiting.append((f"{ROOT}/up/00/{self.name}/ask", json.dumps(missing).encode(), False))
                self.asked = now
            self.pump()
            return False
        in_flight = sum(due > now for due in self.open.values())
        for index, due in list(self.open.items()):
            if in_flight >= WINDOW or len(self.waiting) >= WINDOW:
                break
            if due <= now and index in self.open:
                self.again += due > 0
                self.open[index] = now + RETRY_S * 2 ** min(self.tries[index], 3)
                self.tries[index] += 1
                head = index.to_bytes(4) + zlib.crc32(self.body).to_bytes(4)
                self.waiting.append((f"{ROOT}/up/00/{self.name}/chunk", head + self.body, False))
                in_flight += 1
        self.pump()
        return not self.open and not self.waiting


def devices_process(url: str, load: Load, results: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    logging.disable(logging.WARNING)
    devices = [Device(url, f"d{number}", load) for number in range(load.devices)]
    end = time.monotonic() + TIMEOUT_S
    left = devices
    while left and time.monotonic() < end:
        left = [device for device in left if not device.step(time.monotonic())]
        time.sleep(0.002)
    missing = sum(len(device.open) + max(0, load.model_chunks - len(device.model)) for device in devices)
    results.put((missing, sum(device.again for device in devices)))
    for device in devices:
        device.link.close(0)


class Coordinator(Sender):
    """Publishes the model, answers every chunk with a receipt and every ask with the chunks asked for."""

    def __init__(self, url: str, load: Load) -> None:
        super().__init__(url, "coordinator")
        self.load = load
        self.chunk = os.urandom(load.size if load.model_chunks == 0 else CHUNK)
        self.got: set[tuple[str, int]] = set()
        self.link.open([f"{ROOT}/up/+/+/+"], on_message=self.arrived, on_state=lambda _state: None)
        self.link.wait_connected(10)
        for index in range(load.model_chunks):
            self.publish_model(index)

    def publish_model(self, index: int) -> None:
        head = index.to_bytes(4) + zlib.crc32(self.chunk).to_bytes(4)
        self.waiting.append((f"{ROOT}/bc/t/chunk/m/{index}", head + self.chunk, True))

    def arrived(self, inbound: Inbound) -> bool:
        *_, name, kind = inbound.topic.split("/")
        if kind == "ask":
            for index in json.loads(inbound.body):
                if len(self.waiting) < 10_000:
                    self.publish_model(index)
        elif zlib.crc32(inbound.body[8:]) == int.from_bytes(inbound.body[4:8]):
            index = int.from_bytes(inbound.body[:4])
            self.got.add((name, index))
            self.waiting.append((f"{ROOT}/dn/{name}/receipt", json.dumps([index]).encode(), False))
        self.link.ack(inbound.token)
        return True


def amqtt_process(port: int) -> None:
    from amqtt.broker import Broker

    logging.disable(logging.CRITICAL)
    config = {
        "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }

    async def run() -> None:
        await Broker(config).start()
        await asyncio.Event().wait()

    asyncio.run(run())


class Broker:
    """One of the candidates on one port, start, kill and start again."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.embedded = EmbeddedBroker()
        self.process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self.folder = tempfile.TemporaryDirectory()

    def start(self) -> None:
        if self.kind.startswith("iotcore"):
            self.embedded.start(self.port, mqtt=self.kind.removeprefix("iotcore-"))
            return
        if self.kind == "mosquitto":
            command = ["/usr/sbin/mosquitto", "-c", str(local_mosquitto_config(Path(self.folder.name), port=self.port))]
        else:
            command = [sys.executable, __file__, "--serve-amqtt", str(self.port)]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            time.sleep(0.02)
        raise SystemExit(f"{self.kind} does not start")

    @property
    def pid(self) -> int:
        return self.embedded.pid or (self.process.pid if self.process else 0)

    def usage(self) -> tuple[float, float]:
        stat = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        status = Path(f"/proc/{self.pid}/status").read_text()
        peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK"), peak

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        if self.process:
            self.process.wait()
        self.embedded.stop()


def run(kind: str, name: str) -> Result:
    load = LOADS[name]
    os.environ["LOAD_MQTT"] = "3.1.1" if kind == "amqtt" else "5"
    broker = Broker(kind)
    broker.start()
    results: multiprocessing.Queue = multiprocessing.get_context("spawn").Queue()  # type: ignore[type-arg]
    coordinator = Coordinator(broker.url, load)
    while coordinator.waiting:
        coordinator.pump()
        time.sleep(0.002)
    process = multiprocessing.get_context("spawn").Process(target=devices_process, args=(broker.url, load, results))
    process.start()
    total = load.devices * load.chunks
    start = 0.0
    spent = 0.0
    restarted = not load.restart
    while process.is_alive() and results.empty():
        coordinator.pump()
        if not start and coordinator.link.state.connected and (coordinator.got or load.model_chunks):
            start = time.monotonic()
        if not restarted and len(coordinator.got) >= total / 4:
            restarted = True
            spent += broker.usage()[0]
            broker.kill()
            time.sleep(0.3)
            broker.start()
        time.sleep(0.002)
    seconds = time.monotonic() - start
    missing, again = results.get(timeout=5)
    process.join()
    cpu, peak = broker.usage()
    coordinator.link.close(1)
    broker.kill()
    missing = max(missing, total - len(coordinator.got))
    return Result(kind, name, missing == 0, round(seconds, 2), missing, again, round(spent + cpu, 2), round(peak))


def table(results: list[Result]) -> Iterator[str]:
    yield "| broker | load | runs | all arrived | s, median (max) | sent again, median (max) | broker CPU s | RSS MB |"
    yield "|---|---|---|---|---|---|---|---|"
    for broker, load in dict.fromkeys((result.broker, result.load) for result in results):
        rows = [result for result in results if (result.broker, result.load) == (broker, load)]
        seconds, again = [row.seconds for row in rows], [row.again for row in rows]
        yield (
            f"| {broker} | {load} | {len(rows)} | {sum(row.ok for row in rows)} "
            f"| {statistics.median(seconds):.1f} ({max(seconds):.1f}) | {statistics.median(again):.0f} ({max(again)}) "
            f"| {statistics.median(row.cpu_s for row in rows):.1f} | {max(row.rss_mb for row in rows):.0f} |"
        )


def main() -> None:
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--broker", action="append", choices=["iotcore-5", "iotcore-3.1.1", "amqtt", "mosquitto"])
    parser.add_argument("--load", action="append", choices=list(LOADS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="append each result as a line of JSON")
    parser.add_argument("--serve-amqtt", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_amqtt:
        amqtt_process(arguments.serve_amqtt)
        return
    results = []
    for kind in arguments.broker or ["iotcore-5"]:
        for name in arguments.load or list(LOADS):
            for _ in range(arguments.runs):
                results.append(run(kind, name))
                print(results[-1], flush=True)
                if arguments.out:
                    with arguments.out.open("a") as out:
                        out.write(json.dumps(asdict(results[-1])) + "\n")
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
