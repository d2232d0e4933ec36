"""How a party's signing key is followed from the one that every kit pins to the one that it signs with now (SPEC.md section 4.4).

A *step* is [epoch, step, key, signature]. In an epoch each key signs the next; the operator begins a new epoch, where a key is lost
or was seen by others, and so overrules whatever was signed with the keys of the epochs before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from blindsum.protocol.codec import DecodeError, convert, encode
from blindsum.protocol.keys import LABEL, public_of, sign_verify
from blindsum.protocol.messages import KEYS_MAX, KeyStep, KeySteps
from blindsum.protocol.trust import Trust

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["answered_keys", "keys_of", "next_step", "operator_step", "rank", "shown_keys"]

_EPOCH_MAX: Final = 2**31 - 1


def keys_of(trust: Trust, party: int, steps: Sequence[KeyStep]) -> tuple[bytes, ...]:
    """Every key that `steps` lead through, the pinned one first and the current one last; () where they do not hold."""
    pinned = trust.pinned(party)
    if pinned is None or len(steps) > KEYS_MAX:
        return ()
    keys = [pinned]
    taken = {trust.operator, trust.coordinator, *trust.parties}
    begin = bool(steps) and steps[0][1] == 0
    epoch = steps[0][0] if begin else 0
    for place, (number, step, key, signature) in enumerate(steps):
        by_operator = begin and place == 0
        signer, before = (trust.operator, b"") if by_operator else (keys[-1], keys[-1])
        right = (number, step) == (epoch, place if begin else place + 1) and not (by_operator and epoch < 1)
        if (
            not right
            or key in taken
            or not sign_verify(signer, signature, _said(trust, party, number, step, before, key))
        ):
            return ()
        taken.add(key)
        keys.append(key)
    return tuple(keys)


def answered_keys(trust: Trust, party: int, steps: Sequence[KeyStep]) -> tuple[bytes, ...]:
    """Those that the party answers for together: of one epoch. What the operator took from it may be anybody's."""
    return keys_of(trust, party, steps)[int(bool(steps) and steps[0][1] == 0) :]


def shown_keys(trust: Trust, party: int, payload: Any) -> tuple[bytes, ...]:
    """`keys_of` of the steps in an offer's body; where there is no list of steps, as where it is empty."""
    try:
        steps = convert(payload.get("keys") if isinstance(payload, dict) else None, KeySteps)
    except DecodeError:
        steps = []
    return keys_of(trust, party, steps)


def rank(steps: Sequence[KeyStep]) -> tuple[int, int]:
    """Which of two keys of a party is the later one: (epoch, step) of the current key; (0, 0) of the pinned one."""
    return (steps[-1][0], steps[-1][1]) if steps else (0, 0)


def next_step(signer: Ed25519PrivateKey, trust: Trust, party: int, steps: Sequence[KeyStep], key: bytes) -> KeyStep:
    """The step from the current key, whose private half `signer` is, to `key`."""
    epoch, step = rank(steps)
    return epoch, step + 1, key, signer.sign(_said(trust, party, epoch, step + 1, public_of(signer), key))


def operator_step(operator: Ed25519PrivateKey, trust: Trust, party: int, epoch: int, key: bytes) -> KeyStep:
    """The operator's word that `key` is the party's from now on, and none of those before."""
    assert 1 <= epoch <= _EPOCH_MAX
    return epoch, 0, key, operator.sign(_said(trust, party, epoch, 0, b"", key))


def _said(trust: Trust, party: int, epoch: int, step: int, before: bytes, key: bytes) -> bytes:
    return encode([LABEL + "party-key", trust.digest, party, epoch, step, before, key])
