"""The board: what events mean, and that nothing on it grows without end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blindsum.backend.board import NAMES_MAX, NOTES_MAX, OTHERS, ROUNDS_MAX, TASKS_MAX, Board
from blindsum.backend.service import Reporter
from blindsum.protocol.errors import Refused
from blindsum.runtime.audit import AuditLog

FACTS = {"task": "t", "round": 1}


@pytest.fixture
def board() -> Board:
    return Board("coordinator", 1_000)


def play(board: Board) -> None:
    """One round of three devices, of which one drops out."""
    board.tell(1_000, "phase", {**FACTS, "phase": "offer"})
    board.tell(1_500, "phase", {**FACTS, "phase": "join"})
    for device in "abc":
        board.tell(1_600, "join", {**FACTS, "device": device})
    board.tell(2_000, "phase", {**FACTS, "phase": "upload", "devices": 3})
    for device in "ab":
        board.tell(2_100, "header", {**FACTS, "device": device})
        board.tell(2_200, "upload", {**FACTS, "device": device})
    board.tell(4_000, "phase", {**FACTS, "phase": "done"})
    board.tell(4_000, "round-finished", {**FACTS, "count": 2, "weight": 30, "statistics": [40, 20_000_000]})


def play_on(reporter: Reporter) -> None:
    """The same as a role reports it."""
    for phase, facts in (("offer", {}), ("upload", {"devices": 3}), ("done", {})):
        reporter.line("phase", **FACTS, phase=phase, **facts)
    reporter.line("join", **FACTS, device="a")
    reporter.line("round-finished", **FACTS, count=2, weight=30, statistics=[40, 20_000_000])


def test_round_is_counted_phase_by_phase(board: Board) -> None:
    play(board)
    (task,) = board.snapshot()["tasks"]
    (line,) = task["rounds"]
    assert (task["finished"], task["failed"]) == (1, 0)
    assert (line["joined"], line["enrolled"], line["uploading"], line["uploaded"], line["survivors"]) == (3, 3, 2, 2, 2)
    assert line["seconds"] == {"offer": 0.5, "join": 0.5, "upload": 2.0}
    assert (line["weight"], line["examples"], line["loss"]) == (30, 40, 0.5)
    assert (line["phase"], line["begun"], line["ended"]) == ("done", 1_000, 4_000)


def test_rounds_come_back_from_the_audit_log_after_a_restart(tmp_path: Path) -> None:
    for _ in range(3):
        reporter = Reporter("coordinator", AuditLog(tmp_path / "audit", "coordinator"))
        shown = reporter.board.snapshot()
        if shown["tasks"]:
            break
        play_on(reporter)
    (task,) = shown["tasks"]
    (line,) = task["rounds"]
    assert (task["finished"], line["phase"], line["code"]) == (1, "done", "")
    assert (line["joined"], line["enrolled"], line["uploaded"], line["survivors"]) == (3, 3, 2, 2)
    assert line["loss"] == 0.5
    assert shown["events"] == {}, "counters begin anew, as Prometheus expects"


def test_log_that_somebody_wrote_in_spoils_no_board(board: Board) -> None:
    board.recall(1, "phase", {"task": "t"})
    board.recall(1, "round-finished", {"task": 5, "round": "x", "count": None})
    board.recall(1, "presence", {"who": "party-1", "kind": "party", "online": True})
    assert board.snapshot()["online"] == {}


def test_failed_round_shows_its_code(board: Board) -> None:
    board.tell(1, "phase", {**FACTS, "phase": "offer"})
    board.tell(2, "phase", {**FACTS, "phase": "failed"})
    board.tell(2, "round-failed", {**FACTS, "code": "joins-too-few"})
    (task,) = board.snapshot()["tasks"]
    assert (task["failed"], task["rounds"][0]["phase"], task["rounds"][0]["code"]) == (1, "failed", "joins-too-few")


def test_refusals_and_faults_are_counted_by_code_and_by_culprit(board: Board) -> None:
    board.tell(1, "refused", {"code": "signature-invalid", "culprit": "", "detail": ""})
    board.tell(1, "refused", {"code": "signature-invalid", "culprit": "device/a", "detail": ""})
    board.tell(1, "fault", {**FACTS, "code": "opening-wrong", "culprit": "party/4"})
    shown = board.snapshot()
    assert shown["refusals"] == {"signature-invalid": 2, "opening-wrong": 1}
    assert shown["culprits"] == {"device/a": 1, "party/4": 1}


def test_presence_names_roles_and_only_counts_devices(board: Board) -> None:
    for who, kind in (("coordinator", "coordinator"), ("party-1", "party"), ("d1", "device"), ("d2", "device")):
        board.tell(1, "presence", {"who": who, "kind": kind, "online": True})
    board.tell(2, "presence", {"who": "d2", "kind": "device", "online": False})
    board.tell(2, "presence", {"who": "party-1", "kind": "party", "online": False})
    shown = board.snapshot()
    assert shown["online"] == {"party-1": False} and shown["devices_online"] == 1


def test_link_decides_whether_the_role_is_healthy(board: Board) -> None:
    assert not board.healthy
    board.tell(1, "connected", {})
    assert board.healthy
    board.tell(2, "disconnected", {"code": "broker-unreachable", "detail": "refused"})
    assert not board.healthy and board.snapshot()["link"] == "broker-unreachable: refused"


def test_nothing_on_a_board_grows_without_end(board: Board) -> None:
    for number in range(TASKS_MAX + 10):
        board.tell(1, "phase", {"task": f"t{number}", "round": 1, "phase": "offer"})
    for number in range(ROUNDS_MAX + 10):
        board.tell(1, "phase", {"task": "long", "round": number, "phase": "offer"})
    for number in range(NAMES_MAX + 10):
        board.tell(1, "fault", {"task": "long", "round": 1, "code": "c", "culprit": f"device/{number}"})
    shown = board.snapshot()
    assert len(shown["tasks"]) == TASKS_MAX and shown["tasks"][-1]["name"] == "long"
    assert len(shown["tasks"][-1]["rounds"]) == ROUNDS_MAX
    assert len(shown["culprits"]) == NAMES_MAX + 1 and shown["culprits"][OTHERS] == 10
    assert len(shown["notes"]) == NOTES_MAX


def test_late_event_of_an_older_round_does_not_open_it_again(board: Board) -> None:
    board.tell(1, "phase", {"task": "t", "round": 5, "phase": "offer"})
    board.tell(2, "upload", {"task": "t", "round": 4, "device": "a"})
    (task,) = board.snapshot()["tasks"]
    assert [line["number"] for line in task["rounds"]] == [5] and task["rounds"][0]["uploaded"] == 0


def test_flood_of_refusals_is_counted_whole_and_told_a_few_times(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter("coordinator")
    for _ in range(1000):
        reporter.refused(Refused("message-malformed"))
    reporter.refused(Refused("signature-invalid"))
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["count"] for line in told] == [*(1 << power for power in range(10)), 1]
    assert reporter.board.snapshot()["refusals"] == {"message-malformed": 1000, "signature-invalid": 1}
