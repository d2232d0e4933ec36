"""Transcripts and who is named in them: SPEC.md section 10."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blindsum.protocol import envelope, keys, roster, view
from blindsum.protocol.codec import DecodeError, convert, decode, encode
from blindsum.protocol.envelope import open_envelope, seal_envelope
from blindsum.protocol.messages import Certificate, Header, Offer, Opening, OpeningContent, Payload, Result, chunks_of
from blindsum.protocol.params import Committee
from blindsum.protocol.transcript import MAGIC, Fault, read_records, verify, write_records
from blindsum.protocol.trust import Trust
from blindsum.testing.behaviours import Behaviour, WrongShares, WrongSums
from blindsum.testing.world import World

Records = list[tuple[str, bytes]]


def play(behaviours: dict[str, Behaviour] | None = None, **settings_: object) -> tuple[World, Records]:
    """A finished round and its records."""
    given_: dict[str, object] = {"devices": 3, "length": 4, "corrupt_permille": 0, "checkers": (), **settings_}
    world = World(7, behaviours=behaviours, **given_)  # type: ignore[arg-type]
    world.run(1)
    assert world.phase == "done", world.failure
    return world, list(world.coordinator.records("sum"))


def together(records: Records) -> bytes:
    return b"".join(write_records(records))


def faults(world: World, records: Records) -> list[tuple[str, str]]:
    return [(fault.principal, fault.code) for fault in verify(together(records), trust=world.fleet.trust).faults]


def changed(records: Records, name: str, data: bytes, place: int = 0) -> Records:
    """`records` with one of them replaced."""
    at = [index for index, (other, _) in enumerate(records) if other == name][place]
    return [*records[:at], (name, data), *records[at + 1 :]]


def first(records: Records, name: str) -> bytes:
    return next(data for other, data in records if other == name)


def resigned(world: World, raw: bytes, payload: Payload) -> bytes:
    """The message with another body, signed by its sender."""
    head = open_envelope(raw).head
    return seal_envelope(world.fleet.key_of(head.sender), head, payload)


def altered(payload: Payload, **changes: object) -> Payload:
    fields = {name: getattr(payload, name) for name in payload.__struct_fields__}
    return type(payload)(**{**fields, **changes})


@pytest.fixture(scope="module")
def played() -> tuple[World, Records]:
    return play()


@pytest.fixture(scope="module")
def smallest() -> tuple[World, Records]:
    """A round of two devices and three parties."""
    return play(devices=2, length=1, statistics=0, committee=Committee.custom(3, 2, 3, 1))


# -- true ones --------------------------------------------------------------------------------------------------------


def test_transcript_of_a_true_round_is_valid(played: tuple[World, Records]) -> None:
    world, records = played
    for trust in (world.fleet.trust, None):
        report = verify(together(records), trust=trust)
        assert report.valid and report.faults == []
    assert report.facts["task"] == "sum" and report.facts["round"] == 1
    assert (report.facts["devices"], report.facts["survivors"]) == (3, 3)
    assert report.facts["parties"] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "settings_",
    [
        {"devices": 8, "dropped_permille": 300, "suite": "chacha20"},
        {"devices": 4, "committee": Committee.for_f(2)},
        {"rotate": True, "length": 33, "width": 32, "statistics": 0},
    ],
)
def test_transcripts_of_other_rounds_are_valid(settings_: dict[str, object]) -> None:
    world, records = play(**settings_)
    assert faults(world, records) == []


def test_transcript_of_a_round_with_dropouts_is_valid() -> None:
    world = World(7, devices=6, dropped_permille=500, checkers=())
    world.start()
    world.until("upload")
    world.stop("device/d-0001")
    world.finish()
    assert world.phase == "done", world.failure
    report = verify(together(list(world.coordinator.records("sum"))), trust=world.fleet.trust)
    assert report.valid and report.facts["survivors"] == 5


def test_transcript_is_the_magic_and_one_list_a_record(played: tuple[World, Records]) -> None:
    _, records = played
    data = together(records)
    assert data == MAGIC + b"".join(encode([name, content]) for name, content in records)
    read = read_records(data)
    assert [(name, content) for name, contents in read.items() for content in contents] == sorted(
        records, key=lambda record: list(read).index(record[0])
    )


# -- altered ones -----------------------------------------------------------------------------------------------------


def interesting(data: bytes, records: Records) -> Iterator[int]:
    """Every byte of a transcript, but of the opaque strings in offers and headers (box keys and boxes) one in 97."""
    opaque = [Trust.decode(first(records, "trust")).coordinator_box, *_box_keys(records), *_boxes(records)]
    skipped: set[int] = set()
    for string in opaque:
        at = data.index(string)
        skipped.update(place for place in range(at, at + len(string)) if (place - at) % 97)
    return (at for at in range(len(data)) if at not in skipped)


def _box_keys(records: Records) -> Iterator[bytes]:
    announcement = open_envelope(first(records, "announcement")).payload
    for raw in open_envelope(announcement["manifest"]).payload["offers"]:
        yield convert(open_envelope(raw).payload, Offer).box_key


def _boxes(records: Records) -> Iterator[bytes]:
    for name, raw in records:
        if name == "header":
            yield from convert(open_envelope(raw).payload, Header).boxes


def test_every_altered_byte_is_noticed(smallest: tuple[World, Records], monkeypatch: pytest.MonkeyPatch) -> None:
    """What OpenSSL said of unaltered signatures and certificates is remembered: a third of the time."""
    monkeypatch.setattr(envelope, "sign_verify", lru_cache(256)(keys.sign_verify))
    monkeypatch.setattr(roster, "certificate_fault", lru_cache(16)(keys.certificate_fault))
    monkeypatch.setattr(roster, "key_usable", lru_cache(16)(keys.key_usable))
    monkeypatch.setattr(view, "box_usable", lru_cache(16)(keys.box_usable))
    world, records = smallest
    data = together(records)
    assert verify(data, trust=world.fleet.trust).valid
    count = 0
    for at in interesting(data, records):
        spoilt = data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]
        assert not verify(spoilt, trust=world.fleet.trust).valid, f"byte {at} of {len(data)}"
        count += 1
    assert count > 8_000


@pytest.mark.parametrize("bit", range(8))
def test_every_bit_around_signatures_is_noticed(bit: int, smallest: tuple[World, Records]) -> None:
    """Tag, empty unprotected header and the heads of byte strings: what a lax reader would let pass."""
    world, records = smallest
    for place, (name, raw) in enumerate(records):
        if raw[:1] != b"\xd2":
            continue
        for at in (*range(4), len(raw) - 66, len(raw) - 65, 4 + raw[3]):
            spoilt = raw[:at] + bytes([raw[at] ^ (1 << bit)]) + raw[at + 1 :]
            altered_ = [*records[:place], (name, spoilt), *records[place + 1 :]]
            assert faults(world, altered_), f"{name}, byte {at}"


def test_transcript_that_is_cut_off_or_longer_is_malformed(smallest: tuple[World, Records]) -> None:
    world, records = smallest
    data = together(records)
    for size in range(0, len(data), 211):
        assert not verify(data[:size], trust=world.fleet.trust).valid
    for tail in (b"\0", data[len(MAGIC) :], encode(["note", b""]), encode([["sum"], b""]), encode(["sum", "text"])):
        assert [f.code for f in verify(data + tail, trust=world.fleet.trust).faults] == ["transcript-malformed"]


def test_record_that_is_missing_or_there_twice_is_noticed(played: tuple[World, Records]) -> None:
    world, records = played
    for place in range(len(records)):
        if records[place][0] != "check":  # nothing shows a complaint that is left out
            assert faults(world, [*records[:place], *records[place + 1 :]]), records[place][0]
        assert faults(world, [*records[: place + 1], *records[place:]]), records[place][0]


def test_order_of_different_records_does_not_matter_but_that_of_devices_does(played: tuple[World, Records]) -> None:
    world, records = played
    by_name = sorted(records, key=lambda record: record[0])
    assert faults(world, by_name) == []
    headers = [place for place, (name, _) in enumerate(by_name) if name == "header"]
    by_name[headers[0]], by_name[headers[1]] = by_name[headers[1]], by_name[headers[0]]
    assert faults(world, by_name) == [("coordinator", "signature-invalid")]


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200))
def test_nothing_in_a_file_makes_the_verifier_raise(smallest: tuple[World, Records], junk: bytes) -> None:
    _, records = smallest
    assert not verify(junk).valid and not verify(MAGIC + junk).valid
    for name in dict(records):
        if junk != first(records, name):
            assert not verify(together(changed(records, name, junk))).valid, name


@given(st.binary(max_size=100))
def test_reader_raises_decode_errors_only(junk: bytes) -> None:
    for data in (junk, MAGIC + junk, MAGIC + b"\x82\x63sum" + junk):
        try:
            read_records(data)
        except DecodeError:
            continue
        raise AssertionError("a transcript has more than one record")


# -- who lied ---------------------------------------------------------------------------------------------------------


def test_party_that_opens_a_wrong_sum_is_named() -> None:
    world, records = play({"party/3": WrongSums()})
    named = faults(world, records)
    assert named and {principal for principal, _ in named} == {"party/3"}
    assert ("party/3", "opening-differs") in named


def test_party_that_gives_wrong_shares_of_dropped_edges_is_named() -> None:
    world = World(
        7, devices=6, corrupt_permille=0, dropped_permille=500, behaviours={"party/2": WrongShares()}, checkers=()
    )
    world.start()
    world.until("upload")
    world.stop("device/d-0001")
    world.finish()
    assert world.phase == "done", world.failure
    assert faults(world, list(world.coordinator.records("sum"))) == [("party/2", "edge-share-differs")]


def test_party_whose_signed_hash_is_of_another_sum_is_named(played: tuple[World, Records]) -> None:
    """The coordinator cannot lay it at the party: only its signature makes the opening count."""
    world, records = played
    place = 1
    raw = [data for name, data in records if name == "opening"][place]
    plain = [data for name, data in records if name == "content"][place]
    content = convert(decode(plain), OpeningContent)
    sent = {subset for subset, _ in content.vectors}
    hashes = [(s, digest if s in sent else hashlib.sha256(digest).digest()) for s, digest in content.hashes]
    false = encode(altered(content, hashes=hashes))
    opening = altered(convert(open_envelope(raw).payload, Opening), plain=hashlib.sha256(false).digest())
    lie = changed(changed(records, "opening", resigned(world, raw, opening), place), "content", false, place)
    party = open_envelope(raw).head.sender
    assert faults(world, changed(records, "content", false, place)) == [("coordinator", "opening-altered")]
    assert (party, "opening-differs") in faults(world, lie)


def test_coordinator_that_alters_an_upload_is_named(played: tuple[World, Records]) -> None:
    world, records = played
    body = first(records, "body")
    spoilt = bytes([body[0] ^ 1]) + body[1:]
    assert faults(world, changed(records, "body", spoilt)) == [("coordinator", "upload-altered")]
    raw = first(records, "header")
    header = convert(open_envelope(raw).payload, Header)
    forged = altered(header, body=chunks_of(spoilt, header.body.chunk_size)[0])
    lie = changed(changed(records, "body", spoilt), "header", resigned(world, raw, forged))
    assert faults(world, lie) == [("coordinator", "signature-invalid")]  # another digest than parties voted for


def test_coordinator_that_publishes_another_sum_or_model_is_named(played: tuple[World, Records]) -> None:
    world, records = played
    result, total, following = (first(records, name) for name in ("result", "sum", "next"))
    payload = convert(open_envelope(result).payload, Result)
    false = bytes([total[0] ^ 1]) + total[1:]
    size = payload.sum.chunk_size
    signed = resigned(world, result, altered(payload, sum=chunks_of(false, size)[0]))
    named = faults(world, changed(changed(records, "sum", false), "result", signed))
    assert ("coordinator", "sum-differs") in named and {principal for principal, _ in named} == {"coordinator"}
    model = bytes(len(following))
    signed = resigned(world, result, altered(payload, model=chunks_of(model, size)[0]))
    lie = changed(changed(records, "next", model), "result", signed)
    assert faults(world, lie) == [("coordinator", "model-differs")]


@pytest.mark.parametrize("field", ["manifest", "roster", "proposal", "previous"])
def test_result_that_names_another_round_is_noticed(field: str, played: tuple[World, Records]) -> None:
    world, records = played
    raw = first(records, "result")
    payload = altered(convert(open_envelope(raw).payload, Result), **{field: b"\x01" * 32})
    assert faults(world, changed(records, "result", resigned(world, raw, payload))) == [
        ("coordinator", "result-differs")
    ]


def test_set_without_a_quorum_is_noticed(played: tuple[World, Records]) -> None:
    world, records = played
    raw = first(records, "certificate")
    certificate = convert(open_envelope(raw).payload, Certificate)
    for votes in (certificate.votes[:2], [certificate.votes[0]] * 3, [*certificate.votes[:3], certificate.proposal]):
        signed = resigned(world, raw, altered(certificate, votes=votes))
        assert faults(world, changed(records, "certificate", signed)) == [("coordinator", "votes-too-few")]


def test_transcript_of_another_fleet_is_told_by_the_trust_bundle(played: tuple[World, Records]) -> None:
    _, records = played
    other = World(8, devices=3, length=4, checkers=())
    assert [f.code for f in verify(together(records), trust=other.fleet.trust).faults] == ["trust-differs"]


def test_fault_names_role_and_id_of_its_principal() -> None:
    fault = Fault("party/3", "opening-differs")
    assert (fault.role, fault.id) == ("party", "3")
