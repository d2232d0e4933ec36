"""Which role a kit is of, for `blindsum doctor`."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec

from blindsum.backend.coordinator import CoordinatorSettings
from blindsum.backend.party import PartySettings
from blindsum.protocol.errors import BlindsumError
from blindsum.runtime.checkup import Patient
from blindsum.runtime.kit import BrokerSettings, read_file
from blindsum.runtime.settings import load_settings
from blindsum.runtime.topics import Principal

__all__ = ["patient"]


def patient(kit: Path) -> Patient:
    """The kit in the folder `kit`. Raises BlindsumError "config-missing" or "config-invalid"."""
    if (kit / "party.toml").exists():
        party = load_settings(kit / "party.toml", PartySettings)
        return Patient(kit, Principal("party", str(party.party)), party.broker, kit / "party.db")
    if (kit / "device.toml").exists():
        return _device(kit)
    coordinator = load_settings(kit / "coordinator.toml", CoordinatorSettings)
    return Patient(kit, Principal("coordinator", "coordinator"), coordinator.broker, kit / "coordinator.db")


def _device(kit: Path) -> Patient:
    """A device's settings belong to the SDK; of them only these two are looked at."""
    path = kit / "device.toml"
    try:
        settings = tomllib.loads(read_file(path).decode())
        broker = msgspec.convert(settings["broker"], BrokerSettings, strict=True)
        return Patient(kit, Principal("device", settings["device"]), broker, kit / "device.db")
    except (ValueError, KeyError, TypeError) as error:
        raise BlindsumError("config-invalid", f"{path}: {error}") from None
