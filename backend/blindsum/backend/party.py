"""A party as an organisation runs it: from its own kit, with its own database, by outbound MQTT only."""

from __future__ import annotations

import os
from pathlib import Path

from blindsum.backend.notices import Notices
from blindsum.backend.service import Reporter, WebSettings, run_until_stopped
from blindsum.backend.witness import Witness
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.keys import box_seal, public_of
from blindsum.protocol.machines.party import PartyFloor, PartyMachine
from blindsum.protocol.partykeys import keys_of
from blindsum.runtime.audit import AuditLog
from blindsum.runtime.driver import Driver
from blindsum.runtime.kit import (
    BrokerSettings,
    load_broadcast_key,
    load_key,
    load_party_keys,
    load_trust,
    make_link,
    settle_key,
)
from blindsum.runtime.settings import Settings, load_settings
from blindsum.runtime.sqlite import SqliteStore
from blindsum.runtime.system import now_ms, random_bytes
from blindsum.runtime.topics import Principal, Topics

__all__ = ["PartySettings", "run_party"]


class PartySettings(Settings, frozen=True):
    """`party.toml`. `cohort_min`, `corrupt_permille`, `roster` (a task must have one) and `tasks` are this organisation's floor;
    no task list means every task that the operator signed. `anchor`: the file that shows how old the database is, below the kit
    or, where whole kits are backed up, anywhere else."""

    fleet: str
    party: int
    broker: BrokerSettings
    cohort_min: int = 2
    corrupt_permille: int = 0
    roster: bool = False
    tasks: list[str] = []
    anchor: str = "party.anchor"
    web: WebSettings = WebSettings()


def run_party(kit: Path, *, forgotten: bool = False) -> int:
    """Run the party of `kit` until SIGTERM. `forgotten`: its database was lost or is an old copy, so it erases its rounds and sits
    out what may be under way. Raises BlindsumError for a kit or database that cannot be used."""
    settings = load_settings(kit / "party.toml", PartySettings)
    trust = load_trust(kit)
    settle_key(kit, trust, settings.party)
    key = load_key(kit / "key.pem")
    steps = load_party_keys(kit, trust).get(settings.party, [])
    if settings.fleet != trust.fleet or keys_of(trust, settings.party, steps)[-1:] != (public_of(key),):
        raise BlindsumError(
            "kit-incomplete", f"{kit}: key.pem is not that of party {settings.party} in the trust bundle"
        )
    broadcast_key = load_broadcast_key(kit)
    store = SqliteStore(
        kit / "party.db",
        owner=trust.owner(f"party/{settings.party}"),
        anchor=kit / settings.anchor,
        behind=forgotten,
    )
    topics = Topics(trust.fleet, Principal("party", str(settings.party)))
    reporter = Reporter(f"party/{settings.party}", AuditLog(kit / "audit", f"party/{settings.party}"))

    def machine() -> PartyMachine:
        return PartyMachine(
            number=settings.party,
            key=key,
            trust=trust,
            store=store,
            random=random_bytes,
            seal=box_seal,
            floor=PartyFloor(
                cohort_min=settings.cohort_min,
                corrupt_permille=settings.corrupt_permille,
                roster=settings.roster,
                tasks=tuple(settings.tasks),
            ),
            keys=steps,
            threads=os.cpu_count() or 1,
            broadcast_key=broadcast_key,
        )

    if forgotten:  # before anything can arrive
        store.commit(machine().forget(now_ms()).writes)
    link = make_link(kit, settings.broker, topics)
    driver = Driver(
        machine, store, link, topics, on_event=Witness(reporter, kit, trust, store).event, on_refused=reporter.refused
    )
    try:
        return run_until_stopped(driver, reporter, settings.web, Notices(kit, driver, reporter).turn)
    finally:
        store.close()
