"""The outcomes of the vectors as the product computes them: one function a kind, bytes and numbers in, bytes and numbers out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blindsum.protocol import codec, graph, keys, masks, params, prg, quantize, reference, ring, rotation, sharing
from blindsum.protocol.arrivals import Arrivals
from blindsum.protocol.blobs import bits, bits_set
from blindsum.protocol.eligibility import History, not_eligible, place_of, retry_window
from blindsum.protocol.envelope import Head, seal_envelope
from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.messages import CHUNK_MESSAGE_SIZE_MAX, MESSAGES, BlobRef, Criterion, chunks_of
from blindsum.protocol.optimiser import advance
from blindsum.protocol.staleness import discounted, staleness
from blindsum.protocol.trust import Trust
from blindsum.protocol.view import open_message, payload_of
from scenarios.agreed import AGREED, Refusal, Values, refuse
from scenarios.plan import codec_of, plain_view, segments_of

__all__ = ["KINDS", "Refusal", "compute"]


def compute(kind: str, given: Values) -> Values:
    """What the product makes of `given`. Raises `Refusal` with the code of what it refuses."""
    try:
        return KINDS[kind](given)
    except BlindsumError as error:
        raise Refusal(error.code) from error
    except codec.DecodeError as error:
        raise Refusal("message-malformed") from error


# -- encoding ---------------------------------------------------------------------------------------------------------


def _cbor(given: Values) -> Values:
    value = codec.decode(given["bytes"])
    assert codec.encode(value) == given["bytes"]
    return {"value": value}


def _chunk(given: Values) -> Values:
    if len(given["bytes"]) > CHUNK_MESSAGE_SIZE_MAX:
        refuse("message-too-large")
    blob, index, data = codec.decode_chunk(given["bytes"])
    assert codec.encode_chunk(blob, index, data) == given["bytes"]
    if "ref" in given:
        ref = codec.convert(given["ref"], BlobRef)
        if ref.id != blob:
            refuse("chunk-unexpected")
        if not ref.accepts(index, data):
            refuse("chunk-wrong")
    return {"blob": blob, "index": index, "size": len(data), "sha256": hashlib.sha256(data).digest()}


def _broadcast(given: Values) -> Values:
    key, blob, index = given["key"], given["blob"], given["index"]
    if "data" in given:
        return {"sealed": keys.chunk_seal(key, blob, index, given["data"])}
    data = keys.chunk_open(key, blob, index, given["sealed"])
    return refuse("chunk-wrong") if data is None else {"data": data}


def _blob(given: Values) -> Values:
    ref = chunks_of(given["data"], given["chunk_size"])[0] if "data" in given else codec.convert(given["ref"], BlobRef)
    fields = {"size": ref.size, "chunk_size": ref.chunk_size, "digests": ref.digests}
    return {"ref": fields, "id": ref.id, "count": ref.count, "sound": ref.sound}


def _bitmap(given: Values) -> Values:
    have = bits(set(given["held"]), given["count"])
    return {"have": have, "missing": sorted(set(range(given["count"])) - bits_set(have, given["count"]))}


def _trust(given: Values) -> Values:
    trust = Trust.decode(given["bytes"])
    assert trust.encode() == given["bytes"]
    return {"fleet": trust.fleet, "parties": len(trust.parties), "digest": trust.digest}


def _head(head: Head) -> Values:
    return {
        "type": head.type,
        "fleet": head.fleet,
        "task": head.task,
        "round": head.round,
        "from": head.sender,
        "to": head.to,
    }


def _envelope(given: Values) -> Values:
    signed = open_message(Trust.decode(given["trust"]), given["bytes"])
    if isinstance(signed, Refused):
        refuse(signed.code)
    return {"head": _head(signed.head), "digest": signed.digest}


def _message(given: Values) -> Values:
    if "seed" in given:
        head = {"sender" if name == "from" else name: value for name, value in given["head"].items()}
        raw = seal_envelope(Ed25519PrivateKey.from_private_bytes(given["seed"]), Head(**head), given["body"])
    else:
        raw = given["bytes"]
    signed = open_message(Trust.decode(given["trust"]), raw)
    if isinstance(signed, Refused):
        refuse(signed.code)
    body = payload_of(signed, MESSAGES[signed.head.type][0])
    if isinstance(body, Refused):
        refuse(body.code)
    return {"bytes": raw, "digest": signed.digest}


# -- keys -------------------------------------------------------------------------------------------------------------


def _digest(given: Values) -> Values:
    return {"digest": keys.digest(given["label"], *given["parts"])}


def _derive(given: Values) -> Values:
    return {"key": keys.derive(given["secret"], given["label"], *given["context"], size=given["size"])}


def _agree(given: Values) -> Values:
    shared = keys.agree(given["private"], given["public"])
    if shared is None:
        refuse("join-malformed")
    return {"own": keys.edge_keypair(given["private"])[1], "shared": shared}


def _box(given: Values) -> Values:
    plain = keys.box_open(given["private"], given["info"], given["box"])
    if plain is None:
        refuse("box-unreadable")
    return {"public": keys.box_keypair(given["private"])[1], "plain": plain}


def _certificate(given: Values) -> Values:
    fault, name, key = keys.certificate_fault(given["certificate"], ca=given["ca"], now=given["now"])
    return {"name": name, "key": key} if not fault else refuse(fault)


# -- masks ------------------------------------------------------------------------------------------------------------


def _keystream(given: Values) -> Values:
    start, size = given["start"], given["size"]
    return {"bytes": prg.keystream(given["suite"], given["key"], given["page"], start + size)[start:]}


def _mask(given: Values) -> Values:
    segments, out = segments_of(given["segments"]), {}
    for name, sign in (("added", 1), ("subtracted", -1)):
        lanes = ring.unpack(segments, given["vector"])
        prg.apply(segments, lanes, [(given["key"], sign)], suite=given["suite"])
        out[name] = ring.pack(segments, lanes)
    return out


def _pack(given: Values) -> Values:
    segments = segments_of(given["segments"])
    pairs = zip(segments, given["values"], strict=True)
    return {"packed": ring.pack(segments, [ring.from_signed(s, np.array(v, np.int64)) for s, v in pairs])}


def _sum(given: Values) -> Values:
    segments = segments_of(given["segments"])
    lanes = ring.zeros(segments)
    for sign, packed in given["terms"]:
        (ring.add_packed if sign > 0 else ring.subtract_packed)(segments, lanes, packed)
    values = [ring.to_signed(s, lane).tolist() for s, lane in zip(segments, lanes, strict=True)]
    return {"packed": ring.pack(segments, lanes), "values": values}


def _subsets(given: Values) -> Values:
    sets = sharing.subsets(given["parties"], given["size"])
    held = [list(sharing.held_by(party, sets)) for party in range(1, given["parties"] + 1)]
    return {"subsets": [list(s) for s in sets], "held": held}


def _graph(given: Values) -> Values:
    found = graph.adjacency(given["devices"], given["degree"], given["seed"])
    return {"neighbours": [list(found.neighbours(i)) for i in range(given["devices"])]}


def _upload(given: Values) -> Values:
    view, roster = plain_view(given)
    drawn = iter([*given["self_seeds"], *given["cap_seeds"]])
    contents: list[bytes] = []

    def seal(_public: bytes, _info: bytes, plain: bytes) -> bytes:
        contents.append(plain)
        return plain

    if "device" in given:
        roster = Arrivals.of(view)
        roster.enter(given["device"], b"")
    upload = masks.mask_upload(
        view,
        roster,
        index=given["index"],
        private=given["private"],
        lanes=ring.unpack(view.base.segments, given["vector"]),
        random=lambda _size: next(drawn),
        seal=seal,
    )
    return {
        "body": b"".join(upload.chunks),
        "commitments": upload.header.commitments,
        "edges": upload.header.edges,
        "contents": contents,
    }


def _round(given: Values) -> Values:
    segments = segments_of(given["segments"])
    stream = memoryview(given["random"])

    def draw(size: int) -> bytes:
        nonlocal stream
        out, stream = bytes(stream[:size]), stream[size:]
        return out

    p, t, q, c = given["committee"]
    done = reference.run_round(
        segments,
        [ring.unpack(segments, vector) for vector in given["vectors"]],
        given["survivors"],
        committee=params.Committee.custom(p, t, q, c),
        degree=given["degree"],
        manifest=given["manifest"],
        roster=given["roster"],
        random=draw,
        suite=given["suite"],
    )
    assert not stream, "random bytes left over"
    return {
        "bodies": list(done.bodies),
        "openings": list(done.openings),
        "edges": [list(edge) for edge in done.edges],
        "total": done.total,
    }


# -- numbers ----------------------------------------------------------------------------------------------------------


def _committee(given: Values) -> Values:
    committee = params.Committee.custom(*given["committee"])
    return {"self_subsets": len(committee.self_subsets), "cap_subsets": len(committee.cap_subsets)}


def _degree(given: Values) -> Values:
    shares = given["corrupt_permille"], given["dropped_permille"]
    threat = params.ThreatModel(corrupt_permille=shares[0], dropped_permille=shares[1], cohort_min=given["cohort_min"])
    n = given["devices"]
    return {"degree": graph.degree_for(n, *shares), "survivors_min": params.survivors_min(n, threat)}


def _bits(given: Values) -> Values:
    return {"bits": quantize.bits_for(given["width"], given["devices_max"], given["weight_max"])}


def _quantise(given: Values) -> Values:
    (segment,) = segments_of([given["segment"]])
    update = np.frombuffer(given["update"], "<f4")
    lane = quantize.quantise(update, given["weight"], codec_of(given), segment, given["key"])
    return {"levels": ring.to_signed(segment, lane).tolist()}


def _rotate(given: Values) -> Values:
    rotated = rotation.rotate(np.frombuffer(given["vector"], "<f4"), given["seed"])
    return {"rotated": rotated.tobytes(), "restored": rotation.unrotate(rotated, given["seed"]).tobytes()}


def _advance(given: Values) -> Values:
    base = plain_view(given)[0].base
    model, state = advance(base, given["model"], given["state"], given["total"], given["rotation"])
    return {"model": model, "state": state}


def _staleness(given: Values) -> Values:
    same = given["model"] == given["began_model"]
    tau = staleness(given["round"], began=given["began"], same_model=same, most=given["staleness_max"])
    if tau is None:
        return {"fits": False}
    update = discounted(np.frombuffer(given["update"], "<f4"), tau)
    return {"fits": True, "tau": tau, "update": update.astype("<f4").tobytes()}


def _eligibility(given: Values) -> Values:
    criteria = [codec.convert(criterion, Criterion) for criterion in given["criteria"]]
    last = given["last"]
    history = History(
        device=given["device"], examples=given["examples"], round=last["round"], issued_at=last["issued_at"]
    )
    reason = not_eligible(
        criteria, task=given["task"], number=given["round"], issued_at=given["issued_at"], history=history
    )
    return {
        "eligible": not reason,
        "place": place_of(given["device"], given["task"]),
        "retry_ms": list(retry_window(criteria)),
    }


KINDS: Final[dict[str, Callable[[Values], Values]]] = {
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
    **AGREED,
    "committee": _committee,
    "degree": _degree,
    "bits": _bits,
    "quantise": _quantise,
    "rotate": _rotate,
    "advance": _advance,
    "eligibility": _eligibility,
    "staleness": _staleness,
}
