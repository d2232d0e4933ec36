"""Randomness that repeats: a seeded stream for tests and simulations. Never for a real device or party."""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from blindsum.protocol.keys import derive

__all__ = ["Entropy"]


class Entropy:
    """`Entropy(seed, name)(n)` gives the next n bytes of an AES-128-CTR stream that only (seed, name) determine."""

    def __init__(self, seed: int, name: str) -> None:
        key = derive(seed.to_bytes(8, "little"), "test-entropy", name, size=16)
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def __call__(self, size: int) -> bytes:
        return self._stream.update(bytes(size))
