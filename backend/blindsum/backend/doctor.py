"""Which role a kit is of, for `blindsum doctor`."""

from __future__ import annotations

import tomllib
from functools import partial
from pathlib import Path

import msgspec

from blindsum.backend.coordinator import CoordinatorSettings, open_store
from blindsum.backend.party import PartySettings
from blindsum.protocol.errors import CATALOGUE, BlindsumError
from blindsum.runtime.checkup import Finding, Patient, examine_file
from blindsum.runtime.kit import BrokerSettings, read_file
from blindsum.runtime.settings import load_settings
from blindsum.runtime.topics import Principal

__all__ = ["patient"]


def patient(kit: Path) -> Patient:
    """The kit in the folder `kit`. Raises BlindsumError "config-missing" or "config-invalid"."""
    if (kit / "party.toml").exists():
        party = load_settings(kit / "party.toml", PartySettings)
        return Patient(kit, Principal("party", str(party.party)), party.broker, partial(examine_file, kit / "party.db"))
    if (kit / "device.toml").exists():
        return _device(kit)
    coordinator = load_settings(kit / "coordinator.toml", CoordinatorSettings)
    database = (
        partial(_server, kit, coordinator) if coordinator.database else partial(examine_file, kit / "coordinator.db")
    )
    return Patient(kit, Principal("coordinator", "coordinator"), coordinator.broker, database)


def _server(kit: Path, settings: CoordinatorSettings) -> tuple[bool, Finding]:
    """`examine_file` for a coordinator's PostgreSQL."""
    try:
        open_store(kit, settings).close()
    except BlindsumError as error:
        if error.code == "database-in-use":
            return True, Finding("database", True, "in use: the role is running")
        return False, Finding("database", False, str(error), CATALOGUE[error.code].remedy)
    return False, Finding("database", True, "PostgreSQL, sound")


def _device(kit: Path) -> Patient:
    """A device's settings belong to the SDK; of them only these two are looked at."""
    path = kit / "device.toml"
    try:
        settings = tomllib.loads(read_file(path).decode())
        broker = msgspec.convert(settings["broker"], BrokerSettings, strict=True)
        return Patient(kit, Principal("device", settings["device"]), broker, partial(examine_file, kit / "device.db"))
    except (ValueError, KeyError, TypeError) as error:
        raise BlindsumError("config-invalid", f"{path}: {error}") from None
