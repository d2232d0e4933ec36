"""Is a kit fit to run? One finding a question, each with what to do about it. Changes nothing."""

from __future__ import annotations

import platform
import shutil
import socket
import sqlite3
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509

from blindsum.protocol.errors import CATALOGUE, BlindsumError, Refused
from blindsum.protocol.keys import BOX_PRIVATE_SIZE, box_keypair, box_open, box_seal, certificate_fault, public_of
from blindsum.protocol.machines.deviceround import open_announcement
from blindsum.protocol.partykeys import keys_of
from blindsum.protocol.trust import Trust
from blindsum.protocol.view import CLOCK_SKEW_MAX_MS, open_message
from blindsum.runtime.clock import RENEWAL, SET_CLOCK, clock_says, lasting, out_of_time
from blindsum.runtime.endpoint import Endpoint
from blindsum.runtime.kit import (
    BrokerSettings,
    load_broadcast_key,
    load_key,
    load_party_keys,
    load_trust,
    make_link,
    read_file,
)
from blindsum.runtime.mqtt import MqttLink
from blindsum.runtime.ports import Inbound, LinkState, Outcome
from blindsum.runtime.sqlite import code_of, damage_of
from blindsum.runtime.system import now_ms, random_bytes
from blindsum.runtime.topics import Principal, Topics
from blindsum.runtime.vault import Vault

__all__ = ["Finding", "Patient", "examine", "examine_file", "problem"]

DISK_FREE_MIN: Final = 1 << 30
DAYS_LEFT_MIN: Final = 30
CONNECT_TIMEOUT_S: Final = 10.0
HEAR_S: Final = 1.0
"""How long an announcement that the broker keeps takes to come."""
ANNOUNCEMENTS_MAX: Final = 64
ANSWER_S: Final = 5.0
"""How long the broker has to say what became of a message."""
LISTEN_S: Final = 5.0
"""How long the others have to be heard; it ends when all are."""
PACKET_SIZE_MIN: Final = 131_072
NOBODY: Final = "nobody"
"""A topic of the fleet that nobody may write on and nobody reads."""

_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to one question: `ok`, what was seen, and what to do where it is not."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Patient:
    """A kit and whose it is."""

    kit: Path
    fleet: str
    principal: Principal
    broker: BrokerSettings
    database: Callable[[], tuple[bool, Finding]]
    """Whether the role holds its database now, and how it is."""
    vault: Vault | None = None
    clock: Callable[[], int] = now_ms


def examine(patient: Patient) -> Iterator[Finding]:
    """All questions, one after another. Asking the broker takes up to fifteen seconds."""
    yield from _asked("software", _software, "install a cryptography that has ML-KEM, 48 or later")
    if patient.principal.role != "worker":  # which has none
        yield from _asked("keys", lambda: _keys(patient), "restore the kit from its backup, or have it made again")
    yield _private(patient.kit)
    yield from _certificates(patient)
    yield _disk(patient.kit)
    busy, finding = patient.database()
    yield finding
    yield from _broker(patient, busy)


def examine_file(path: Path) -> tuple[bool, Finding]:
    """Whether a role holds the SQLite database at `path`, and how it is."""
    if not path.exists():
        return False, Finding("database", True, "none yet: the role has not run")
    db = sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=0.5, isolation_level=None)
    db.text_factory = lambda data: data.decode("utf-8", "replace")
    try:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")  # as the role opens it: nothing is left beside the file
        db.execute("BEGIN IMMEDIATE")
        db.execute("ROLLBACK")
        said = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if (
            said == "ok" and db.execute("PRAGMA user_version").fetchone()[0] > 1
        ):  # one of schema 1 is marked at the next start
            said = damage_of(db) or said
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):
            return True, Finding("database", True, "in use: the role is running")
        if code_of(error) != "database-corrupted":
            return False, Finding("database", False, str(error), "see that the file and its folder can be written")
        said = str(error)
    finally:
        db.close()
    remedy = "" if said == "ok" else CATALOGUE["database-corrupted"].remedy
    return False, Finding("database", said == "ok", "sound" if said == "ok" else said, remedy)


def problem(name: str, error: BlindsumError) -> Finding:
    """What an error says to a question."""
    return Finding(name, False, f"{error.code}: {error.detail or error.cause}", error.remedy)


def _asked(name: str, question: Callable[[], str], remedy: str) -> Iterator[Finding]:
    try:
        yield Finding(name, True, question())
    except BlindsumError as error:
        yield problem(name, error)
    except Exception as error:  # whatever is wrong with it, it does not work
        yield Finding(name, False, f"{type(error).__name__}: {error}", remedy)


def _software() -> str:
    private, public = box_keypair(random_bytes(BOX_PRIVATE_SIZE))
    assert box_open(private, b"doctor", box_seal(public, b"doctor", b"well")) == b"well"
    return f"Python {platform.python_version()}, {ssl.OPENSSL_VERSION}, sealing with ML-KEM-768 works"


def _keys(patient: Patient) -> str:
    trust, public = load_trust(patient.kit), public_of(load_key(patient.kit / "key.pem", patient.vault))
    load_broadcast_key(patient.kit, patient.vault)
    if patient.principal.role == "device":
        fault, name, certified = certificate_fault(read_file(patient.kit / "certificate.der"), ca=trust.ca, now=None)
        if fault:
            raise BlindsumError("kit-certificate", fault)
        right = (name, certified) == (patient.principal.id, public)
    else:
        right = _own_key(patient.kit, trust, patient.principal) == public
    if not right:
        raise BlindsumError("kit-incomplete", f"key.pem is not that of {patient.principal.user} in this fleet")
    return f"they are those of {patient.principal.user} in fleet {trust.fleet}"


def _own_key(kit: Path, trust: Trust, principal: Principal) -> bytes | None:
    if principal.role == "coordinator":
        return trust.coordinator
    number = int(principal.id)
    return next(reversed(keys_of(trust, number, load_party_keys(kit, trust).get(number, []))), None)


def _private(kit: Path) -> Finding:
    secret = [path for path in kit.iterdir() if path.suffix == ".key" or path.name in ("key.pem", "tls-key.pem")]
    open_ = sorted(path.name for path in secret if stat.S_IMODE(path.stat().st_mode) & 0o077)
    if open_:
        return Finding("secrets", False, f"others may read {', '.join(open_)}", f"chmod 600 {' '.join(open_)} in {kit}")
    return Finding("secrets", True, f"{len(secret)} files that only their owner may read")


def _certificates(patient: Patient) -> Iterator[Finding]:
    found = []
    if patient.principal.role == "device":
        found.append(("device certificate", patient.kit / "certificate.der", x509.load_der_x509_certificate))
    if patient.broker.certificate:
        found.append(("TLS certificate", patient.kit / patient.broker.certificate, x509.load_pem_x509_certificate))
    for name, path, load in found:
        try:
            certificate = load(read_file(path))
        except (BlindsumError, ValueError) as error:
            yield Finding(name, False, f"{path.name}: {error}", "have the kit made again")
            continue
        now, end = patient.clock(), certificate.not_valid_after_utc
        since, until = (1000 * int(at.timestamp()) for at in (certificate.not_valid_before_utc, end))
        wrong, remedy = out_of_time("it", since=since, until=until, now=now)
        days = (until - now) // _DAY_MS
        if not wrong and days < DAYS_LEFT_MIN:
            wrong, remedy = f"it ends in {days} days", RENEWAL
        yield Finding(name, not wrong, wrong or f"it ends on {end:%Y-%m-%d}", remedy)


def _disk(kit: Path) -> Finding:
    free = shutil.disk_usage(kit).free
    detail = f"{free / 1e9:.1f} GB free"
    return Finding(
        "disk", free >= DISK_FREE_MIN, detail, "" if free >= DISK_FREE_MIN else "make room: uploads wait on disk"
    )


def _broker(patient: Patient, busy: bool) -> Iterator[Finding]:
    url = patient.broker.url
    try:
        endpoint = Endpoint.parse(url)
        begun = time.monotonic()
        socket.create_connection((endpoint.host, endpoint.port), timeout=CONNECT_TIMEOUT_S).close()
    except BlindsumError as error:
        yield problem("broker", error)
        return
    except OSError as error:
        yield Finding("broker", False, f"{url}: {error}", CATALOGUE["broker-unreachable"].remedy)
        return
    took = (time.monotonic() - begun) * 1e3
    if busy:
        yield Finding(
            "broker", True, f"{url} answers in {took:.0f} ms; the role is connected, so nobody logs in in its place"
        )
        return
    yield from _logged_in(patient, took)


def _logged_in(patient: Patient, took: float) -> Iterator[Finding]:
    """Log in as the role would, read how much the broker takes, and who is there."""
    topics = Topics(patient.fleet, patient.principal)
    online: dict[str, bool] = {}
    announced: list[bytes] = []
    heard, answered = threading.Lock(), threading.Event()

    def changed(state: LinkState) -> None:
        if state.connected or state.code.startswith("tls-"):  # neither side's certificate gets better by waiting
            answered.set()

    def arrived(inbound: Inbound) -> bool:
        """Acknowledges nothing, so that the role gets all of it when it runs."""
        if inbound.topic.endswith("/announcement") and len(announced) < ANNOUNCEMENTS_MAX:
            announced.append(inbound.body)
        who = topics.presence_of(inbound.topic)
        if who is not None and who.role != "device":
            with heard:
                online[who.user] = inbound.body == b"online"
        return True

    presence = [pattern for pattern in topics.subscriptions if pattern.startswith(f"{topics.root}/st/")]
    announcements = [f"{topics.root}/bc/+/announcement"] if patient.principal.role in ("device", "party") else []
    try:
        link = make_link(patient.kit, patient.broker, topics, patient.vault)
    except BlindsumError as error:
        yield problem("broker", error)
        return
    try:
        link.open([*presence, *announcements], on_message=arrived, on_state=changed)
        answered.wait(CONNECT_TIMEOUT_S)
        link.wait_connected(0)
        told = f"{patient.broker.url} lets {patient.principal.user} in, MQTT {link.protocol}, {took:.0f} ms away"
        yield Finding("broker", True, told)
        size = link.max_packet_size
        enough = size >= PACKET_SIZE_MIN
        remedy = "" if enough else "raise the broker's packet limit, or make tasks with smaller chunks"
        yield Finding(
            "message size", enough, f"{size} bytes, {PACKET_SIZE_MIN} are enough for chunks of 120 KiB", remedy
        )
        if announcements:
            time.sleep(HEAR_S)
            link.unsubscribe(announcements[0])  # the broker may remember it for the role
            yield _clock(load_trust(patient.kit), announced, patient.clock())
        if presence:  # only the coordinator may hear who is there
            wanted = _wanted(patient)
            until = time.monotonic() + LISTEN_S
            while time.monotonic() < until and not all(map(online.get, wanted)):
                time.sleep(LISTEN_S / 100)
            with heard:
                yield _others(wanted, dict(online))
        yield from _access(patient, link, topics)
    except BlindsumError as error:
        yield problem("broker", error)
    finally:
        link.close()


def _access(patient: Patient, link: MqttLink, topics: Topics) -> Iterator[Finding]:
    """Whether the broker takes from the role what is its own to say and, where it asks who he is, nothing else. A broker of MQTT
    3.1.1 does not say; one that ends the connection instead has refused."""
    if link.protocol != "5":
        return
    user = patient.principal.user
    own, others = (
        _outcome(link, topic, body) for topic, body in ((topics.presence, b"online"), (f"{topics.root}/{NOBODY}", b""))
    )
    if own is Outcome.REFUSED:
        remedy = "enrol it where the broker's access list is made, and let the broker read the list again (SIGHUP)"
        yield Finding("access list", False, f"the broker lets {user} in, and takes nothing of it", remedy)
    elif others is Outcome.SENT and (patient.broker.certificate or patient.broker.user):
        remedy = "give the broker its access list: acl_file of the mosquitto.conf that 'blindsum init' made"
        yield Finding("access list", False, f"{user} may write under any name", remedy)
    else:
        yield Finding("access list", True, f"{user} may write what is its own")


def _outcome(link: MqttLink, topic: str, body: bytes) -> Outcome | None:
    """What the broker says to a message on `topic`, None where it says nothing."""
    said: list[Outcome] = []
    answered = threading.Event()

    def done(outcome: Outcome) -> None:
        said.append(outcome)
        answered.set()

    if link.publish(topic, body, retain=False, done=done):
        answered.wait(ANSWER_S)
    return said[0] if said else None


def _clock(trust: Trust, announced: list[bytes], now: int) -> Finding:
    """No round is announced before it is; that the last one was long ago means nothing."""
    says, ahead = f"it says {clock_says(now)}", 0
    for body in announced:
        signed = open_message(trust, body)
        view = signed if isinstance(signed, Refused) else open_announcement(trust, signed)
        if not isinstance(view, Refused):
            ahead = max(ahead, view.manifest.issued_at - now)
    if ahead > CLOCK_SKEW_MAX_MS:
        return Finding("clock", False, f"{says}, and a round was announced {lasting(ahead)} later", SET_CLOCK)
    return Finding("clock", True, f"{says}, and nothing speaks against it")


def _wanted(patient: Patient) -> set[str]:
    """All roles of the fleet but the patient's own and the devices."""
    trust = load_trust(patient.kit)
    roles = {"coordinator", *(f"party-{number}" for number in range(1, len(trust.parties) + 1))}
    return roles - {patient.principal.user}


def _others(wanted: set[str], online: dict[str, bool]) -> Finding:
    away = sorted(who for who in wanted if not online.get(who))
    if away:
        return Finding(
            "other roles", False, f"away: {', '.join(away)}", "start them, or ask the organisations that run them"
        )
    return Finding("other roles", True, f"all {len(wanted)} are here")
