"""The broker: an embedded one for a host of its own, and the configuration of Mosquitto for everything larger.

The embedded broker (docs/adr/0003-embedded-broker.md) is a process of its own on the loopback interface. It knows no users and
no access list and keeps nothing over a restart, which this protocol does not need: everything is signed, sealed and sent
again until the other role answers.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final

from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.messages import MESSAGE_SIZE_MAX
from blindsum.runtime.mqtt import PACKET_OVERHEAD_SIZE
from blindsum.runtime.topics import TABLE, Principal, acl_for, root_of

__all__ = [
    "BrokerFiles",
    "EmbeddedBroker",
    "acl_section",
    "local_mosquitto_config",
    "mosquitto_acl",
    "mosquitto_config",
]

LOOPBACK: Final = "127.0.0.1"
PACKET_SIZE_MAX: Final = MESSAGE_SIZE_MAX + PACKET_OVERHEAD_SIZE
CONNECTIONS_MAX: Final = 10_000
START_TIMEOUT_S: Final = 15.0
STOP_TIMEOUT_S: Final = 3.0
EXIT_BUSY: Final = 75

MEMORY_MAX: Final = 1 << 30
MEMORY_CHECK_S: Final = 2.0

# MQTT 5 and 3.1.1 need a listener each; ours speak 5. Segments are the memory of one topic filter: 256 MiB, after which the
# oldest message goes, read or not. Four chunks in flight from each of 200 devices are 200 MiB.
_EMBEDDED_TOML: Final = """\
id = 0

[router]
id = 0
max_connections = {connections}
max_outgoing_packet_count = 200
max_segment_size = 16777216
max_segment_count = 16

[{version}.1]
name = "{version}"
listen = "{host}:{port}"
next_connection_delay_ms = 1

[{version}.1.connections]
connection_timeout_ms = 60000
max_payload_size = {size}
max_inflight_count = 100
dynamic_filters = true
"""


class EmbeddedBroker:
    """A broker in a child process that ends with this one, also when this one is killed. Use as a context manager or `start`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """Where links connect to, the same after a restart."""
        return f"mqtt://{LOOPBACK}:{self._port}"

    @property
    def pid(self) -> int | None:
        """The broker's process, or None where it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self, port: int | None = None, *, mqtt: str = "5") -> str:
        """Run on `port`, or on a free one, and return the URL once it answers. `mqtt` is "5" or "3.1.1".

        Raises BlindsumError "port-busy" or "broker-failed".
        """
        assert self.pid is None, "it runs already"
        with _reserve(port) as reservation:
            self._port = reservation.getsockname()[1]
            command = [sys.executable, "-m", "blindsum.backend.broker", str(self._port), mqtt, str(MEMORY_MAX)]
            with tempfile.TemporaryFile() as complaints:
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=complaints)
                self._wait_until_it_listens(self._process, complaints)
        return self.url

    def stop(self) -> None:
        """End the process. Safe to call at any time."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()

    def __enter__(self) -> EmbeddedBroker:
        if self.pid is None:
            self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait_until_it_listens(self, process: subprocess.Popen[bytes], complaints: IO[bytes]) -> None:
        end = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end:
            if (status := process.poll()) is not None:
                self.stop()
                complaints.seek(0)
                detail = f"{self.url} {complaints.read().decode(errors='replace')[-500:]}".strip()
                raise BlindsumError("port-busy" if status == EXIT_BUSY else "broker-failed", detail)
            try:
                socket.create_connection((LOOPBACK, self._port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.02)
        self.stop()
        raise BlindsumError("broker-failed", f"no answer on {self.url} after {START_TIMEOUT_S:.0f} s")


@dataclass(frozen=True, slots=True)
class BrokerFiles:
    """The broker's own PEM files: the CA that signs its clients, its certificate and its key."""

    ca: Path
    certificate: Path
    key: Path


def mosquitto_config(folder: Path, *, fleet: str, parties: Sequence[str], files: BrokerFiles, port: int = 8883) -> Path:
    """Write `mosquitto.conf` and `mosquitto.acl` for production into `folder`; returns the first. Mosquitto must run in `folder`:
    what is relative in it, also in `files`, is relative to where it runs.

    TLS 1.3 with client certificates whose common name is the user name and the client id, so that nobody can take another's
    session; the access list is `topics.TABLE`. For Mosquitto 2.0; 2.1 reads it too.
    """
    acl = folder / "mosquitto.acl"
    acl.write_text(mosquitto_acl(fleet, parties))
    config = folder / "mosquitto.conf"
    config.write_text(
        f"""\
# Written by blindsum. Run it in this folder: mosquitto -c mosquitto.conf
# (as the user whose files these are: as root it becomes another user, who cannot read the key).
# Messages are signed, sealed and sent until the other role confirms them, so what
# the broker loses is sent again; these limits keep that rare.
listener {port}
cafile {files.ca}
certfile {files.certificate}
keyfile {files.key}
tls_version tlsv1.3
require_certificate true
use_identity_as_username true
# without this line any valid certificate could end another device's connection
use_username_as_clientid true
allow_anonymous false
acl_file {acl.name}
{_LIMITS}persistence true
persistence_location ./
# not autosave_on_changes: it writes the whole store again after each few messages, and uploads come to a halt
autosave_interval 60
persistent_client_expiration 2d
# watch $SYS/broker/publish/messages/dropped: it should stay 0
sys_interval 10
"""
    )
    return config


def local_mosquitto_config(folder: Path, *, port: int) -> Path:
    """Write a `mosquitto.conf` for tests on this host: loopback, no TLS, anyone may connect, the same limits."""
    config = folder / "mosquitto.conf"
    config.write_text(f"listener {port} {LOOPBACK}\nallow_anonymous true\n{_LIMITS}")
    return config


def mosquitto_acl(fleet: str, parties: Sequence[str]) -> str:
    """The access list of a fleet: one pattern for all devices, a section for each party and one for the coordinator.

    Mosquitto applies a pattern to every user, so these others may do what a device of their name may; there is none.
    """
    lines = ["# Everything that is not named here is denied. %u is the common name of the client's certificate."]
    lines += [
        f"pattern {_WORDS[rule.action]} {root_of(fleet)}/{rule.pattern.format(id='%u')}"
        for rule in TABLE
        if rule.role == "device"
    ]
    principals = [Principal("party", party) for party in parties] + [Principal("coordinator", "coordinator")]
    return "\n".join(lines) + "\n" + "".join(acl_section(fleet, principal) for principal in principals)


def acl_section(fleet: str, principal: Principal) -> str:
    """What the access list says of one principal, to be added at its end."""
    lines = [f"topic {_WORDS[action]} {pattern}" for action, pattern in acl_for(fleet, principal)]
    return "\n".join(["", f"user {principal.user}", *lines, ""])


_WORDS: Final = {"publish": "write", "read": "read"}

# Mosquitto's defaults drop acknowledged messages after 1000 in a queue, without a word.
_LIMITS: Final = f"""\
max_packet_size {PACKET_SIZE_MAX}
max_queued_messages 200000
max_queued_bytes 4294967296
max_inflight_messages 64
set_tcp_nodelay true
"""


def _reserve(port: int | None) -> socket.socket:
    """A bound socket that never listens: nobody else is given the port, and the child, which sets the same option, can listen."""
    reservation = socket.socket()
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        reservation.bind((LOOPBACK, port or 0))
    except OSError as error:
        reservation.close()
        raise BlindsumError("port-busy", f"{LOOPBACK}:{port}: {error.strerror}") from error
    return reservation


def _serve(port: int, mqtt: str, memory_max: int) -> None:
    """The child: be the broker until the parent is gone."""
    from iotcore.iotcore import IotCoreBroker  # here, because only this process pays for it

    logging.basicConfig(level=logging.ERROR)
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)  # it reports every packet as an error
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    threading.Thread(target=_begin_anew_when_large, args=(memory_max,), daemon=True).start()
    text = _EMBEDDED_TOML.format(
        version={"5": "v5", "3.1.1": "v4"}[mqtt],
        host=LOOPBACK,
        port=port,
        size=PACKET_SIZE_MAX,
        connections=CONNECTIONS_MAX,
    )
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
        config.write(text)
        config.flush()
        broker = IotCoreBroker(config_path=config.name)
    try:
        broker.check_ports()
    except OSError:
        sys.exit(EXIT_BUSY)
    broker.run_forever()


def _end_with_the_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _begin_anew_when_large(memory_max: int) -> None:
    """The log of a topic filter stays after its last subscriber left, and every round's model has a filter of its own. So
    replace this process by a fresh one of the same id when it has grown: links reconnect, and what was lost is sent again."""
    status = Path("/proc/self/status")
    while status.exists():  # elsewhere than on Linux the log only grows
        resident = int(status.read_text().split("VmRSS:")[1].split()[0]) * 1024
        if resident > memory_max:
            os.execv(sys.executable, [sys.executable, "-m", "blindsum.backend.broker", *sys.argv[1:]])
        time.sleep(MEMORY_CHECK_S)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
