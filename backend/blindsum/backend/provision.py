"""Making a fleet: keys, trust bundle and one kit per organisation and device. Nobody makes a certificate by hand."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blindsum.backend.authority import CA_FILE, CERTIFICATE_FILE, KEY_FILE, BrokerAuthority
from blindsum.backend.broker import BrokerFiles, acl_section, mosquitto_config
from blindsum.backend.register import REVOKED_FILE, Enrolled, Register
from blindsum.protocol.envelope import is_name
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.keys import BOX_PRIVATE_SIZE, BROADCAST_KEY_SIZE, box_keypair, certificate_issue, public_of
from blindsum.protocol.params import Committee
from blindsum.protocol.trust import Trust
from blindsum.runtime.endpoint import Endpoint
from blindsum.runtime.kit import (
    PARTY_KEYS_FILE,
    BrokerSettings,
    load_broadcast_key,
    load_key,
    load_trust,
    save_key,
    write_private,
    write_whole,
)
from blindsum.runtime.settings import Settings, load_settings
from blindsum.runtime.system import now_ms, random_bytes
from blindsum.runtime.topics import WORKERS_MAX, Principal, root_of

__all__ = [
    "ENROL_MAX",
    "FleetFolder",
    "OperatorSettings",
    "create_fleet",
    "enrol",
    "enrol_workers",
    "outfit_party",
    "revoke",
    "trust_of",
]

CA_DAYS = 3650
BACKEND_DAYS = 3650
DEVICE_DAYS = 365
_DAY_MS = 86_400_000
ENROL_MAX = 100_000
"""Devices that are enrolled at once."""


class OperatorSettings(Settings, frozen=True):
    """`operator.toml`: the broker that new devices are told, and how many certificates may be valid at once."""

    fleet: str
    broker: BrokerSettings
    devices_max: int = 100_000


@dataclass(frozen=True, slots=True)
class FleetFolder:
    """Where `create_fleet` put what: `operator` stays with whoever signs tasks and enrols devices; `coordinator`, each of
    `parties` and, where there is TLS, `broker` go to the organisation that runs that role, and to nobody else."""

    root: Path

    @property
    def operator(self) -> Path:
        return self.root / "operator"

    @property
    def coordinator(self) -> Path:
        return self.root / "coordinator"

    @property
    def parties(self) -> list[Path]:
        return sorted(self.root.glob("party-*"))

    @property
    def broker(self) -> Path:
        return self.root / "broker"

    def party(self, number: int) -> Path:
        return self.root / f"party-{number}"

    def worker(self, number: int) -> Path:
        return self.root / f"worker-{number}"

    def device(self, name: str) -> Path:
        return self.root / "devices" / name


def create_fleet(
    root: Path, *, fleet: str, malicious_parties: int, broker: str, page: str = "", workers: int = 0
) -> FleetFolder:
    """Make a fleet of 3f + 1 parties in the empty (or new) folder `root`. Where `broker` is a URL with TLS, every kit gets a
    certificate that lets it in, and the broker a kit of its own with a configuration of Mosquitto. `page` is where the coordinator
    shows its page ("host:port"; "" for nowhere); so many `workers` get kits, too. Raises BlindsumError "folder-not-empty",
    "name-unusable", "broker-url-invalid" or "parameters-unsafe"."""
    committee = Committee.for_f(malicious_parties)
    endpoint = Endpoint.parse(broker)
    if not is_name(fleet):
        raise BlindsumError("name-unusable", repr(fleet))
    if root.exists() and any(root.iterdir()):
        raise BlindsumError("folder-not-empty", str(root))
    ca, operator, coordinator = (Ed25519PrivateKey.generate() for _ in range(3))
    parties = [Ed25519PrivateKey.generate() for _ in range(committee.parties)]
    box_private, box_public = box_keypair(random_bytes(BOX_PRIVATE_SIZE))
    certificate = certificate_issue(
        name=fleet, public=public_of(ca), issuer=fleet, issuer_key=ca, serial=1, now=now_ms(), days=CA_DAYS, ca=True
    )
    trust = Trust(
        fleet,
        certificate,
        public_of(operator),
        public_of(coordinator),
        box_public,
        tuple(public_of(key) for key in parties),
    )
    folder = FleetFolder(root)
    save_key(folder.operator / "ca.pem", ca)
    save_key(folder.operator / "operator.pem", operator)
    _settings(folder.operator / "operator.toml", fleet, "", broker)
    broadcast_key = random_bytes(BROADCAST_KEY_SIZE)
    _know(folder.operator, trust, broadcast_key)
    authority = BrokerAuthority.create(folder.operator, fleet) if endpoint.secure else None
    outfitter = _Outfitter(trust, broadcast_key, broker, authority)
    save_key(folder.coordinator / "key.pem", coordinator)
    write_private(folder.coordinator / "box.key", box_private)
    web = f'\n[web]\nlisten = "{page}"\n' if page else ""
    outfitter.dress(folder.coordinator, Principal("coordinator", "coordinator"), "", web)
    for number, key in enumerate(parties, 1):
        save_key(folder.party(number) / "key.pem", key)
        outfitter.party(folder.party(number), number)
    if authority is not None:
        folder.broker.mkdir()
        authority.server(folder.broker, endpoint.host, days=BACKEND_DAYS)
        names = [str(number) for number in range(1, len(parties) + 1)]
        files = BrokerFiles(Path(CA_FILE), Path(CERTIFICATE_FILE), Path(KEY_FILE))
        mosquitto_config(folder.broker, fleet=fleet, parties=names, files=files, port=endpoint.port)
    if workers:
        enrol_workers(folder, list(range(1, workers + 1)))
    return folder


def trust_of(kit: Path) -> Trust:
    """The trust bundle of a kit; of the operator's kit beside it where there is only a copy of what the coordinator keeps. Raises
    BlindsumError "kit-incomplete"."""
    operator = FleetFolder(kit.parent).operator
    return load_trust(operator if operator.is_dir() and not (kit / "trust.cbor").exists() else kit)


def enrol(folder: FleetFolder, names: list[str]) -> list[Path]:
    """Make a kit for each device of `names` with a certificate of the fleet's CA. Raises BlindsumError for a name that is unusable,
    comes twice or already has a kit, and "enrolment-full" where too many certificates are valid; then none is made."""
    settings = load_settings(folder.operator / "operator.toml", OperatorSettings)
    if len(names) > ENROL_MAX:
        raise BlindsumError("name-unusable", f"{len(names)} devices at once; at most {ENROL_MAX}")
    if len(set(names)) < len(names):
        raise BlindsumError("name-unusable", "a name comes twice")
    for name in names:
        Principal("device", name)  # refuses what is no topic level, or another role's name
        if folder.device(name).exists():
            raise BlindsumError("folder-not-empty", str(folder.device(name)))
    outfitter, ca = _Outfitter.load(folder), load_key(folder.operator / "ca.pem")
    trust = outfitter.trust
    register, now = Register(folder.operator), now_ms()
    valid = register.valid(now)
    if valid + len(names) > settings.devices_max:
        raise BlindsumError("enrolment-full", f"{valid} certificates are valid, devices_max is {settings.devices_max}")
    serials = {name: secrets.randbits(127) + 1 for name in names}
    until = now + DEVICE_DAYS * _DAY_MS
    if (acl := folder.broker / "mosquitto.acl").exists():
        _bar(acl, trust.fleet, names, barred=False)  # an earlier device of the name was
    register.add(*(Enrolled(device=name, serial=serials[name], at=now, until=until) for name in names))
    kits = []
    for name in names:
        key, kit = Ed25519PrivateKey.generate(), folder.device(name)
        certificate = certificate_issue(
            name=name,
            public=public_of(key),
            issuer=trust.fleet,
            issuer_key=ca,
            serial=serials[name],
            now=now,
            days=DEVICE_DAYS,
        )
        save_key(kit / "key.pem", key)
        (kit / "certificate.der").write_bytes(certificate)
        outfitter.dress(kit, Principal("device", name), f'device = "{name}"\n')
        kits.append(kit)
    return kits


def enrol_workers(folder: FleetFolder, numbers: list[int]) -> tuple[list[Path], str]:
    """Make a kit for the worker of each of `numbers`. Also returns what the access list of the fleet's broker has to say of them,
    "" where it asks for no certificates; in `folder` it says so already. Raises BlindsumError "name-unusable" for a number that is
    not from 1 to WORKERS_MAX or comes twice, and "folder-not-empty" for one that has a kit; then none is made."""
    for number in numbers:
        if not 1 <= number <= WORKERS_MAX or numbers.count(number) > 1:
            raise BlindsumError("name-unusable", f"worker {number}: the numbers are from 1 to {WORKERS_MAX}, each once")
        if folder.worker(number).exists():
            raise BlindsumError("folder-not-empty", str(folder.worker(number)))
    outfitter = _Outfitter.load(folder)
    for number in numbers:
        outfitter.worker(folder.worker(number), number)
    kits = [folder.worker(number) for number in numbers]
    if outfitter.authority is None:
        return kits, ""
    sections = [acl_section(outfitter.trust.fleet, Principal("worker", str(number))) for number in numbers]
    if (acl := folder.broker / "mosquitto.acl").exists():
        text = acl.read_text("utf-8")
        write_whole(acl, (text + "".join(section for section in sections if section not in text)).encode())
    return kits, "".join(sections)


def outfit_party(folder: FleetFolder, number: int) -> Path:
    """Make everything but the key of a kit for party `number`, whose own is gone. Returns its folder."""
    kit = folder.party(number)
    _Outfitter.load(folder).party(kit, number)
    for name in (PARTY_KEYS_FILE, REVOKED_FILE):
        if (known := folder.operator / name).exists():
            (kit / name).write_bytes(known.read_bytes())
    return kit


def revoke(folder: FleetFolder, names: list[str]) -> list[Path]:
    """Take back every certificate of the devices `names`: a new revocation list in the operator's kit and in each kit of
    `folder` that goes by it, and no access to its broker. Returns what was written. Raises BlindsumError "device-unknown" or
    "enrolment-full"."""
    trust, ca = load_trust(folder.operator), load_key(folder.operator / "ca.pem")
    register, now = Register(folder.operator), now_ms()
    raw = register.revoke(names, now=now, issuer=trust.fleet, issuer_key=ca, ca=trust.ca)
    written = []
    for kit in (folder.operator, folder.coordinator, *folder.parties):
        if kit.is_dir():
            write_whole(kit / REVOKED_FILE, raw)
            written.append(kit / REVOKED_FILE)
    if (acl := folder.broker / "mosquitto.acl").exists():
        _bar(acl, trust.fleet, names, barred=True)
        written.append(acl)
    return written


@dataclass(frozen=True, slots=True)
class _Outfitter:
    """What kits have besides keys of their own: settings, the bundle, the key of broadcasts, a door key of the broker."""

    trust: Trust
    broadcast_key: bytes = field(repr=False)
    url: str
    authority: BrokerAuthority | None
    """None where the broker asks for no certificates."""

    @staticmethod
    def load(folder: FleetFolder) -> _Outfitter:
        """Of the fleet whose operator's kit lies in `folder`."""
        kit = folder.operator
        url = load_settings(kit / "operator.toml", OperatorSettings).broker.url
        authority = BrokerAuthority.load(kit) if Endpoint.parse(url).secure else None
        return _Outfitter(load_trust(kit), load_broadcast_key(kit), url, authority)

    def party(self, kit: Path, number: int) -> None:
        self.dress(kit, Principal("party", str(number)), f"party = {number}\ncohort_min = 2\n")

    def worker(self, kit: Path, number: int) -> None:
        self._enter(kit, Principal("worker", str(number)), f'worker = {number}\ndatabase = ""\n')

    def dress(self, kit: Path, principal: Principal, own: str, more: str = "") -> None:
        """`own` are lines at the top of its settings, `more` sections at their end."""
        self._enter(kit, principal, own, more)
        _know(kit, self.trust, self.broadcast_key)

    def _enter(self, kit: Path, principal: Principal, own: str, more: str = "") -> None:
        _settings(kit / f"{principal.role}.toml", self.trust.fleet, own, self.url, more)
        if self.authority is not None:
            days = DEVICE_DAYS if principal.role == "device" else BACKEND_DAYS
            self.authority.client(kit, principal.user, days=days)


def _know(kit: Path, trust: Trust, broadcast_key: bytes) -> None:
    """What everybody of the fleet but workers knows."""
    (kit / "trust.cbor").write_bytes(trust.encode())
    write_private(kit / "broadcast.key", broadcast_key)


def _bar(acl: Path, fleet: str, names: list[str], *, barred: bool) -> None:
    """Deny the devices `names` everything in Mosquitto's access list, or take that back. It goes by it from its next SIGHUP on, for
    connections that stand, too."""
    text = acl.read_text("utf-8")
    for name in names:
        section = f"\nuser {Principal('device', name).user}\ntopic deny {root_of(fleet)}/#\n"
        text = text.replace(section, "") + (section if barred else "")
    write_whole(acl, text.encode())


def _settings(path: Path, fleet: str, own: str, broker: str, more: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    url = json.dumps(broker, ensure_ascii=False)  # which is a TOML string
    text = f'fleet = "{fleet}"\n{own}\n[broker]\nurl = {url}\n'
    if Endpoint.parse(broker).secure:
        text += f'ca = "{CA_FILE}"\ncertificate = "{CERTIFICATE_FILE}"\nkey = "{KEY_FILE}"\n'
    path.write_text(text + more, "utf-8")
