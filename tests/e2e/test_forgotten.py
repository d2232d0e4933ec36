"""A party's process and an old copy of its database, on real files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from blindsum.backend.party import run_party
from blindsum.backend.provision import create_fleet
from blindsum.backend.service import END_WITH_STDIN
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.machines.step import Message, Write
from blindsum.runtime.sqlite import SqliteStore


def party(kit: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the command; it ends by itself once it runs, since nobody holds its stdin."""
    command = [sys.executable, "-m", "blindsum.backend.cli", "party", str(kit), *options]
    environment = os.environ | {END_WITH_STDIN: "1"}
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("apart", [False, True])
def test_party_process_refuses_an_old_copy_until_it_is_told_that_it_forgot(tmp_path: Path, apart: bool) -> None:
    """With the anchor elsewhere, also where the whole kit is brought back."""
    kit = create_fleet(tmp_path / "fleet", fleet="f", malicious_parties=1, broker="mqtt://127.0.0.1:9").parties[0]
    anchor = tmp_path / "elsewhere.anchor" if apart else kit / "party.anchor"
    if apart:
        settings = kit / "party.toml"
        settings.write_text(
            settings.read_text("utf-8").replace("cohort_min", f'anchor = "{anchor}"\ncohort_min'), "utf-8"
        )
    assert party(kit).returncode == 0
    shutil.copytree(kit, tmp_path / "copy")
    store = SqliteStore(kit / "party.db", anchor=anchor)
    store.commit([Write("last/t", b"\x01")], [Message("vote", "coordinator", b"")])
    store.close()
    assert party(kit).returncode == 0
    if apart:
        shutil.rmtree(kit)
        shutil.copytree(tmp_path / "copy", kit)
    else:
        shutil.copy(tmp_path / "copy" / "party.db", kit / "party.db")
    with pytest.raises(BlindsumError) as caught:
        run_party(kit)
    assert caught.value.code == "database-rolled-back"
    refused = party(kit)
    assert refused.returncode == 2 and "database-rolled-back" in refused.stderr and "--forgotten" in refused.stderr
    assert party(kit, "--forgotten").returncode == 0
    assert party(kit).returncode == 0
    store = SqliteStore(kit / "party.db", anchor=anchor)
    assert store.get("memory/lost"), "it sits out"
    store.close()
    assert all(isinstance(json.loads(line), dict) for line in refused.stdout.splitlines())
