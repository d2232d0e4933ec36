"""Which role a kit is of, for `blindsum doctor`."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from blindsum.backend.coordinator import CoordinatorSettings, open_store
from blindsum.backend.party import PartySettings
from blindsum.protocol.errors import BlindsumError
from blindsum.runtime.checkup import Finding, Patient, examine_file, problem
from blindsum.runtime.kit import BrokerSettings, read_file
from blindsum.runtime.settings import load_settings
from blindsum.runtime.topics import Principal

__all__ = ["patient"]


def patient(kit: Path) -> Patient:
    """The kit in the folder `kit`. Raises BlindsumError "config-missing" or "config-invalid"."""
    if (kit / "party.toml").exists():
        party = load_settings(kit / "party.toml", PartySettings)
        principal = Principal("party", str(party.party))
        return Patient(kit, party.fleet, principal, party.broker, partial(examine_file, kit / "party.db"))
    if (kit / "device.toml").exists():
        return _device(kit)
    if (kit / "worker.toml").exists():
        return _worker(kit)
    coordinator = load_settings(kit / "coordinator.toml", CoordinatorSettings)
    database = (
        partial(_server, partial(open_store, kit, coordinator))
        if coordinator.database
        else partial(examine_file, kit / "coordinator.db")
    )
    return Patient(kit, coordinator.fleet, Principal("coordinator", "coordinator"), coordinator.broker, database)


def _server(take: Callable[[], Any]) -> tuple[bool, Finding]:
    """`examine_file` for a role on PostgreSQL, which takes its part of the database by `take`."""
    try:
        take().close()
    except BlindsumError as error:
        if error.code == "database-in-use":
            return True, Finding("database", True, "in use: the role is running")
        return False, problem("database", error)
    return False, Finding("database", True, "PostgreSQL, sound")


def _worker(kit: Path) -> Patient:
    from blindsum.backend.worker import open_worker, read_settings  # whoever has no worker needs no PostgreSQL

    settings = read_settings(kit)
    principal = Principal("worker", str(settings.worker))
    return Patient(kit, settings.fleet, principal, settings.broker, partial(_server, partial(open_worker, settings)))


def _device(kit: Path) -> Patient:
    """A device's settings belong to the SDK; of them only these two are looked at."""
    path = kit / "device.toml"
    try:
        settings = tomllib.loads(read_file(path).decode())
        broker = msgspec.convert(settings["broker"], BrokerSettings, strict=True)
        principal = Principal("device", settings["device"])
        return Patient(kit, settings["fleet"], principal, broker, partial(examine_file, kit / "device.db"))
    except (ValueError, KeyError, TypeError) as error:
        raise BlindsumError("config-invalid", f"{path}: {error}") from None
