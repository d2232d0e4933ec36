"""Enrolling within a limit, taking certificates back, and which lists a role believes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from blindsum.backend import register as register_module
from blindsum.backend.provision import FleetFolder, create_fleet, enrol, revoke
from blindsum.backend.register import REGISTER_FILE, REVOKED_FILE
from blindsum.protocol import revocation
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.machines.journal import Journal
from blindsum.protocol.machines.revoked import Revoked
from blindsum.protocol.revocation import certificate_serial, revocations_issue, revocations_open
from blindsum.runtime.kit import load_trust
from blindsum.testing.fleet import START, make_fleet
from blindsum.testing.store import DictStore

FLEET = make_fleet(1, parties=4, devices=2)
OTHER = make_fleet(2, parties=4, devices=0)


def listed(number: int, *serials: int, key: Ed25519PrivateKey = FLEET.ca, issuer: str = "test") -> bytes:
    return revocations_issue(
        issuer=issuer, issuer_key=key, number=number, revoked=dict.fromkeys(serials, START), now=START
    )


@pytest.fixture
def fleet(tmp_path: Path) -> FleetFolder:
    return create_fleet(tmp_path / "fleet", fleet="clinics", malicious_parties=1, broker="mqtt://broker.example")


def serial_of(kit: Path) -> int:
    return certificate_serial((kit / "certificate.der").read_bytes())


def code(act: object, *arguments: object, **named: object) -> str:
    with pytest.raises(BlindsumError) as caught:
        act(*arguments, **named)  # type: ignore[operator]
    return caught.value.code


# -- lists ------------------------------------------------------------------------------------------------------------


def test_list_says_what_was_put_in_and_any_x509_library_reads_it() -> None:
    opened = revocations_open(listed(3, 7, 9), ca=FLEET.trust.ca)
    assert (opened.number, opened.serials) == (3, {7, 9})
    standard = x509.load_der_x509_crl(listed(3, 7, 9))
    assert [entry.serial_number for entry in standard] == [7, 9]
    assert not revocations_open(listed(1), ca=FLEET.trust.ca).serials


@pytest.mark.parametrize(
    "der",
    [
        b"",
        b"\x30\x00",
        listed(1, 7, key=OTHER.ca),
        listed(1, 7, issuer="another"),
        listed(0, 7),
        listed(1, 7)[:-1] + b"x",
        FLEET.trust.ca,
    ],
)
def test_list_that_is_not_the_fleets_is_refused(der: bytes) -> None:
    assert code(revocations_open, der, ca=FLEET.trust.ca) == "revocations-invalid"


@given(st.data())
def test_damaged_list_is_refused(data: st.DataObject) -> None:
    raw = bytearray(listed(2, 5, 1 << 126))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    assert code(revocations_open, bytes(raw), ca=FLEET.trust.ca) == "revocations-invalid"


def test_size_and_length_of_a_list_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = listed(1, *range(1, 9))
    monkeypatch.setattr(revocation, "REVOKED_MAX", 7)
    assert code(revocations_open, raw, ca=FLEET.trust.ca) == "revocations-invalid"
    monkeypatch.setattr(revocation, "REVOKED_SIZE_MAX", len(raw) - 1)
    assert code(revocations_open, raw, ca=FLEET.trust.ca) == "revocations-invalid"


def test_role_goes_by_the_highest_number_also_after_a_restart() -> None:
    store = DictStore()

    def role() -> tuple[Revoked, Journal]:
        journal = Journal(store)
        return Revoked(FLEET.trust.ca, journal), journal

    revoked, journal = role()
    assert not revoked.current.serials
    assert revoked.take(listed(2, 5))
    store.commit(journal.take().writes)
    for _ in range(2):
        assert not revoked.take(listed(2, 5)), "it has that one"
        for older in (listed(1, 5), listed(2, 5, 6), listed(3, 6), listed(9)):
            assert code(revoked.take, older) == "revocations-stale"
        assert code(revoked.take, listed(3, 5, key=OTHER.ca)) == "revocations-invalid"
        assert revoked.current.serials == {5}
        revoked, journal = role()
    assert revoked.take(listed(5, 5, 6))


# -- the operator -----------------------------------------------------------------------------------------------------


def test_taking_back_writes_one_list_for_all_that_go_by_it(fleet: FleetFolder) -> None:
    kits = enrol(fleet, ["phone-1", "phone-2", "phone-3"])
    written = revoke(fleet, ["phone-2"])
    assert written == [kit / REVOKED_FILE for kit in (fleet.operator, fleet.coordinator, *fleet.parties)]
    assert len({path.read_bytes() for path in written}) == 1
    ca = load_trust(fleet.operator).ca
    first = revocations_open(written[0].read_bytes(), ca=ca)
    assert (first.number, first.serials) == (1, {serial_of(kits[1])})
    revoke(fleet, ["phone-3", "phone-2"])
    second = revocations_open(written[0].read_bytes(), ca=ca)
    assert (second.number, second.serials) == (2, {serial_of(kits[1]), serial_of(kits[2])})


def test_taking_back_again_gives_the_same_list_to_new_kits_and_mends_a_lost_one(fleet: FleetFolder) -> None:
    enrol(fleet, ["phone-1"])
    path = revoke(fleet, ["phone-1"])[0]
    raw = path.read_bytes()
    (fleet.coordinator / REVOKED_FILE).unlink()
    revoke(fleet, ["phone-1"])
    assert (fleet.coordinator / REVOKED_FILE).read_bytes() == raw
    path.unlink()
    revoke(fleet, ["phone-1"])
    opened = revocations_open(path.read_bytes(), ca=load_trust(fleet.operator).ca)
    assert (opened.number, len(opened.serials)) == (1, 1)


def test_device_that_was_never_enrolled_cannot_be_taken_back(fleet: FleetFolder) -> None:
    enrol(fleet, ["phone-1"])
    assert code(revoke, fleet, ["phone-1", "phone-9"]) == "device-unknown"
    assert not (fleet.operator / REVOKED_FILE).exists()


def test_enrolment_stops_at_the_operators_limit_and_revoked_ones_do_not_count(fleet: FleetFolder) -> None:
    settings = fleet.operator / "operator.toml"
    settings.write_text("devices_max = 3\n" + settings.read_text("utf-8"), "utf-8")
    enrol(fleet, ["phone-1", "phone-2"])
    assert code(enrol, fleet, ["phone-3", "phone-4"]) == "enrolment-full"
    assert not fleet.device("phone-3").exists()
    enrol(fleet, ["phone-3"])
    assert code(enrol, fleet, ["phone-4"]) == "enrolment-full"
    revoke(fleet, ["phone-1"])
    enrol(fleet, ["phone-4"])


def test_list_has_room_for_so_many_and_no_more(fleet: FleetFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(register_module, "REVOKED_MAX", 1)
    enrol(fleet, ["phone-1", "phone-2"])
    revoke(fleet, ["phone-1"])
    assert code(revoke, fleet, ["phone-2"]) == "enrolment-full"


def test_register_has_a_line_for_each_certificate_and_is_no_guesswork(fleet: FleetFolder) -> None:
    kits = enrol(fleet, ["phone-1", "phone-2"])
    path = fleet.operator / REGISTER_FILE
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [(line["device"], int(line["serial"], 16)) for line in lines] == [(kit.name, serial_of(kit)) for kit in kits]
    path.write_text(path.read_text("utf-8") + '{"device": "x"}\n', "utf-8")
    assert code(enrol, fleet, ["phone-3"]) == "kit-incomplete"
