"""Making a fleet: keys, trust bundle and one kit per organisation and device. Nobody makes a certificate by hand."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blindsum.backend.authority import CA_FILE, CERTIFICATE_FILE, KEY_FILE, BrokerAuthority
from blindsum.backend.broker import BrokerFiles, mosquitto_config
from blindsum.backend.register import REVOKED_FILE, Enrolled, Register
from blindsum.protocol.envelope import is_name
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.keys import BOX_PRIVATE_SIZE, BROADCAST_KEY_SIZE, box_keypair, certificate_issue, public_of
from blindsum.protocol.params import Committee
from blindsum.protocol.trust import Trust
from blindsum.runtime.endpoint import Endpoint
from blindsum.runtime.kit import (
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
from blindsum.runtime.topics import Principal, root_of

__all__ = ["ENROL_MAX", "FleetFolder", "OperatorSettings", "create_fleet", "enrol", "revoke"]

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
    save_key(folder.coordinator / "key.pem", coordinator)
    write_private(folder.coordinator / "box.key", box_private)
    web = f'\n[web]\nlisten = "{page}"\n' if page else ""
    _settings(folder.coordinator / "coordinator.toml", fleet, "", broker, web)
    for number, key in enumerate(parties, 1):
        kit = root / f"party-{number}"
        save_key(kit / "key.pem", key)
        _settings(kit / "party.toml", fleet, f"party = {number}\ncohort_min = 2\n", broker)
    for number in range(1, workers + 1):
        _settings(root / f"worker-{number}" / "worker.toml", fleet, f'worker = {number}\ndatabase = ""\n', broker)
    broadcast_key = random_bytes(BROADCAST_KEY_SIZE)
    for kit in (folder.operator, folder.coordinator, *folder.parties):
        (kit / "trust.cbor").write_bytes(trust.encode())
        write_private(kit / "broadcast.key", broadcast_key)
    if endpoint.secure:
        _let_in(folder, fleet, endpoint, workers)
    return folder


def enrol(folder: FleetFolder, names: list[str]) -> list[Path]:
    """Make a kit for each device of `names` with a certificate of the fleet's CA. Raises BlindsumError for a name that is unusable,
    comes twice or already has a kit, and "enrolment-full" where too many certificates are valid; then none is made."""
    settings = load_settings(folder.operator / "operator.toml", OperatorSettings)
    url = settings.broker.url
    secure = Endpoint.parse(url).secure
    if len(names) > ENROL_MAX:
        raise BlindsumError("name-unusable", f"{len(names)} devices at once; at most {ENROL_MAX}")
    if len(set(names)) < len(names):
        raise BlindsumError("name-unusable", "a name comes twice")
    for name in names:
        Principal("device", name)  # refuses what is no topic level, or another role's name
        if folder.device(name).exists():
            raise BlindsumError("folder-not-empty", str(folder.device(name)))
    trust, ca = load_trust(folder.operator), load_key(folder.operator / "ca.pem")
    register, now = Register(folder.operator), now_ms()
    valid = register.valid(now)
    if valid + len(names) > settings.devices_max:
        raise BlindsumError("enrolment-full", f"{valid} certificates are valid, devices_max is {settings.devices_max}")
    broadcast_key = load_broadcast_key(folder.operator)
    authority = BrokerAuthority.load(folder.operator) if secure else None
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
        (kit / "trust.cbor").write_bytes(trust.encode())
        write_private(kit / "broadcast.key", broadcast_key)
        if authority is not None:
            authority.client(kit, Principal("device", name).user, days=DEVICE_DAYS)
        _settings(kit / "device.toml", trust.fleet, f'device = "{name}"\n', url)
        kits.append(kit)
    return kits


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


def _let_in(folder: FleetFolder, fleet: str, endpoint: Endpoint, workers: int) -> None:
    """TLS files for the broker and for every role, and the broker's configuration."""
    authority = BrokerAuthority.create(folder.operator, fleet)
    folder.broker.mkdir()
    authority.server(folder.broker, endpoint.host, days=BACKEND_DAYS)
    parties = [str(number) for number in range(1, len(folder.parties) + 1)]
    files = BrokerFiles(Path(CA_FILE), Path(CERTIFICATE_FILE), Path(KEY_FILE))
    mosquitto_config(folder.broker, fleet=fleet, parties=parties, files=files, workers=workers, port=endpoint.port)
    authority.client(folder.coordinator, Principal("coordinator", "coordinator").user, days=BACKEND_DAYS)
    for number in range(1, workers + 1):
        authority.client(folder.root / f"worker-{number}", Principal("worker", str(number)).user, days=BACKEND_DAYS)
    for party in parties:
        authority.client(folder.root / f"party-{party}", Principal("party", party).user, days=BACKEND_DAYS)


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
