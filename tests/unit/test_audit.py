"""The audit log: a chain that shows where it was cut or altered, bounded, and without secrets."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blindsum.backend.service import AUDITED, Reporter
from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.runtime import audit
from blindsum.runtime.audit import AuditLog, is_audit, verify_audit
from blindsum.testing.world import World

ROLE = "party/1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten records over two starts."""
    for _ in range(2):
        log = AuditLog(tmp_path / "audit", ROLE)
        for number in range(5):
            log.add(1_000 + number, "voted", {"task": "t", "round": number})
    return tmp_path / "audit"


def lines(folder: Path) -> list[bytes]:
    return [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_bytes().splitlines(keepends=True)]


def put(folder: Path, rows: list[bytes]) -> None:
    (folder / "audit-00000001.jsonl").write_bytes(b"".join(rows))


def found(folder: Path) -> list[tuple[str, str]]:
    report = verify_audit(folder)
    assert {fault.principal for fault in report.faults} <= {ROLE}
    return [(fault.code, fault.detail) for fault in report.faults]


def test_whole_log_is_sound_and_says_how_far_it_goes(folder: Path) -> None:
    report = verify_audit(folder)
    assert report.valid and is_audit(folder)
    assert (report.facts["role"], report.facts["first"], report.facts["last"]) == (ROLE, 1, 10)
    assert report.facts["head"] == AuditLog(folder, ROLE).head
    records = [json.loads(line) for line in lines(folder)]
    assert [record["n"] for record in records] == list(range(1, 11))
    assert records[3]["data"] == {"task": "t", "round": 3}


@pytest.mark.parametrize("place", range(10))
def test_changed_record_is_found_wherever_it_stands(folder: Path, place: int) -> None:
    rows = lines(folder)
    rows[place] = rows[place].replace(b'"round": ', b'"round": 9')
    put(folder, rows)
    ((code, detail),) = found(folder)
    assert code == "audit-altered"
    assert f"record {place + 1} before it" in detail or (place == 9 and "line 10 is not the one" in detail)


@pytest.mark.parametrize("place", range(10))
def test_record_taken_out_is_found_wherever_it_stood(folder: Path, place: int) -> None:
    rows = lines(folder)
    del rows[place]
    put(folder, rows)
    faults = found(folder)
    if place == 0:  # the oldest records go by themselves, and say where the log begins
        assert not faults and verify_audit(folder).facts["first"] == 2
    else:
        assert [code for code, _ in faults] == ["audit-cut"]
        assert f"records {place + 1} to {place + 1} are missing" in faults[0][1]


def test_records_swapped_repeated_put_in_or_made_unreadable_are_found(folder: Path) -> None:
    rows = lines(folder)
    forged = json.dumps({**json.loads(rows[4]), "event": "opened"}).encode() + b"\n"
    for changed in (
        [*rows[:4], rows[5], rows[4], *rows[6:]],
        [*rows[:4], rows[4], *rows[4:]],
        [*rows[:5], forged, *rows[5:]],
        [*rows[:4], b"nonsense\n", *rows[5:]],
        [*rows[:4], b'{"n": "5"}\n', *rows[5:]],
        [*rows[:4], b"[]\n", *rows[5:]],
    ):
        put(folder, changed)
        assert found(folder), changed


def test_log_cut_at_the_end_is_found_also_after_it_went_on(folder: Path) -> None:
    put(folder, lines(folder)[:7])
    assert found(folder) == [("audit-cut", "records 8 to 10 are missing at the end")]
    AuditLog(folder, ROLE).add(0, "started", {})
    ((code, detail),) = found(folder)
    assert code == "audit-cut" and "records 8 to 10 are missing" in detail


def test_log_without_files_or_head_is_found(folder: Path) -> None:
    rows = lines(folder)
    put(folder, [])
    assert [code for code, _ in found_any(folder)] == ["audit-cut"]
    put(folder, rows)
    (folder / "head").unlink()
    assert [code for code, _ in found(folder)] == ["audit-cut"]


def found_any(folder: Path) -> list[tuple[str, str]]:
    return [(fault.code, fault.detail) for fault in verify_audit(folder).faults]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(data=st.data())
def test_any_changed_byte_is_found(folder: Path, data: st.DataObject) -> None:
    whole = b"".join(lines(folder))
    place = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[place] ^= data.draw(st.integers(1, 255))
    put(folder, [bytes(damaged)])
    assert found_any(folder)
    put(folder, [whole])
    assert not found_any(folder)


def test_line_torn_by_a_power_cut_is_taken_off_and_the_log_goes_on(folder: Path) -> None:
    path = folder / "audit-00000001.jsonl"
    path.write_bytes(path.read_bytes() + b'{"n": 11, "prev"')
    AuditLog(folder, ROLE).add(0, "started", {})
    assert verify_audit(folder).valid and verify_audit(folder).facts["last"] == 11


def test_record_that_was_written_and_whose_head_was_not_is_taken(folder: Path) -> None:
    held = (folder / "head").read_bytes()
    AuditLog(folder, ROLE).add(0, "started", {})
    (folder / "head").write_bytes(held)
    assert verify_audit(folder).valid
    AuditLog(folder, ROLE).add(0, "started", {})
    assert verify_audit(folder).valid


def test_files_and_records_are_bounded_and_the_chain_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "FILE_SIZE_MAX", 2_000)
    monkeypatch.setattr(audit, "FILES_MAX", 3)
    log = AuditLog(tmp_path / "audit", ROLE)
    for number in range(60):
        log.add(number, "voted", {"round": number})
    files = sorted((tmp_path / "audit").glob("*.jsonl"))
    assert len(files) == 3 and all(path.stat().st_size <= 2_000 for path in files)
    report = verify_audit(tmp_path / "audit")
    assert report.valid and report.facts["last"] == 60 and report.facts["first"] > 1
    log = AuditLog(tmp_path / "audit", ROLE)
    log.add(0, "voted", {"long": "x" * audit.RECORD_SIZE_MAX})
    assert "left_out" in json.loads(lines(tmp_path / "audit")[-1])["data"]
    files[1].unlink()
    assert [code for code, _ in found(tmp_path / "audit")] == ["audit-cut"]


def test_threads_write_one_chain(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit", ROLE)
    threads = [
        threading.Thread(target=lambda: [log.add(0, "voted", {"round": n}) for n in range(20)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verify_audit(tmp_path / "audit").valid and log.head.startswith("80 ")


def test_log_that_cannot_be_written_stops_no_role_and_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BlindsumError, match="audit-unwritable"):
        AuditLog(tmp_path / "file" / "audit", ROLE)
    reporter = Reporter(ROLE, AuditLog(tmp_path / "audit", ROLE))
    shutil.rmtree(tmp_path / "audit")
    reporter.line("voted", task="t")
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in said] == ["audit-failed", "voted"]


def test_role_writes_down_what_it_answered_for_and_counts_refusals(tmp_path: Path) -> None:
    """All that a party and the coordinator tell in two rounds goes through the reporter as in a process; none of it is secret."""
    world = World(3, devices=4, statistics=2)
    world.run(2)
    secrets = [secret for drawn in world.drawn.values() for secret in drawn] + list(world.truth.values())
    for role in ("party/1", "coordinator"):
        folder = tmp_path / role.replace("/", "-")
        reporter = Reporter(role, AuditLog(folder, role))
        reporter.started()
        for who, event in world.events:
            if who == role:
                reporter.event(event)
        for _ in range(100):
            reporter.refused(Refused("message-malformed"))
        assert verify_audit(folder).valid
        records = [json.loads(line) for line in lines(folder)]
        told = {record["event"] for record in records}
        wanted = {"offered", "voted", "opened", "followed"} if role == "party/1" else {"round-finished"}
        assert wanted | {"started", "refusals"} <= told <= AUDITED | {"refusals"}
        counts = [record["data"]["count"] for record in records if record["event"] == "refusals"]
        assert counts == [1, 2, 4, 8, 16, 32, 64]
        text = b"".join(lines(folder))
        assert not [secret for secret in secrets if secret in text or secret.hex().encode() in text]
    votes = [event.data["decides"] for event in world.happened("voted", "party/1")]
    assert votes == ["manifest", "roster", "set"] * 2
