"""Randomness that repeats: a seeded stream for tests and simulations. Never for a real device or party."""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from blindsum.protocol.keys import derive

__all__ = ["Entropy"]


class Entropy:
    """`Entropy(seed, name)(n)` gives the next n bytes of an AES-128-CTR stream that only (seed, name) determine.

    `drawn`, where given, collects everything that was handed out: the secrets that a checker looks for afterwards.
    """

    def __init__(self, seed: int, name: str, *, drawn: list[bytes] | None = None) -> None:
        key = derive(seed.to_bytes(8, "little"), "test-entropy", name, size=16)
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self._drawn = drawn

    def __call__(self, size: int) -> bytes:
        out = self._stream.update(bytes(size))
        if self._drawn is not None:
            self._drawn.append(out)
        return out
