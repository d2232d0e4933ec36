"""A party's new key on the disk: which files change, what an interruption leaves, and who may sign it."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from blindsum.backend.cli import app
from blindsum.backend.doctor import patient
from blindsum.backend.keychange import change_key, give_key
from blindsum.backend.provision import FleetFolder, create_fleet, enrol, revoke
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.keys import public_of
from blindsum.protocol.messages import KEYS_MAX
from blindsum.protocol.partykeys import keys_of, rank
from blindsum.runtime.checkup import examine
from blindsum.runtime.kit import (
    NEXT_KEY_FILE,
    PARTY_KEYS_FILE,
    load_key,
    load_party_keys,
    load_trust,
    save_key,
    settle_key,
)
from blindsum.runtime.sqlite import SqliteStore


@pytest.fixture
def fleet(tmp_path: Path) -> FleetFolder:
    return create_fleet(tmp_path / "fleet", fleet="clinics", malicious_parties=1, broker="mqtt://127.0.0.1:1883")


def current(kit: Path, party: int) -> bytes:
    """The key that the steps in a kit lead to."""
    trust = load_trust(kit)
    return keys_of(trust, party, load_party_keys(kit, trust).get(party, []))[-1]


def own(kit: Path) -> bytes:
    return public_of(load_key(kit / "key.pem"))


def code(act: object, *arguments: object) -> str:
    with pytest.raises(BlindsumError) as caught:
        act(*arguments)  # type: ignore[operator]
    return caught.value.code


def test_party_signs_its_key_over_as_often_as_an_offer_has_room(fleet: FleetFolder) -> None:
    kit = fleet.parties[1]
    seen = {own(kit)}
    for number in range(1, KEYS_MAX):
        assert change_key(kit)[1][:2] == (0, number)
        assert own(kit) == current(kit, 2)
        seen.add(own(kit))
    assert len(seen) == KEYS_MAX
    assert code(change_key, kit) == "party-keys-full"
    assert stat.S_IMODE((kit / "key.pem").stat().st_mode) == 0o600 and not (kit / NEXT_KEY_FILE).exists()
    give_key(fleet, 2)
    assert change_key(kit)[1][:2] == (1, 1)
    assert not any(finding.name == "keys" and not finding.ok for finding in examine(patient(kit)))


def test_operators_word_makes_a_party_that_lost_everything_a_whole_kit(tmp_path: Path) -> None:
    fleet = create_fleet(tmp_path / "tls", fleet="clinics", malicious_parties=1, broker="mqtts://localhost:1")
    enrol(fleet, ["phone"])
    give_key(fleet, 4)
    revoke(fleet, ["phone"])
    before = {path.name: path.read_bytes() for path in fleet.party(2).iterdir()}
    shutil.rmtree(fleet.party(2))
    give_key(fleet, 2)
    assert own(fleet.party(2)) == current(fleet.party(3), 2)
    made = {path.name: path.read_bytes() for path in fleet.party(2).iterdir()}
    assert made.keys() == before.keys()
    assert {name for name in made if made[name] != before[name]} == {
        "key.pem",
        "tls-key.pem",
        "tls-certificate.pem",
        PARTY_KEYS_FILE,
    }
    assert current(fleet.party(2), 4) == own(fleet.party(4))
    assert {finding.name for finding in examine(patient(fleet.party(2))) if not finding.ok} == {"broker"}


def test_operators_word_reaches_every_kit_and_keeps_what_they_knew(fleet: FleetFolder) -> None:
    change_key(fleet.parties[0])
    before = own(fleet.parties[2])
    written = give_key(fleet, 3)
    assert {path.parent for path in written} == {fleet.operator, fleet.coordinator, *fleet.parties}
    assert own(fleet.parties[2]) not in (before,) and all(
        current(kit, 3) == own(fleet.parties[2]) for kit in (fleet.operator, fleet.coordinator, *fleet.parties)
    )
    assert current(fleet.parties[0], 1) == own(fleet.parties[0])
    give_key(fleet, 3)
    trust = load_trust(fleet.operator)
    assert rank(load_party_keys(fleet.coordinator, trust)[3]) == (2, 0)
    assert code(give_key, fleet, 5) == "name-unusable"


def test_interrupted_change_is_finished_or_undone(fleet: FleetFolder) -> None:
    kit, trust = fleet.parties[0], load_trust(fleet.operator)
    before = own(kit)
    save_key(kit / NEXT_KEY_FILE, Ed25519PrivateKey.generate())
    settle_key(kit, trust, 1)
    assert own(kit) == before and not (kit / NEXT_KEY_FILE).exists(), "nothing says that this is the next one"
    old = (kit / "key.pem").read_bytes()
    change_key(kit)
    fresh = (kit / "key.pem").read_bytes()
    (kit / NEXT_KEY_FILE).write_bytes(fresh)
    (kit / "key.pem").write_bytes(old)
    settle_key(kit, trust, 1)
    assert (kit / "key.pem").read_bytes() == fresh and not (kit / NEXT_KEY_FILE).exists()
    (kit / "key.pem").write_bytes(old)
    assert code(change_key, kit) == "kit-incomplete"


def test_key_of_a_running_party_is_left_alone(fleet: FleetFolder) -> None:
    kit = fleet.parties[0]
    running = SqliteStore(kit / "party.db", anchor=kit / "party.anchor")
    try:
        before = own(kit)
        assert code(change_key, kit) == "database-in-use"
        assert own(kit) == before
    finally:
        running.close()


def test_file_of_keys_that_do_not_hold_is_refused(fleet: FleetFolder) -> None:
    kit = fleet.parties[0]
    change_key(kit)
    raw = (kit / PARTY_KEYS_FILE).read_bytes()
    for spoilt in (raw[:-1] + bytes([raw[-1] ^ 1]), b"", b"\x80\x80", b"\x81\x00"):
        (kit / PARTY_KEYS_FILE).write_bytes(spoilt)
        assert code(load_party_keys, kit, load_trust(kit)) == "party-keys-invalid"


def test_command_changes_a_key_by_the_party_or_by_the_operator(fleet: FleetFolder) -> None:
    run = CliRunner()
    shown = run.invoke(app, ["rotate", str(fleet.parties[3]), "--json"])
    assert shown.exit_code == 0 and own(fleet.parties[3]).hex() in shown.stdout
    shown = run.invoke(app, ["rotate", str(fleet.root), "--party", "4", "--json"])
    assert shown.exit_code == 0 and current(fleet.coordinator, 4) == own(fleet.parties[3])
