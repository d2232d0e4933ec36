"""AES-128 (FIPS 197) with counter mode and GCM (SP 800-38D), and ChaCha20 (RFC 8439), one block at a time."""

from __future__ import annotations

import hmac
import struct

_MASK = 0xFFFFFFFF


def _double(value: int) -> int:
    return (value << 1) ^ (0x11B if value & 0x80 else 0)


def _tables() -> tuple[list[int], list[int]]:
    """The S-box and the products with 2, from the definition of GF(2^8)."""
    sbox = [0x63] * 256
    p = q = 1
    while True:
        p ^= _double(p) & 0xFF if p & 0x80 == 0 else _double(p)
        q ^= q << 1
        q ^= q << 2
        q ^= q << 4
        q &= 0xFF
        if q & 0x80:
            q ^= 0x09
        rotated = [((q << n) | (q >> (8 - n))) & 0xFF for n in range(5)]
        sbox[p] = rotated[0] ^ rotated[1] ^ rotated[2] ^ rotated[3] ^ rotated[4] ^ 0x63
        if p == 1:
            return sbox, [_double(x) for x in range(256)]


_SBOX, _TWICE = _tables()


def aes128_round_keys(key: bytes) -> list[bytes]:
    assert len(key) == 16
    words = [key[i : i + 4] for i in range(0, 16, 4)]
    constant = 1
    for i in range(4, 44):
        word = words[i - 1]
        if i % 4 == 0:
            word = bytes(_SBOX[b] for b in word[1:] + word[:1])
            word = bytes([word[0] ^ constant]) + word[1:]
            constant = _TWICE[constant]
        words.append(bytes(a ^ b for a, b in zip(words[i - 4], word, strict=True)))
    return [b"".join(words[i : i + 4]) for i in range(0, 44, 4)]


def aes128_block(round_keys: list[bytes], block: bytes) -> bytes:
    state = [a ^ b for a, b in zip(block, round_keys[0], strict=True)]
    for number in range(1, 11):
        state = [_SBOX[state[(i + 4 * (i % 4)) % 16]] for i in range(16)]  # SubBytes and ShiftRows
        if number < 10:
            mixed = []
            for c in range(0, 16, 4):
                a = state[c : c + 4]
                every = a[0] ^ a[1] ^ a[2] ^ a[3]
                mixed += [a[i] ^ every ^ _TWICE[a[i] ^ a[(i + 1) % 4]] for i in range(4)]
            state = mixed
        state = [a ^ b for a, b in zip(state, round_keys[number], strict=True)]
    return bytes(state)


def aes128_ctr(key: bytes, nonce: bytes, first: int, start: int, size: int) -> bytes:
    """`size` bytes from byte `start` on of the keystream whose block i is AES(nonce || uint32_be(first + i))."""
    keys = aes128_round_keys(key)
    blocks = range(start // 16, -(-(start + size) // 16))
    stream = b"".join(aes128_block(keys, nonce + struct.pack(">I", first + i)) for i in blocks)
    return stream[start % 16 : start % 16 + size]


def aes128_gcm_seal(key: bytes, nonce: bytes, text: bytes) -> bytes:
    """Ciphertext and tag, without associated data. 12-byte nonces only."""
    sealed = bytes(a ^ b for a, b in zip(text, aes128_ctr(key, nonce, 2, 0, len(text)), strict=True))
    return sealed + _tag(aes128_round_keys(key), nonce, sealed, b"")


def aes128_gcm_open(key: bytes, nonce: bytes, sealed: bytes, associated: bytes) -> bytes | None:
    """The plaintext, or None where the tag is wrong. 12-byte nonces only."""
    text, tag = sealed[:-16], sealed[-16:]
    if len(sealed) < 16 or not hmac.compare_digest(_tag(aes128_round_keys(key), nonce, text, associated), tag):
        return None
    return bytes(a ^ b for a, b in zip(text, aes128_ctr(key, nonce, 2, 0, len(text)), strict=True))


def _tag(keys: list[bytes], nonce: bytes, text: bytes, associated: bytes) -> bytes:
    """GHASH of both parts and their lengths, under the mask of counter 1."""
    h, total = int.from_bytes(aes128_block(keys, bytes(16)), "big"), 0
    padded = b"".join(part + bytes(-len(part) % 16) for part in (associated, text))
    padded += struct.pack(">QQ", 8 * len(associated), 8 * len(text))
    for at in range(0, len(padded), 16):
        total = _multiply(total ^ int.from_bytes(padded[at : at + 16], "big"), h)
    mask = aes128_block(keys, nonce + b"\0\0\0\1")
    return bytes(a ^ b for a, b in zip(total.to_bytes(16, "big"), mask, strict=True))


def _multiply(x: int, y: int) -> int:
    product = 0
    for bit in range(127, -1, -1):
        if x >> bit & 1:
            product ^= y
        y = (y >> 1) ^ (0xE1 << 120 if y & 1 else 0)
    return product


def chacha20(key: bytes, nonce: bytes, first: int, start: int, size: int) -> bytes:
    """`size` bytes from byte `start` on of the keystream whose block i has the counter first + i."""
    blocks = range(start // 64, -(-(start + size) // 64))
    stream = b"".join(_chacha20_block(key, first + i, nonce) for i in blocks)
    return stream[start % 64 : start % 64 + size]


def _chacha20_block(key: bytes, counter: int, nonce: bytes) -> bytes:
    initial = [
        *struct.unpack("<4I", b"expand 32-byte k"),
        *struct.unpack("<8I", key),
        counter,
        *struct.unpack("<3I", nonce),
    ]
    state = initial[:]

    def quarter(a: int, b: int, c: int, d: int) -> None:
        for x, y, z, shift in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            state[x] = (state[x] + state[y]) & _MASK
            value = state[z] ^ state[x]
            state[z] = (value << shift | value >> (32 - shift)) & _MASK

    for _ in range(10):
        for column in range(4):
            quarter(column, 4 + column, 8 + column, 12 + column)
        for column in range(4):
            quarter(column, 4 + (column + 1) % 4, 8 + (column + 2) % 4, 12 + (column + 3) % 4)
    return struct.pack("<16I", *((a + b) & _MASK for a, b in zip(state, initial, strict=True)))
