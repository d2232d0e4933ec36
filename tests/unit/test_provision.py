"""Making a fleet: who gets which file, and that a refusal leaves nothing behind."""

from __future__ import annotations

import shutil
import stat
import tomllib
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from blindsum.backend.authority import CA_FILE, CA_KEY_FILE, CERTIFICATE_FILE, KEY_FILE
from blindsum.backend.party import PartySettings
from blindsum.backend.provision import ENROL_MAX, FleetFolder, create_fleet, enrol, enrol_workers
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.keys import certificate_fault, public_of
from blindsum.runtime.kit import load_identity, load_key, load_trust
from blindsum.runtime.settings import load_settings
from blindsum.runtime.system import now_ms
from blindsum.sdk import Device

URL = "mqtts://broker.example:8883"


@pytest.fixture
def fleet(tmp_path: Path) -> FleetFolder:
    return create_fleet(tmp_path / "fleet", fleet="clinics", malicious_parties=1, broker=URL)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(("f", "parties"), [(1, 4), (2, 7), (3, 10)])
def test_fleet_has_3f_plus_1_parties_that_all_hold_one_trust_bundle(tmp_path: Path, f: int, parties: int) -> None:
    made = create_fleet(tmp_path / "fleet", fleet="clinics", malicious_parties=f, broker=URL)
    assert len(made.parties) == parties
    bundles = {(kit / "trust.cbor").read_bytes() for kit in (made.operator, made.coordinator, *made.parties)}
    assert len(bundles) == 1
    trust = load_trust(made.operator)
    assert len(trust.parties) == parties
    for number in range(1, parties + 1):
        assert trust.key_of(f"party/{number}") == public_of(
            load_key(tmp_path / "fleet" / f"party-{number}" / "key.pem")
        )


def test_each_kit_has_what_its_role_needs_and_nobody_elses_keys(fleet: FleetFolder) -> None:
    common = {"trust.cbor", "broadcast.key"}
    tls = {CA_FILE, CERTIFICATE_FILE, KEY_FILE}
    assert names_in(fleet.operator) == common | {"ca.pem", "operator.pem", "operator.toml", CA_FILE, CA_KEY_FILE}
    assert names_in(fleet.coordinator) == common | tls | {"key.pem", "box.key", "coordinator.toml"}
    for kit in fleet.parties:
        assert names_in(kit) == common | tls | {"key.pem", "party.toml"}
    assert names_in(fleet.broker) == tls | {"mosquitto.conf", "mosquitto.acl"}
    device = enrol(fleet, ["phone-1"])[0]
    assert names_in(device) == common | tls | {"key.pem", "certificate.der", "device.toml"}
    kits = [fleet.operator, fleet.coordinator, *fleet.parties, fleet.broker, device]
    secrets = [path.read_bytes() for kit in kits for path in kit.glob("*.pem") if path.name != CA_FILE]
    secrets.append((fleet.coordinator / "box.key").read_bytes())
    assert len(set(secrets)) == len(secrets)


def test_every_key_file_is_readable_by_its_owner_only(fleet: FleetFolder) -> None:
    enrol(fleet, ["phone-1"])
    public = {CA_FILE, CERTIFICATE_FILE}
    private = [path for path in (*fleet.root.rglob("*.pem"), *fleet.root.rglob("*.key")) if path.name not in public]
    assert len(private) >= 20
    for path in private:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_settings_of_each_kit_load_and_name_the_broker(fleet: FleetFolder) -> None:
    kit = enrol(fleet, ["phone-1"])[0]
    assert Device.open(kit).name == "phone-1"
    for number, party in enumerate(fleet.parties, 1):
        settings = load_settings(party / "party.toml", PartySettings)
        assert (settings.fleet, settings.party, settings.cohort_min) == ("clinics", number, 2)
        assert settings.broker.url == URL


def test_broker_address_is_checked_and_quoted(tmp_path: Path) -> None:
    with pytest.raises(BlindsumError, match="broker-url-invalid"):
        create_fleet(tmp_path / "a", fleet="clinics", malicious_parties=1, broker="nonsense")
    assert not (tmp_path / "a").exists()
    odd = 'ws://[::1]:80/a"b\\c'
    made = create_fleet(tmp_path / "b", fleet="clinics", malicious_parties=1, broker=odd)
    assert tomllib.loads((made.coordinator / "coordinator.toml").read_text("utf-8"))["broker"]["url"] == odd
    assert tomllib.loads((enrol(made, ["phone-1"])[0] / "device.toml").read_text("utf-8"))["broker"]["url"] == odd


@pytest.mark.parametrize("url", ["nonsense", "http://broker:1883", "mqtt://", "mqtt://user:word@broker"])
def test_what_is_no_address_of_a_broker_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(BlindsumError, match="broker-url-invalid"):
        create_fleet(tmp_path / "new", fleet="clinics", malicious_parties=1, broker=url)
    assert not (tmp_path / "new").exists()


def test_fleet_without_tls_has_no_tls_files(tmp_path: Path) -> None:
    made = create_fleet(tmp_path / "fleet", fleet="clinics", malicious_parties=1, broker="mqtt://broker.example")
    enrol(made, ["phone-1"])
    assert not made.broker.exists() and not list(made.root.rglob("tls-*"))


def test_certificate_that_lets_in_is_none_that_the_fleet_believes(fleet: FleetFolder) -> None:
    """A stolen TLS key opens a connection and no more: its certificate is not of the CA that devices are known by."""
    kit = enrol(fleet, ["phone-1"])[0]
    trust = load_trust(fleet.operator)
    for holder in (kit, *fleet.parties, fleet.coordinator, fleet.broker):
        certificate = x509.load_pem_x509_certificate((holder / CERTIFICATE_FILE).read_bytes())
        der = certificate.public_bytes(serialization.Encoding.DER)
        assert certificate_fault(der, ca=trust.ca, now=now_ms())[0] == "certificate-invalid"
        authority = x509.load_pem_x509_certificate((holder / CA_FILE).read_bytes())
        certificate.verify_directly_issued_by(authority)


def test_certificates_are_the_fleets_with_a_serial_each(fleet: FleetFolder) -> None:
    kits = enrol(fleet, [f"phone-{number}" for number in range(20)])
    trust = load_trust(fleet.operator)
    serials = set()
    for kit in kits:
        raw = (kit / "certificate.der").read_bytes()
        fault, name, _ = certificate_fault(raw, ca=trust.ca, now=now_ms())
        assert (fault, name) == ("", kit.name)
        serials.add(x509.load_der_x509_certificate(raw).serial_number)
        assert load_identity(kit, trust).name == kit.name
    assert len(serials) == 20 and min(serials) > 0


def test_two_fleets_of_one_name_do_not_know_each_other(fleet: FleetFolder, tmp_path: Path) -> None:
    other = create_fleet(tmp_path / "other", fleet="clinics", malicious_parties=1, broker=URL)
    assert load_trust(other.operator) != load_trust(fleet.operator)
    kit = enrol(other, ["phone-1"])[0]
    with pytest.raises(BlindsumError, match="kit-certificate"):
        load_identity(kit, load_trust(fleet.operator))


def test_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "fleet").mkdir()
    (tmp_path / "fleet" / "thesis.txt").write_text("mine")
    with pytest.raises(BlindsumError, match="folder-not-empty"):
        create_fleet(tmp_path / "fleet", fleet="clinics", malicious_parties=1, broker=URL)
    assert names_in(tmp_path / "fleet") == {"thesis.txt"}


@pytest.mark.parametrize("name", ["", "Clinics", "a b", "a/b", "+", "#", "é", "a" * 65, "a\n"])
def test_unusable_names_are_refused_and_nothing_is_made(fleet: FleetFolder, tmp_path: Path, name: str) -> None:
    with pytest.raises(BlindsumError, match="name-unusable"):
        create_fleet(tmp_path / "new", fleet=name, malicious_parties=1, broker=URL)
    assert not (tmp_path / "new").exists()
    with pytest.raises(BlindsumError, match="name-unusable"):
        enrol(fleet, ["phone-1", name])
    assert not (fleet.root / "devices").exists()


@pytest.mark.parametrize("name", ["coordinator", "party-1", "party-x"])
def test_device_cannot_be_called_what_another_role_is_called(fleet: FleetFolder, name: str) -> None:
    with pytest.raises(BlindsumError, match="name-unusable"):
        enrol(fleet, [name])


@pytest.mark.parametrize("f", [0, -1, 4])
def test_committee_that_is_unsafe_or_too_large_is_refused(tmp_path: Path, f: int) -> None:
    with pytest.raises(BlindsumError, match="parameters-unsafe"):
        create_fleet(tmp_path / "new", fleet="clinics", malicious_parties=f, broker=URL)
    assert not (tmp_path / "new").exists()


def test_name_with_a_kit_or_named_twice_makes_no_kit_at_all(fleet: FleetFolder) -> None:
    kit = enrol(fleet, ["phone-1"])[0]
    key = (kit / "key.pem").read_bytes()
    with pytest.raises(BlindsumError, match="folder-not-empty"):
        enrol(fleet, ["phone-2", "phone-1"])
    with pytest.raises(BlindsumError, match="twice"):
        enrol(fleet, ["phone-3", "phone-3"])
    assert (kit / "key.pem").read_bytes() == key
    assert names_in(fleet.root / "devices") == {"phone-1"}


def test_enrolment_is_bounded(fleet: FleetFolder) -> None:
    with pytest.raises(BlindsumError, match=str(ENROL_MAX)):
        enrol(fleet, ["x"] * (ENROL_MAX + 1))


def test_enrolment_without_the_operators_kit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BlindsumError, match="config-missing"):
        enrol(FleetFolder(tmp_path), ["phone-1"])
    assert not (tmp_path / "devices").exists()


def test_workers_that_come_later_get_a_kit_without_keys_and_a_line_in_the_brokers_list(tmp_path: Path) -> None:
    made = create_fleet(tmp_path / "fleet", fleet="clinics", malicious_parties=1, broker=URL, workers=1)
    before = (made.broker / "mosquitto.acl").read_text()
    kits, rules = enrol_workers(made, [3, 2])
    assert kits == [made.worker(3), made.worker(2)]
    assert (made.broker / "mosquitto.acl").read_text() == before + rules
    assert "user coordinator-1\n" in before and "user coordinator-3\n" in rules
    for kit in (made.worker(1), *kits):
        assert names_in(kit) == {CA_FILE, CERTIFICATE_FILE, KEY_FILE, "worker.toml"}
    certificate = x509.load_pem_x509_certificate((made.worker(3) / CERTIFICATE_FILE).read_bytes())
    assert certificate.subject.rfc4514_string() == "CN=coordinator-3"
    shutil.rmtree(made.worker(2))
    enrol_workers(made, [2])
    assert (made.broker / "mosquitto.acl").read_text() == before + rules, "it is in the list already"


@pytest.mark.parametrize("numbers", [[0], [17], [2, 2], [2, 1]])
def test_workers_number_is_checked_before_any_kit_is_made(tmp_path: Path, numbers: list[int]) -> None:
    made = create_fleet(tmp_path / "fleet", fleet="clinics", malicious_parties=1, broker=URL, workers=1)
    with pytest.raises(BlindsumError, match=r"name-unusable|folder-not-empty"):
        enrol_workers(made, numbers)
    assert not made.worker(2).exists()
