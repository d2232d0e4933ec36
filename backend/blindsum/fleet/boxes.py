"""HPKE boxes of a simulated fleet: many sealed under one encapsulation.

A box is sealed in two steps (RFC 9180 section 5, base mode): the key encapsulation agrees on a secret with the receiver, and the
key schedule makes a key and a nonce of that secret and the box's `info`. No two boxes have the same `info`, so a fleet that seals
for thousands of devices repeats only the second step. What comes out is what a device makes whose random numbers repeat: whoever
has the private key opens it as any other box.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Final

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from blindsum.protocol.keys import HASH_SIZE, MLKEM_PUBLIC_SIZE, hmac_blocks

__all__ = ["Boxes"]

RECEIVERS_MAX: Final = 64
"""Public keys whose encapsulation is kept: those of the parties of a round, and of the round before."""
KEY_SIZE: Final = 16
NONCE_SIZE: Final = 12

_SUITE: Final = b"HPKE-v1HPKE" + bytes.fromhex("647a 0001 0001")  # MLKEM768_X25519, HKDF-SHA-256, AES-128-GCM
_XWING_LABEL: Final = bytes.fromhex("5c2e2f2f5e5c")

_sha256 = hashlib.sha256


class Boxes:
    """`protocol.keys.box_seal` with one encapsulation for each receiver."""

    def __init__(self) -> None:
        self._receivers: OrderedDict[bytes, _Receiver] = OrderedDict()

    def seal(self, public: bytes, info: bytes, plaintext: bytes) -> bytes:
        """As `box_seal`, with randomness that repeats."""
        receiver = self._receivers.get(public)
        if receiver is None:
            receiver = self._receivers[public] = _Receiver(public)
            if len(self._receivers) > RECEIVERS_MAX:
                self._receivers.popitem(last=False)
        return receiver.seal(info, plaintext)


class _Receiver:
    """A public key and the secret agreed on with it."""

    def __init__(self, public: bytes) -> None:
        mlkem, x25519 = public[:MLKEM_PUBLIC_SIZE], public[MLKEM_PUBLIC_SIZE:]
        secret, closed = MLKEM768PublicKey.from_public_bytes(mlkem).encapsulate()
        own = X25519PrivateKey.generate()
        agreed, mine = own.exchange(X25519PublicKey.from_public_bytes(x25519)), own.public_key().public_bytes_raw()
        shared = hashlib.sha3_256(secret + agreed + mine + x25519 + _XWING_LABEL).digest()
        self._encapsulated = closed + mine
        self._hash_info = hmac_blocks(bytes(HASH_SIZE))
        self._psk_id_hash = _hmac(self._hash_info, _SUITE + b"psk_id_hash")
        self._secret = hmac_blocks(_hmac(hmac_blocks(shared), _SUITE + b"secret"))

    def seal(self, info: bytes, plaintext: bytes) -> bytes:
        context = b"\0" + self._psk_id_hash + _hmac(self._hash_info, _SUITE + b"info_hash" + info)
        key, nonce = self._expand(b"key", context, KEY_SIZE), self._expand(b"base_nonce", context, NONCE_SIZE)
        return self._encapsulated + AESGCM(key).encrypt(nonce, plaintext, None)

    def _expand(self, label: bytes, context: bytes, size: int) -> bytes:
        return _hmac(self._secret, size.to_bytes(2, "big") + _SUITE + label + context + b"\1")[:size]


def _hmac(blocks: tuple[bytes, bytes], message: bytes) -> bytes:
    inner, outer = blocks
    return _sha256(outer + _sha256(inner + message).digest()).digest()
