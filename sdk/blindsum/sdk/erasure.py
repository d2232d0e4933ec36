"""Deleting what a device remembers, so that as little as possible of it can be found on the disk."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.machines.device import DeviceMachine
from blindsum.protocol.machines.step import Write
from blindsum.runtime.kit import BrokerSettings
from blindsum.runtime.sqlite import SqliteStore
from blindsum.sdk.ledger import LEDGER_FILE
from blindsum.sdk.model import MODELS_FOLDER

__all__ = ["DATABASE_FILE", "erase_memory", "leave_rounds"]

DATABASE_FILE: Final = "device.db"
KIT_FILES: Final = ("device.toml", "key.pem", "certificate.der", "trust.cbor", "broadcast.key")


def erase_memory(kit: Path, broker: BrokerSettings, open_store: Callable[[], SqliteStore], *, identity: bool) -> None:
    """Delete rounds, models and ledger of a stopped device, nothing of others' in its folder. The numbers of its last rounds stay;
    with `identity` they go too, and the kit with its keys. Raises BlindsumError with a database code, "database-unwritable" where
    something could not be deleted."""
    spent: list[Write] = []
    if not identity and (kit / DATABASE_FILE).exists():
        store = open_store()
        spent = [Write(key, value) for key, value in store.scan("spent/")]
        store.close()
    names = [f"{file}{end}" for file in (DATABASE_FILE, LEDGER_FILE) for end in ("", "-wal", "-shm", "-journal")]
    if identity:
        names += [*KIT_FILES, *filter(None, (broker.ca, broker.certificate, broker.key, broker.password_file))]
    shelves = kit / MODELS_FOLDER
    doomed = [*(kit / name for name in names), *shelves.glob("*/*")]
    for path in doomed:
        _wipe(path)
    left = [path.name for path in doomed if path.exists()]
    for folder in [*shelves.glob("*"), shelves]:
        with suppress(OSError):
            folder.rmdir()
    if spent:
        store = open_store()
        store.commit(spent)
        store.close()
    if left:
        raise BlindsumError("database-unwritable", f"{kit}: {', '.join(left)} could not be deleted")


def leave_rounds(store: SqliteStore, make: Callable[[SqliteStore, frozenset[str]], DeviceMachine]) -> None:
    """Leave all rounds that are under way in a stopped device's store, erase what was to leave for them, and close it."""
    try:
        tasks = frozenset(key.removeprefix("state/") for key in store.keys("state/"))
        store.commit(make(store, tasks).abandon("consent-withdrawn").writes)
        while rows := store.outbox():
            store.sent([row.seq for row in rows])
    finally:
        store.close()


def _wipe(path: Path) -> None:
    """Delete a file, overwritten first where the file system writes in place."""
    with suppress(OSError), path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    with suppress(OSError):
        path.unlink()
