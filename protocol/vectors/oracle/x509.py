"""As much of X.509 as SPEC.md section 4.2 looks at: a DER reader and the checks of a device certificate."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

from oracle.curves import ed25519_verify
from oracle.fault import Fault, require

_ED25519 = bytes.fromhex("2b6570")
_COMMON_NAME = bytes.fromhex("550403")
_BASIC_CONSTRAINTS = bytes.fromhex("551d13")
_INVALID = "certificate-invalid"


class Node(NamedTuple):
    """One DER element: its tag, content, and all its bytes."""

    tag: int
    content: bytes
    whole: bytes

    def children(self) -> list[Node]:
        nodes, at = [], 0
        while at < len(self.content):
            node, at = _read(self.content, at)
            nodes.append(node)
        return nodes


def _read(data: bytes, at: int) -> tuple[Node, int]:
    start, tag, size = at, data[at], data[at + 1]
    at += 2
    if size & 0x80:
        width = size & 0x7F
        size, at = int.from_bytes(data[at : at + width], "big"), at + width
    require(at + size <= len(data), _INVALID)
    return Node(tag, data[at : at + size], data[start : at + size]), at + size


class Certificate(NamedTuple):
    """The fields that matter. `begin` and `end` in ms."""

    body: bytes
    issuer: bytes
    subject: bytes
    names: list[str]
    begin: int
    end: int
    key: bytes
    ca: bool
    signature: bytes


def _parse(der: bytes) -> Certificate:
    top, end = _read(der, 0)
    require(end == len(der), _INVALID)
    body, stated, signature = top.children()
    fields = [node for node in body.children() if node.tag != 0xA0]  # without the version
    _, signed_with, issuer, validity, subject, key = fields[:6]
    require(signed_with.whole == stated.whole and stated.children()[0].content == _ED25519, _INVALID)
    algorithm, bits = key.children()
    require(algorithm.children()[0].content == _ED25519 and len(bits.content) == 33, _INVALID)
    pairs = [pair.children() for group in subject.children() for pair in group.children()]
    names = [value.content.decode() for oid, value in pairs if oid.content == _COMMON_NAME]
    extensions = next(node for node in fields[6:] if node.tag == 0xA3).children()[0].children()
    constraints = next(e.children()[-1] for e in extensions if e.children()[0].content == _BASIC_CONSTRAINTS)
    inner, _ = _read(constraints.content, 0)
    ca = any(node.tag == 1 and node.content != b"\0" for node in inner.children())
    begin, until = (_time(node) for node in validity.children())
    return Certificate(
        body.whole, issuer.whole, subject.whole, names, begin, until, bits.content[1:], ca, signature.content[1:]
    )


def _time(node: Node) -> int:
    text = node.content.decode()
    if node.tag == 23:  # UTCTime
        text = ("19" if text >= "50" else "20") + text
    return 1000 * int(datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp())


def check(der: bytes, ca: bytes, now: int) -> tuple[str, bytes]:
    """(device id, Ed25519 key) of a certificate that is good at `now` (ms)."""
    try:
        certificate, root = _parse(der), _parse(ca)
        require(certificate.issuer == root.subject and not certificate.ca and len(certificate.names) == 1, _INVALID)
        require(ed25519_verify(root.key, certificate.signature, certificate.body), _INVALID)
    except (ValueError, IndexError, StopIteration):
        raise Fault(_INVALID) from None
    require(certificate.begin <= now <= certificate.end, "certificate-expired")
    return certificate.names[0], certificate.key
