"""A kit: what is missing, damaged or does not belong together is named before anything connects."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blindsum.backend.provision import FleetFolder, create_fleet, enrol
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.keys import certificate_issue, public_of
from blindsum.runtime.kit import (
    BrokerSettings,
    load_identity,
    load_key,
    load_trust,
    make_link,
    read_file,
    save_key,
    write_private,
)
from blindsum.runtime.system import now_ms
from blindsum.runtime.topics import Principal, Topics
from blindsum.sdk import Device

URL = "mqtt://127.0.0.1:1883"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> FleetFolder:
    return create_fleet(tmp_path_factory.mktemp("kits") / "fleet", fleet="clinics", malicious_parties=1, broker=URL)


@pytest.fixture
def kit(fleet: FleetFolder, request: pytest.FixtureRequest) -> Path:
    names = sorted(path.name for path in (fleet.root / "devices").glob("*"))
    return enrol(fleet, [f"d-{len(names)}"])[0]


def refused(act: Callable[[], object], code: str) -> str:
    with pytest.raises(BlindsumError) as caught:
        act()
    assert caught.value.code == code, caught.value
    return caught.value.detail


def test_key_survives_the_file_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    path = tmp_path / "deep" / "key.pem"
    save_key(path, key)
    assert public_of(load_key(path)) == public_of(key)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_private_file_is_never_readable_by_others_even_for_a_moment(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    write_private(path, b"first and longer")
    write_private(path, b"second")
    assert path.read_bytes() == b"second"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_key_of_another_kind_or_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    other = generate_private_key(SECP256R1())
    formats = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(other.private_bytes(*formats, serialization.NoEncryption()))
    assert "not an Ed25519 key" in refused(lambda: load_key(path), "kit-incomplete")
    path.write_bytes(
        Ed25519PrivateKey.generate().private_bytes(*formats, serialization.BestAvailableEncryption(b"secret"))
    )
    refused(lambda: load_key(path), "kit-incomplete")
    for damaged in (b"", b"-----BEGIN PRIVATE KEY-----\n", bytes(100)):
        path.write_bytes(damaged)
        assert str(path) in refused(lambda: load_key(path), "kit-incomplete")


def test_missing_file_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "trust.cbor") in refused(lambda: load_trust(tmp_path), "kit-incomplete")
    refused(lambda: read_file(tmp_path), "kit-incomplete")  # a folder where a file belongs


def test_damaged_trust_bundle_is_refused(kit: Path) -> None:
    whole = (kit / "trust.cbor").read_bytes()
    assert load_trust(kit).fleet == "clinics"
    for damaged in (whole[:-1], whole + b"\x00", b"", b"\xa0", whole.replace(b"clinics", b"CLINICS")):
        (kit / "trust.cbor").write_bytes(damaged)
        refused(lambda: load_trust(kit), "kit-incomplete")


def test_identity_is_the_one_in_the_certificate(kit: Path) -> None:
    identity = load_identity(kit, load_trust(kit))
    assert identity.name == kit.name
    assert identity.certificate == (kit / "certificate.der").read_bytes()
    assert Device.open(kit).name == kit.name


def test_certificate_of_another_key_is_refused(kit: Path) -> None:
    save_key(kit / "key.pem", Ed25519PrivateKey.generate())
    assert "do not belong together" in refused(lambda: load_identity(kit, load_trust(kit)), "kit-incomplete")


@pytest.mark.parametrize("how", ["another fleet's", "damaged", "the authority's own"])
def test_certificate_that_does_not_hold_is_refused(fleet: FleetFolder, kit: Path, how: str) -> None:
    trust, key = load_trust(kit), load_key(kit / "key.pem")
    ca = Ed25519PrivateKey.generate() if how == "another fleet's" else load_key(fleet.operator / "ca.pem")
    certificate = certificate_issue(
        name=kit.name, public=public_of(key), issuer="clinics", issuer_key=ca, serial=7, now=now_ms(), days=365
    )
    if how == "damaged":
        certificate = certificate[:-1] + bytes([certificate[-1] ^ 1])
    if how == "the authority's own":
        certificate = trust.ca
    (kit / "certificate.der").write_bytes(certificate)
    assert "certificate.der" in refused(lambda: load_identity(kit, trust), "kit-certificate")


def test_kit_of_another_device_or_fleet_does_not_open(fleet: FleetFolder, kit: Path, tmp_path: Path) -> None:
    settings = (kit / "device.toml").read_text("utf-8")
    for wrong in (settings.replace(kit.name, "somebody"), settings.replace("clinics", "banks")):
        (kit / "device.toml").write_text(wrong, "utf-8")
        refused(lambda: Device.open(kit), "kit-incomplete")
    (kit / "device.toml").write_text(settings, "utf-8")
    other = create_fleet(tmp_path / "other", fleet="clinics", malicious_parties=1, broker=URL)
    (kit / "trust.cbor").write_bytes((other.operator / "trust.cbor").read_bytes())
    refused(lambda: Device.open(kit), "kit-certificate")


@pytest.mark.parametrize("size", [0, 31, 33])
def test_broadcast_key_of_another_length_is_refused(kit: Path, size: int) -> None:
    (kit / "broadcast.key").write_bytes(bytes(size))
    refused(lambda: Device.open(kit), "kit-incomplete")


def test_link_needs_the_files_that_the_settings_name(kit: Path) -> None:
    topics = Topics("clinics", Principal("device", kit.name))
    unusable = BrokerSettings(url="mqtts://broker.example", ca="ca.pem")
    refused(lambda: make_link(kit, unusable, topics), "tls-files-unusable")
    no_password = BrokerSettings(url=URL, user="me", password_file="password")
    refused(lambda: make_link(kit, no_password, topics), "kit-incomplete")
    refused(lambda: make_link(kit, BrokerSettings(url="nonsense"), topics), "broker-url-invalid")


def test_password_stays_out_of_every_repr(kit: Path) -> None:
    write_private(kit / "password", b"hunter2\n")
    settings = BrokerSettings(url=URL, user="me", password_file="password")
    link = make_link(kit, settings, Topics("clinics", Principal("device", kit.name)))
    assert "hunter2" not in repr(link) + repr(vars(link)) + repr(settings)
    assert "hunter2" in repr(vars(link)["_credentials"].password)


def test_device_identity_does_not_show_its_key(kit: Path) -> None:
    assert "key" not in repr(load_identity(kit, load_trust(kit))).replace(kit.name, "")
