"""The outcomes of the vectors as the specification has them: one function a kind, bytes and numbers in, bytes and numbers out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

from oracle import cbor, ciphers, curves, envelope, kem, masks, numbers, views, x509
from oracle.failed import judge_failed
from oracle.fault import Fault, require
from oracle.judge import judge, survivors
from oracle.schema import BLOB, check_body

Values = dict[str, Any]
_BASE_POINT = (9).to_bytes(32, "little")


def _segments(given: Values) -> list[masks.Segment]:
    return [masks.Segment(s["name"], s["length"], s["width"]) for s in given["segments"]]


def _codec(given: Values) -> numbers.Codec:
    return numbers.Codec(given["clip_micros"], given["range_micros"], given["bits"], given["weight_max"])


# -- encoding ---------------------------------------------------------------------------------------------------------


def _cbor(given: Values) -> Values:
    value = cbor.decode(given["bytes"])
    assert cbor.encode(value) == given["bytes"], "decodes, but encodes to something else"
    return {"value": value}


def _chunk(given: Values) -> Values:
    blob, index, data = cbor.chunk_open(given["bytes"])
    if "ref" in given:
        cbor.chunk_check(given["ref"], blob, index, data)
    return {"blob": blob, "index": index, "size": len(data), "sha256": hashlib.sha256(data).digest()}


def _broadcast(given: Values) -> Values:
    key = masks.derive(given["key"], "broadcast", given["blob"], size=16)
    nonce = given["index"].to_bytes(12, "big")
    if "data" in given:
        return {"sealed": ciphers.aes128_gcm_seal(key, nonce, given["data"])}
    data = ciphers.aes128_gcm_open(key, nonce, given["sealed"], b"")
    if data is None:
        raise Fault("chunk-wrong")
    return {"data": data}


def _blob(given: Values) -> Values:
    ref = cbor.blob_ref(given["data"], given["chunk_size"]) if "data" in given else given["ref"]
    require(BLOB(ref), "message-malformed")
    return {"ref": ref, "id": cbor.blob_id(ref), "count": cbor.blob_count(ref), "sound": cbor.blob_sound(ref)}


def _bitmap(given: Values) -> Values:
    have = bytearray(-(-given["count"] // 8))
    for index in given["held"]:
        have[index // 8] |= 1 << index % 8
    return {"have": bytes(have), "missing": [i for i in range(given["count"]) if not have[i // 8] >> i % 8 & 1]}


def _trust(given: Values) -> Values:
    trust = envelope.trust_open(given["bytes"])
    return {"fleet": trust.fleet, "parties": len(trust.parties), "digest": trust.digest}


def _envelope(given: Values) -> Values:
    signed = envelope.open_message(envelope.trust_open(given["trust"]), given["bytes"])
    return {"head": signed.head, "digest": signed.digest}


def _message(given: Values) -> Values:
    raw, digest = envelope.seal(given["seed"], given["head"], given["body"])
    signed = envelope.open_message(envelope.trust_open(given["trust"]), raw)
    check_body(given["head"]["type"], signed.body)
    assert signed.digest == digest and signed.body == given["body"]
    return {"bytes": raw, "digest": digest}


# -- keys -------------------------------------------------------------------------------------------------------------


def _digest(given: Values) -> Values:
    return {"digest": cbor.digest(given["label"], *given["parts"])}


def _derive(given: Values) -> Values:
    return {"key": masks.derive(given["secret"], given["label"], *given["context"], size=given["size"])}


def _agree(given: Values) -> Values:
    shared = curves.x25519(given["private"], given["public"])
    require(any(shared), "join-malformed")
    return {"own": curves.x25519(given["private"], _BASE_POINT), "shared": shared}


def _box(given: Values) -> Values:
    plain = kem.box_open(given["private"], given["info"], given["box"])
    if plain is None:
        raise Fault("box-unreadable")
    return {"public": kem.box_public(given["private"]), "plain": plain}


def _certificate(given: Values) -> Values:
    name, key = x509.check(given["certificate"], given["ca"], given["now"])
    return {"name": name, "key": key}


# -- masks ------------------------------------------------------------------------------------------------------------


def _keystream(given: Values) -> Values:
    return {"bytes": masks.keystream(given["suite"], given["key"], given["page"], given["start"], given["size"])}


def _mask(given: Values) -> Values:
    segments = _segments(given)
    vector, stream = masks.unpack(segments, given["vector"]), masks.mask(given["suite"], given["key"], segments)
    signs = {"added": 1, "subtracted": -1}
    return {name: masks.pack(segments, masks.add(segments, vector, stream, sign)) for name, sign in signs.items()}


def _pack(given: Values) -> Values:
    segments = _segments(given)
    rows = [[v % (1 << s.width) for v in row] for s, row in zip(segments, given["values"], strict=True)]
    packed = masks.pack(segments, rows)
    assert masks.unpack(segments, packed) == rows
    return {"packed": packed}


def _sum(given: Values) -> Values:
    segments = _segments(given)
    total = masks.zeros(segments)
    for sign, packed in given["terms"]:
        total = masks.add(segments, total, masks.unpack(segments, packed), sign)
    values = [masks.signed(s, row) for s, row in zip(segments, total, strict=True)]
    return {"packed": masks.pack(segments, total), "values": values}


def _subsets(given: Values) -> Values:
    sets = masks.subsets(given["parties"], given["size"])
    held = [masks.held(party, sets) for party in range(1, given["parties"] + 1)]
    return {"subsets": [list(s) for s in sets], "held": held}


def _graph(given: Values) -> Values:
    return {"neighbours": masks.graph(given["devices"], given["degree"], given["seed"])}


def _place(given: Values) -> masks.Place:
    parties, threshold, quorum, liars = given["committee"]
    numbers.committee(parties, threshold, quorum, liars)
    return masks.Place(
        given["manifest"],
        cbor.digest("alone", given["manifest"], given["device"]) if "device" in given else given["roster"],
        given["suite"],
        _segments(given),
        masks.subsets(parties, threshold - 1),
        [] if "device" in given else masks.subsets(parties, quorum - 1),
    )


def _upload(given: Values) -> Values:
    place, index = _place(given), given["index"]
    keys = given["keys"]
    neighbours = [] if "device" in given else masks.graph(len(keys), given["degree"], given["roster"])[index]
    self_seeds, cap_seeds = given["self_seeds"], given["cap_seeds"]
    vector = masks.unpack(place.segments, given["vector"])
    made = masks.upload(place, index, vector, given["private"], keys, neighbours, self_seeds, cap_seeds)
    contents = [
        b"".join(
            seeds[s]
            for seeds, sets in ((self_seeds, place.self_sets), (cap_seeds, place.cap_sets))
            for s in masks.held(p, sets)
        )
        for p in given["members"]
    ]
    commitments = [place.commitment(index, "self", s, seed) for s, seed in enumerate(self_seeds)]
    commitments += [place.commitment(index, "cap", s, seed) for s, seed in enumerate(cap_seeds)]
    edges = [made.caps[v] + place.edge_check(made.secrets[v]) for v in neighbours]
    return {
        "body": made.body,
        "commitments": b"".join(commitments),
        "edges": b"".join(edges),
        "contents": contents,
    }


def _round(given: Values) -> Values:
    place, at = _place(given), 0

    def draw(size: int) -> bytes:
        nonlocal at
        at += size
        return bytes(given["random"][at - size : at])

    vectors = [masks.unpack(place.segments, vector) for vector in given["vectors"]]
    done = masks.whole_round(place, vectors, given["survivors"], given["degree"], draw)
    plain = masks.zeros(place.segments)
    for u in given["survivors"]:
        plain = place.add(plain, vectors[u])
    assert done.total == masks.pack(place.segments, plain) and at == len(given["random"]), "masks do not cancel"
    return {
        "bodies": done.bodies,
        "openings": done.openings,
        "edges": [list(edge) for edge in done.edges],
        "total": done.total,
    }


def _survivors(given: Values) -> Values:
    return {"survivors": [list(row) for row in survivors(given["bytes"], given["devices"]).items()]}


def _transcript(given: Values) -> Values:
    records = [(name, data) for name, data in given["records"]]
    for name, place, data in given.get("replace", []):
        records[[i for i, (other, _) in enumerate(records) if other == name][place]] = (name, data)
    records += [(name, data) for name, data in given.get("add", [])]
    return {"faults": judge(envelope.trust_open(given["trust"]), records)}


def _failed(given: Values) -> Values:
    records = [tuple(given["records"][place]) for place in given["take"]]
    records += [(name, data) for name, data in given.get("add", [])]
    return {"faults": judge_failed(envelope.trust_open(given["trust"]), records)}


# -- agreements ---------------------------------------------------------------------------------------------------------


def _task(given: Values) -> Values:
    task = views.open_task(envelope.trust_open(given["trust"]), given["bytes"])
    return {
        "digest": task.digest,
        "self_subsets": len(task.self_sets),
        "cap_subsets": len(task.cap_sets),
        "packed_size": masks.packed_size(task.segments),
    }


def _view(given: Values, raw: bytes) -> views.Round:
    return views.open_manifest(views.open_task(envelope.trust_open(given["trust"]), given["task"]), raw)


def _manifest(given: Values) -> Values:
    view = _view(given, given["bytes"])
    return {"digest": view.digest, "round": view.number, "members": list(view.members)}


def _join(given: Values) -> Values:
    device, identity, signed = views.open_join(_view(given, given["manifest"]), given["bytes"])
    return {"device": device, "identity": identity, "key": signed.body["key"], "digest": signed.digest}


def _agreed(given: Values) -> tuple[views.Round, list[bytes], bytes, views.Roster]:
    view = _view(given, given["manifest"])
    proposal, roster = views.open_proposal(view, given["proposal"], given["votes"])
    identities, entries = views.open_joins(view, given["joins"])
    views.entries_follow(view, entries, proposal["entries"])
    return view, identities, entries, views.open_roster(view, entries, roster)


def _roster(given: Values) -> Values:
    _, _, entries, roster = _agreed(given)
    return {
        "roster": roster.digest,
        "entries": entries,
        "neighbours": roster.neighbours,
        "survivors_min": roster.survivors_min,
    }


def _header(given: Values) -> Values:
    view, identities, _, roster = _agreed(given)
    signed = envelope.open_message(view.task.trust, given["bytes"])
    check_body("header", signed.body)
    index = signed.body["index"]
    mine = index < len(roster.devices) and signed.sender == f"device/{roster.devices[index]}"
    require(mine, "header-foreign")
    require(curves.ed25519_verify(identities[index], signed.signature, signed.tbs), "signature-invalid")
    views.check_header(view, roster, signed.body, signed.sender)
    return {"index": index, "digest": signed.digest}


def _arrival(given: Values) -> Values:
    view = _view(given, given["manifest"])
    signed = envelope.open_message(view.task.trust, given["bytes"])
    device, identity = views.open_arrival(view, signed)
    views.check_header(view, views.alone(view, [device]), signed.body, signed.sender)
    return {"device": device, "identity": identity, "digest": signed.digest}


def _listed(given: Values) -> Values:
    return {"survivors": [list(row) for row in views.listed(given["bytes"], given["devices_max"])]}


# -- numbers ----------------------------------------------------------------------------------------------------------


def _committee(given: Values) -> Values:
    parties, threshold, quorum, liars = given["committee"]
    numbers.committee(parties, threshold, quorum, liars)
    sizes = {"self_subsets": threshold - 1, "cap_subsets": quorum - 1}
    return {name: len(masks.subsets(parties, size)) for name, size in sizes.items()}


def _degree(given: Values) -> Values:
    n, corrupt, dropped = given["devices"], given["corrupt_permille"], given["dropped_permille"]
    require(corrupt + dropped < 1000 and given["cohort_min"] >= 2, "parameters-unsafe")
    least = numbers.survivors_min(n, corrupt, dropped, given["cohort_min"])
    return {"degree": numbers.degree(n, corrupt, dropped), "survivors_min": least}


def _bits(given: Values) -> Values:
    return {"bits": numbers.bits(given["width"], given["devices_max"], given["weight_max"])}


def _quantise(given: Values) -> Values:
    segment = masks.Segment(**given["segment"])
    update = numbers.singles(given["update"])
    levels = numbers.quantise(update, given["weight"], _codec(given), given["rotation"], segment, given["key"])
    return {"levels": levels}


def _rotate(given: Values) -> Values:
    rotated = numbers.rotate(numbers.singles(given["vector"]), given["seed"])
    restored = numbers.unrotate(rotated, given["seed"])
    return {"rotated": numbers.packed_singles(rotated), "restored": numbers.packed_singles(restored)}


def _advance(given: Values) -> Values:
    codecs = [segment["codec"] for segment in given["segments"]]
    algorithm = {"name": given["algorithm"], **given}
    before, total, rotation = (given["model"], given["state"]), given["total"], given["rotation"]
    model, state = numbers.advance(*before, total, _segments(given), codecs, _codec(given), algorithm, rotation)
    return {"model": model, "state": state}


def _staleness(given: Values) -> Values:
    age = given["round"] - given["began"]
    if not 0 < age <= given["staleness_max"]:
        return {"fits": False}
    tau = 0 if given["model"] == given["began_model"] else age
    scale = math.sqrt(1.0 + tau)
    update = [numbers.single(x / scale) for x in numbers.singles(given["update"])]
    return {"fits": True, "tau": tau, "update": numbers.packed_singles(update)}


def _eligibility(given: Values) -> Values:
    place = int.from_bytes(cbor.digest("share", given["task"], given["device"])[:8], "big") % 1000
    last, number = given["last"], given["round"]
    eligible, retry = True, [0, 0]
    for criterion in given["criteria"]:
        kind, values = criterion["kind"], criterion["values"]
        known = criterion["version"] == 1 and len(values) == {"share": 2, "retry": 2}.get(kind, 1)
        if known and kind == "examples-min":
            holds = given["examples"] is not None and given["examples"] >= values[0]
        elif known and kind == "once-per":
            period = 1000 * values[0]
            holds = last["round"] == 0 or given["issued_at"] // period > last["issued_at"] // period
        elif known and kind == "rounds-apart":
            holds = last["round"] == 0 or number - last["round"] > values[0]
        elif known and kind == "share":
            holds = place < values[0] + values[1] * (number - 1)
        elif known and kind == "retry":
            holds, retry = True, [1000 * value for value in values]
        else:
            holds = False
        eligible = eligible and holds
    return {"eligible": eligible, "place": place, "retry_ms": retry}


KINDS: dict[str, Callable[[Values], Values]] = {
    "cbor": _cbor,
    "chunk": _chunk,
    "broadcast": _broadcast,
    "blob": _blob,
    "bitmap": _bitmap,
    "trust": _trust,
    "envelope": _envelope,
    "message": _message,
    "digest": _digest,
    "derive": _derive,
    "agree": _agree,
    "box": _box,
    "certificate": _certificate,
    "keystream": _keystream,
    "mask": _mask,
    "pack": _pack,
    "sum": _sum,
    "subsets": _subsets,
    "graph": _graph,
    "upload": _upload,
    "round": _round,
    "survivors": _survivors,
    "transcript": _transcript,
    "failed": _failed,
    "task": _task,
    "manifest": _manifest,
    "join": _join,
    "roster": _roster,
    "header": _header,
    "arrival": _arrival,
    "listed": _listed,
    "committee": _committee,
    "degree": _degree,
    "bits": _bits,
    "quantise": _quantise,
    "rotate": _rotate,
    "advance": _advance,
    "eligibility": _eligibility,
    "staleness": _staleness,
}
