"""Labels, key agreement, boxes and certificates: SPEC.md section 4."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from blindsum.protocol.keys import certificate_issue, edge_keypair
from scenarios.case import File, secret
from scenarios.scene import FLEET, START, TASK, Scene

__all__ = ["files"]

_DAY_MS: Final = 86_400_000
_SMALL_ORDER: Final = (
    ("zero", "00" * 32),
    ("one", "01" + "00" * 31),
    ("order eight", "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    ("order eight, the other", "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    ("p - 1", "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    ("p", "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    ("p + 1", "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
)


def files(scene: Scene) -> list[File]:
    return [_digests(), _derivations(), _agreement(), _boxes(scene), _certificates(scene)]


def _digests() -> File:
    file = File("digest.json", "domain-separated digests", "4", "digest")
    manifest, roster, seed = secret("manifest"), secret("roster"), secret("seed")
    parties = [secret(f"party {n}") for n in range(1, 5)]
    box = secret("box", 1216)
    keys = [secret("operator"), secret("coordinator"), box, parties]
    file.ok("trust", label="trust", parts=["vectors", b"a certificate", *keys])
    file.ok("blob", label="blob", parts=[2500, 1024, secret("digests", 96)])
    file.ok("beacon", label="beacon", parts=[TASK, 7, 3, secret("beacon")])
    beacons = [[party, secret(f"beacon {party}")] for party in (1, 2, 4)]
    file.ok("roster", label="roster", parts=[secret("proposal"), beacons])
    for layer in ("self", "cap"):
        file.ok(f"commit {layer}", label="commit", parts=[manifest, roster, 5, layer, 2, seed])
    file.ok("edge-check, of which 16 bytes are used", label="edge-check", parts=[manifest, secret("edge")])
    return file


def _derivations() -> File:
    file = File("derive.json", "HKDF-SHA-256 under labels", "4", "derive")
    manifest, roster, seed = secret("manifest"), secret("roster"), secret("seed")
    for size in (24, 40):
        context = [manifest, roster, 5, 2]
        file.ok(f"self, {size} bytes", secret=seed, label="self", context=context, size=size)
        file.ok(f"edge-mask, {size} bytes", secret=seed, label="edge-mask", context=[manifest], size=size)
    file.ok("edge", secret=seed, label="edge", context=[manifest, roster, 3, 24], size=32)
    file.ok("cap", secret=seed, label="cap", context=[manifest, roster, 24, 3, 5], size=32)
    file.ok("broadcast", secret=seed, label="broadcast", context=[secret("id")], size=16)
    file.ok("graph cycle", secret=roster, label="graph cycle", context=[1], size=24)
    file.ok("rotation", secret=secret("rotation", 16), label="rotation", context=[1], size=24)
    file.ok("round", secret=seed, label="round", context=[0], size=32)
    file.ok("rounding", secret=seed, label="rounding", context=["parameters"], size=24)
    return file


def _agreement() -> File:
    file = File("agree.json", "X25519, and points that agree on nothing", "4", "agree")
    for n in range(2):
        public = edge_keypair(secret(f"b {n}"))[1]
        file.ok(f"pair {n}", private=secret(f"a {n}"), public=public)
    public = edge_keypair(secret("b 0"))[1]
    file.ok("the top bit of a key is ignored", private=secret("a 0"), public=public[:-1] + bytes([public[-1] | 0x80]))
    for name, text in _SMALL_ORDER:
        file.bad("join-malformed", name, private=secret("a 0"), public=bytes.fromhex(text))
    return file


def _boxes(scene: Scene) -> File:
    file = File("box.json", "HPKE boxes: those of the round in `messages`, and spoilt ones", "4.3", "box")
    for made in scene.boxes.made:
        file.ok(made.name, private=made.private, info=made.info, box=made.box)
    first, other = scene.boxes.made[:2]
    given = {"private": first.private, "info": first.info, "box": first.box}

    def bad(name: str, **changes: bytes) -> None:
        file.bad("box-unreadable", name, **{**given, **changes})

    bad("key of another party", private=other.private)
    bad("info of another party", info=other.info)
    for name, at in (("the ML-KEM ciphertext", 100), ("the X25519 key", 1100), ("the content", 1125), ("the tag", -1)):
        spoilt = bytearray(first.box)
        spoilt[at] ^= 1
        bad(f"one bit flipped in {name}", box=bytes(spoilt))
    bad("cut off", box=first.box[:1135])
    bad("empty", box=b"")
    return file


def _certificates(scene: Scene) -> File:
    file = File("certificate.json", "the certificate of a device at the moment of a manifest", "4.2", "certificate")
    good, ca = scene.certificates["d-0"], scene.ca
    end = START - 3_600_000 + 365 * _DAY_MS
    for name, now in (("good", START), ("at its first moment", START - 3_600_000), ("at its last moment", end)):
        file.ok(name, certificate=good, ca=ca, now=now)

    def issue(name: str = "d-0", issuer: str = FLEET, by: str = "ca", is_ca: bool = False) -> bytes:
        return certificate_issue(
            name=name,
            public=scene.public("device/d-0"),
            issuer=issuer,
            issuer_key=scene.key(by),
            serial=99,
            now=START,
            days=365,
            ca=is_ca,
        )

    file.ok("of a CA that has expired itself", certificate=good, ca=_old(scene.key("ca")), now=START)
    for code, name, now in (
        ("certificate-expired", "a second too early", START - 3_601_000),
        ("certificate-expired", "a second too late", end + 1000),
    ):
        file.bad(code, name, certificate=good, ca=ca, now=now)
    tampered = good.replace(b"d-0", b"d-1")
    for name, certificate in (
        ("signed by somebody else", issue(by="operator")),
        ("of another issuer's name", issue(issuer="vector")),
        ("a CA", issue(is_ca=True)),
        ("the fleet CA itself", ca),
        ("name altered", tampered),
        ("another algorithm stated beside the signature", _restated(good)),
        ("two common names", _other(scene, names=2)),
        ("no common name", _other(scene, names=0)),
        ("no basic constraints", _other(scene, constraints=False)),
        ("a P-256 key", _other(scene, curve=True)),
        ("cut off", good[:-1]),
        ("trailing byte", good + b"\0"),
        ("no certificate", b"certificate"),
        ("empty", b""),
    ):
        file.bad("certificate-invalid", name, certificate=certificate, ca=ca, now=START)
    return file


def _restated(certificate: bytes) -> bytes:
    """The last Ed25519 object identifier, which no signature covers, turned into that of Ed448."""
    at = certificate.rindex(bytes.fromhex("06032b6570"))
    return certificate[: at + 4] + b"\x71" + certificate[at + 5 :]


def _old(key: Ed25519PrivateKey) -> bytes:
    return certificate_issue(
        name=FLEET,
        public=key.public_key().public_bytes_raw(),
        issuer=FLEET,
        issuer_key=key,
        serial=1,
        now=START - 400 * _DAY_MS,
        days=30,
        ca=True,
    )


def _other(scene: Scene, *, names: int = 1, constraints: bool = True, curve: bool = False) -> bytes:
    """A certificate that the fleet CA signed and that is wrong in one way."""
    start = datetime.fromtimestamp(START / 1000, UTC)
    key = scene.key("device/d-0").public_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"d-{n}") for n in range(names)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, FLEET)]))
        .public_key(derive_private_key(7, SECP256R1()).public_key() if curve else key)
        .serial_number(98)
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=1))
    )
    if constraints:
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    return builder.sign(scene.key("ca"), None).public_bytes(serialization.Encoding.DER)
