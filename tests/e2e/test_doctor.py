"""`blindsum doctor`: what is wrong with a kit is found and named, and examining it changes nothing."""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blindsum.backend.broker import EmbeddedBroker
from blindsum.backend.doctor import patient
from blindsum.backend.provision import FleetFolder, create_fleet, enrol, enrol_workers
from blindsum.backend.worker import open_worker, read_settings
from blindsum.protocol.errors import BlindsumError
from blindsum.runtime.checkup import Finding, examine
from blindsum.runtime.sqlite import SqliteStore


def findings(kit: Path) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(patient(kit))}


def wrong(kit: Path) -> dict[str, str]:
    """Name -> detail of every problem; each has a remedy."""
    bad = {name: finding for name, finding in findings(kit).items() if not finding.ok}
    assert all(finding.remedy for finding in bad.values())
    return {name: finding.detail for name, finding in bad.items()}


@pytest.fixture
def fleet(tmp_path: Path) -> Any:
    with EmbeddedBroker() as broker:
        made = create_fleet(tmp_path / "fleet", fleet="clinics", malicious_parties=1, broker=broker.url)
        enrol(made, ["phone"])
        yield made


def test_kits_that_were_just_made_are_fit(fleet: FleetFolder) -> None:
    for kit in (fleet.parties[0], fleet.device("phone")):
        assert wrong(kit) == {}
    assert wrong(fleet.coordinator) == {"other roles": "away: party-1, party-2, party-3, party-4"}


def test_kits_are_let_in_by_the_broker_that_init_configured(
    tmp_path: Path, free_port: int, production_mosquitto: Callable[[Path], Any]
) -> None:
    made = create_fleet(
        tmp_path / "fleet", fleet="clinics", malicious_parties=1, broker=f"mqtts://localhost:{free_port}"
    )
    enrol(made, ["phone"])
    production_mosquitto(made.broker / "mosquitto.conf")
    for kit in (made.parties[0], made.device("phone")):
        found = findings(kit)
        assert all(finding.ok for finding in found.values()), found
        assert f"lets {'party-1' if kit.name == 'party-1' else 'phone'} in" in found["broker"].detail
        assert "TLS certificate" in found
    stranger = create_fleet(
        tmp_path / "other", fleet="clinics", malicious_parties=1, broker=f"mqtts://localhost:{free_port}"
    )
    assert "broker" in wrong(stranger.parties[0])


def test_access_list_that_lacks_a_worker_or_is_not_asked_is_found(
    tmp_path: Path, free_port: int, production_mosquitto: Callable[[Path], Any], postgres: Any
) -> None:
    url = f"mqtts://localhost:{free_port}"
    made = create_fleet(tmp_path / "fleet", fleet="clinics", malicious_parties=1, broker=url)
    config = made.broker / "mosquitto.conf"
    broker = production_mosquitto(config)
    (kit,), _ = enrol_workers(made, [2])
    settings = (kit / "worker.toml").read_text()
    (kit / "worker.toml").write_text(settings.replace('database = ""', f'database = "{postgres.database()}"'))
    assert wrong(kit) == {"access list": "the broker lets coordinator-2 in, and takes nothing of it"}
    broker.process.send_signal(signal.SIGHUP)
    until = time.monotonic() + 60
    while wrong(kit):
        assert time.monotonic() < until
    config.write_text(re.sub("acl_file .*\n", "", config.read_text()))
    broker.restart()
    assert wrong(kit) == {"access list": "coordinator-2 may write under any name"}
    (kit / "tls-key.pem").unlink()
    names = ", ".join(str(kit / name) for name in ("tls-ca.pem", "tls-certificate.pem", "tls-key.pem"))
    assert wrong(kit)["broker"].startswith(f"tls-files-unusable: {names}: ")


def test_each_fault_of_a_kit_is_named(fleet: FleetFolder) -> None:
    kit = fleet.parties[0]
    shutil.copy(fleet.parties[1] / "key.pem", kit / "key.pem")
    (kit / "key.pem").chmod(0o644)
    (kit / "party.db").write_bytes(b"not a database" * 100)
    (kit / "party.toml").write_text(
        (kit / "party.toml").read_text().replace("mqtt://127.0.0.1:", "mqtt://127.0.0.1:1"[:-1] + "1")
    )
    bad = wrong(kit)
    assert bad["keys"].endswith("key.pem is not that of party-1 in this fleet") or "kit-incomplete" in bad["keys"]
    assert bad["secrets"] == "others may read key.pem"
    assert "not a database" in bad["database"]
    assert set(bad) == {"keys", "secrets", "database", "broker"}


def test_role_that_runs_is_not_thrown_out_by_its_doctor(fleet: FleetFolder) -> None:
    store = SqliteStore(fleet.parties[0] / "party.db")
    found = findings(fleet.parties[0])
    store.close()
    assert found["database"].detail == "in use: the role is running"
    assert found["broker"].ok and "nobody logs in in its place" in found["broker"].detail


def test_examining_a_kit_changes_nothing_in_it(fleet: FleetFolder) -> None:
    kit = fleet.parties[0]
    SqliteStore(kit / "party.db").close()
    before = {path.name: path.read_bytes() for path in kit.iterdir()}
    findings(kit)
    assert {path.name: path.read_bytes() for path in kit.iterdir()} == before


def test_worker_is_asked_for_its_place_at_the_broker_and_in_the_database(tmp_path: Path, postgres: Any) -> None:
    with EmbeddedBroker() as broker:
        create_fleet(tmp_path / "fleet", fleet="clinics", malicious_parties=1, broker=broker.url, workers=1)
        kit = tmp_path / "fleet" / "worker-1"
        with pytest.raises(BlindsumError, match="a worker needs the coordinator's database"):
            patient(kit)
        settings = (kit / "worker.toml").read_text()
        (kit / "worker.toml").write_text(settings.replace('database = ""', f'database = "{postgres.database()}"'))
        assert wrong(kit) == {}
        worker = open_worker(read_settings(kit))
        found = findings(kit)
        worker.close()
        assert found["database"].detail == "in use: the role is running" and found["broker"].ok


def test_folder_that_is_no_kit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BlindsumError, match="config-missing"):
        patient(tmp_path)
