"""A party's signing key is changed: by the party, whose old key signs the new one, or by the operator, where the old one is lost or
was seen by others (SPEC.md section 4.4)."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blindsum.backend.party import PartySettings
from blindsum.backend.provision import FleetFolder, outfit_party
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.keys import public_of
from blindsum.protocol.machines.keybook import write_key_file
from blindsum.protocol.messages import KEYS_MAX, KeyStep
from blindsum.protocol.partykeys import keys_of, next_step, operator_step, rank
from blindsum.runtime.kit import (
    NEXT_KEY_FILE,
    PARTY_KEYS_FILE,
    load_key,
    load_party_keys,
    load_trust,
    save_key,
    settle_key,
    write_whole,
)
from blindsum.runtime.settings import load_settings
from blindsum.runtime.sqlite import SqliteStore

__all__ = ["change_key", "give_key"]


def change_key(kit: Path) -> tuple[int, KeyStep]:
    """Make the party of `kit` a new key that its old one signs; the old one is overwritten. The party must not be running. Returns
    its number and the step. Raises BlindsumError "party-keys-full" where only the operator can give it another one."""
    settings, trust = load_settings(kit / "party.toml", PartySettings), load_trust(kit)
    if (kit / "party.db").exists():
        SqliteStore(kit / "party.db", anchor=kit / settings.anchor).close()  # refused while the party runs
    settle_key(kit, trust, settings.party)
    known, old = load_party_keys(kit, trust), load_key(kit / "key.pem")
    steps = known.get(settings.party, [])
    if keys_of(trust, settings.party, steps)[-1:] != (public_of(old),):
        raise BlindsumError("kit-incomplete", f"{kit}: key.pem is not that of party {settings.party}")
    if len(steps) >= KEYS_MAX or rank(steps)[1] >= KEYS_MAX - 1:
        raise BlindsumError("party-keys-full", f"party {settings.party} has signed its key over {rank(steps)[1]} times")
    key = Ed25519PrivateKey.generate()
    step = next_step(old, trust, settings.party, steps, public_of(key))
    save_key(kit / NEXT_KEY_FILE, key)
    _sync(kit / NEXT_KEY_FILE)
    write_whole(kit / PARTY_KEYS_FILE, write_key_file(known | {settings.party: [*steps, step]}))
    settle_key(kit, trust, settings.party)
    return settings.party, step


def give_key(folder: FleetFolder, party: int) -> list[Path]:
    """Make party number `party` a new key by the operator's word: the key and what proves it in its kit, the proof in every kit of
    `folder` that goes by it. Where there is no such kit, a whole one is made. Returns the files. Raises BlindsumError
    "name-unusable" for a number that no party has."""
    trust, operator = load_trust(folder.operator), load_key(folder.operator / "operator.pem")
    if trust.pinned(party) is None:
        raise BlindsumError("name-unusable", f"there is no party {party}")
    epoch = 1 + rank(load_party_keys(folder.operator, trust).get(party, []))[0]
    key, own = Ed25519PrivateKey.generate(), folder.party(party)
    if not own.exists():
        outfit_party(folder, party)
    steps = [operator_step(operator, trust, party, epoch, public_of(key))]
    kits = [
        folder.operator,
        *(kit for kit in (folder.coordinator, *folder.parties) if kit.is_dir() and kit != own),
        own,
    ]
    save_key(own / NEXT_KEY_FILE, key)
    _sync(own / NEXT_KEY_FILE)
    for kit in kits:
        known = load_party_keys(kit, trust)
        write_whole(kit / PARTY_KEYS_FILE, write_key_file(known | {party: steps}))
    settle_key(own, trust, party)
    return [kit / PARTY_KEYS_FILE for kit in kits] + [own / "key.pem"]


def _sync(path: Path) -> None:
    """On the disk before anything names it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
