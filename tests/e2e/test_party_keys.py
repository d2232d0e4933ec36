"""Real processes: a party signs its key over, another gets one by the operator's word, and rounds go on with both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from typer.testing import CliRunner

from blindsum.backend.cli import app
from blindsum.protocol.envelope import open_envelope
from blindsum.protocol.transcript import read_records

WITHIN_S = 280.0


def steps(transcript: bytes) -> dict[str, list[list[Any]]]:
    """By party, the steps to its key that the round's manifest shows."""
    announcement = open_envelope(read_records(transcript)["announcement"][0]).payload
    offers = map(open_envelope, open_envelope(announcement["manifest"]).payload["offers"])
    return {offer.head.sender: [step[:2] for step in offer.payload["keys"]] for offer in offers}


def test_parties_get_new_keys_by_command_and_take_part_with_them(small_fleet: Callable[..., Any]) -> None:
    fleet = small_fleet(rounds=1000)
    fleet.start()
    wanted = {"party-2": ([str(fleet.folder.parties[1])], [[0, 1]])}
    wanted["party-3"] = ([str(fleet.folder.root), "--party", "3"], [[1, 0]])
    waiting = list(wanted)
    seen: set[str] = set()

    def turn(name: str, event: dict[str, Any]) -> None:
        if name != "coordinator" or event["event"] != "transcript":
            return
        shown = steps(fleet.transcripts[event["round"]].read_bytes())
        seen.update(party for party in wanted if shown.get(party.replace("-", "/")) == wanted[party][1])
        if waiting and len(seen) == len(wanted) - len(waiting):
            party = waiting.pop(0)
            fleet.stack.kill(party)
            done = CliRunner().invoke(app, ["rotate", *wanted[party][0], "--json"])
            assert done.exit_code == 0, done.output
            fleet.stack.restart(party)
        fleet.over = len(seen) == len(wanted)

    fleet.watch(WITHIN_S, turn)
    fleet.judge()
