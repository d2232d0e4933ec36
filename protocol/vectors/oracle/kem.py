"""ML-KEM-768 (FIPS 203), its combination with X25519, and HPKE base mode (RFC 9180): boxes."""

from __future__ import annotations

import hashlib
import hmac

from oracle.ciphers import aes128_gcm_open, aes128_gcm_seal
from oracle.curves import x25519

_Q, _N, _K = 3329, 256, 3
_DU, _DV = 10, 4
_BASE_POINT = (9).to_bytes(32, "little")


def _reversed(i: int) -> int:
    return int(f"{i:07b}"[::-1], 2)


_ZETAS = [pow(17, _reversed(i), _Q) for i in range(128)]
_GAMMAS = [pow(17, 2 * _reversed(i) + 1, _Q) for i in range(128)]


def _ntt(f: list[int]) -> list[int]:
    f, i, size = f[:], 1, 128
    while size >= 2:
        for start in range(0, _N, 2 * size):
            zeta, i = _ZETAS[i], i + 1
            for j in range(start, start + size):
                t = zeta * f[j + size] % _Q
                f[j + size], f[j] = (f[j] - t) % _Q, (f[j] + t) % _Q
        size //= 2
    return f


def _unntt(f: list[int]) -> list[int]:
    f, i, size = f[:], 127, 2
    while size <= 128:
        for start in range(0, _N, 2 * size):
            zeta, i = _ZETAS[i], i - 1
            for j in range(start, start + size):
                t = f[j]
                f[j], f[j + size] = (t + f[j + size]) % _Q, zeta * (f[j + size] - t) % _Q
        size *= 2
    return [3303 * x % _Q for x in f]


def _product(f: list[int], g: list[int]) -> list[int]:
    out = []
    for i in range(128):
        a0, a1, b0, b1 = f[2 * i], f[2 * i + 1], g[2 * i], g[2 * i + 1]
        out += [(a0 * b0 + a1 * b1 * _GAMMAS[i]) % _Q, (a0 * b1 + a1 * b0) % _Q]
    return out


def _sum(*polynomials: list[int]) -> list[int]:
    return [sum(values) % _Q for values in zip(*polynomials, strict=True)]


def _encode(values: list[int], bits: int) -> bytes:
    return sum(value << (bits * i) for i, value in enumerate(values)).to_bytes(len(values) * bits // 8, "little")


def _decode(data: bytes, bits: int) -> list[int]:
    whole = int.from_bytes(data, "little")
    return [whole >> (bits * i) & ((1 << bits) - 1) for i in range(8 * len(data) // bits)]


def _compress(values: list[int], bits: int) -> list[int]:
    return [((x << (bits + 1)) + _Q) // (2 * _Q) % (1 << bits) for x in values]


def _decompress(values: list[int], bits: int) -> list[int]:
    return [(x * _Q + (1 << (bits - 1))) >> bits for x in values]


def _uniform(seed: bytes) -> list[int]:
    """SampleNTT."""
    stream, out = hashlib.shake_128(seed).digest(3 * 504), []
    for at in range(0, len(stream), 3):
        low = stream[at] | (stream[at + 1] & 15) << 8
        high = stream[at + 1] >> 4 | stream[at + 2] << 4
        out += [x for x in (low, high) if x < _Q]
    return out[:_N]


def _noise(seed: bytes, nonce: int) -> list[int]:
    """SamplePolyCBD with eta = 2."""
    bits = _decode(hashlib.shake_256(seed + bytes([nonce])).digest(128), 1)
    return [(sum(bits[i : i + 2]) - sum(bits[i + 2 : i + 4])) % _Q for i in range(0, 1024, 4)]


def _matrix(rho: bytes) -> list[list[list[int]]]:
    return [[_uniform(rho + bytes([j, i])) for j in range(_K)] for i in range(_K)]


def _keygen(d: bytes) -> tuple[list[list[int]], bytes]:
    """(secret vector in the NTT domain, encapsulation key)."""
    digest = hashlib.sha3_512(d + bytes([_K])).digest()
    rho, sigma = digest[:32], digest[32:]
    a = _matrix(rho)
    s = [_ntt(_noise(sigma, i)) for i in range(_K)]
    e = [_ntt(_noise(sigma, _K + i)) for i in range(_K)]
    t = [_sum(*(_product(a[i][j], s[j]) for j in range(_K)), e[i]) for i in range(_K)]
    return s, b"".join(_encode(row, 12) for row in t) + rho


def _encrypt(ek: bytes, message: bytes, randomness: bytes) -> bytes:
    t, a = [_decode(ek[384 * i : 384 * (i + 1)], 12) for i in range(_K)], _matrix(ek[384 * _K :])
    y = [_ntt(_noise(randomness, i)) for i in range(_K)]
    u = [
        _sum(_unntt(_sum(*(_product(a[j][i], y[j]) for j in range(_K)))), _noise(randomness, _K + i)) for i in range(_K)
    ]
    mu = _decompress(_decode(message, 1), 1)
    v = _sum(_unntt(_sum(*(_product(t[i], y[i]) for i in range(_K)))), _noise(randomness, 2 * _K), mu)
    return b"".join(_encode(_compress(row, _DU), _DU) for row in u) + _encode(_compress(v, _DV), _DV)


def _decapsulate(seed: bytes, ciphertext: bytes) -> tuple[bytes, bytes]:
    """(encapsulation key, shared secret) for the 64-byte seed d || z: FIPS 203 algorithms 16 and 18."""
    d, z = seed[:32], seed[32:]
    s, ek = _keygen(d)
    cut = 32 * _DU * _K
    u = [_decompress(_decode(ciphertext[320 * i : 320 * (i + 1)], _DU), _DU) for i in range(_K)]
    v = _decompress(_decode(ciphertext[cut:], _DV), _DV)
    inner = _unntt(_sum(*(_product(s[i], _ntt(u[i])) for i in range(_K))))
    message = _encode(_compress([(a - b) % _Q for a, b in zip(v, inner, strict=True)], 1), 1)
    digest = hashlib.sha3_512(message + hashlib.sha3_256(ek).digest()).digest()
    rejected = hashlib.shake_256(z + ciphertext).digest(32)
    return ek, digest[:32] if _encrypt(ek, message, digest[32:]) == ciphertext else rejected


KEM_ID, KDF_ID, AEAD_ID = 0x647A, 1, 1
_XWING_LABEL = bytes.fromhex("5c2e2f2f5e5c")


def box_public(private: bytes) -> bytes:
    """The public key of 96 private bytes: ML-KEM encapsulation key || X25519 public key."""
    return _keygen(private[:32])[1] + x25519(private[64:], _BASE_POINT)


def _shared(private: bytes, enc: bytes) -> bytes:
    """X-Wing: SHA3-256 over both shared secrets, the X25519 ciphertext and key, and a label."""
    ct_m, ct_x = enc[:1088], enc[1088:]
    _, ss_m = _decapsulate(private[:64], ct_m)
    ss_x, pk_x = x25519(private[64:], ct_x), x25519(private[64:], _BASE_POINT)
    return hashlib.sha3_256(ss_m + ss_x + ct_x + pk_x + _XWING_LABEL).digest()


def box_open(private: bytes, info: bytes, sealed: bytes) -> bytes | None:
    """The plaintext of `enc || ciphertext`, HPKE base mode, single shot; None where it was not made for this key and info."""
    if len(sealed) < 1136:
        return None
    key, nonce = _schedule(_shared(private, sealed[:1120]), info)
    return aes128_gcm_open(key, nonce, sealed[1120:], b"")


def box_seal(public: bytes, info: bytes, plain: bytes, random: bytes) -> bytes:
    """`enc || ciphertext`, from 64 random bytes: X-Wing's encapsulation, HPKE base mode."""
    ek, pk_x = public[:1184], public[1184:]
    digest = hashlib.sha3_512(random[:32] + hashlib.sha3_256(ek).digest()).digest()
    ct_m, ct_x = _encrypt(ek, random[:32], digest[32:]), x25519(random[32:], _BASE_POINT)
    shared = hashlib.sha3_256(digest[:32] + x25519(random[32:], pk_x) + ct_x + pk_x + _XWING_LABEL).digest()
    return ct_m + ct_x + aes128_gcm_seal(*_schedule(shared, info), plain)


def _schedule(shared: bytes, info: bytes) -> tuple[bytes, bytes]:
    """(key, nonce) of the only message of a context."""
    suite = b"HPKE" + b"".join(number.to_bytes(2, "big") for number in (KEM_ID, KDF_ID, AEAD_ID))

    def extract(salt: bytes, label: bytes, material: bytes) -> bytes:
        return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + material, "sha256")

    context = b"\0" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
    secret = extract(shared, b"secret", b"")

    def expand(label: bytes, size: int) -> bytes:
        full = size.to_bytes(2, "big") + b"HPKE-v1" + suite + label + context
        return hmac.digest(secret, full + b"\1", "sha256")[:size]

    return expand(b"key", 16), expand(b"base_nonce", 12)
