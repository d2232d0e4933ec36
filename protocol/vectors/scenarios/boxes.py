"""HPKE boxes of the vectors. Sealing draws randomness, so a box that the vectors hold already is used again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from blindsum.protocol.keys import box_keypair, box_open, box_seal

__all__ = ["Boxes"]


@dataclass(frozen=True, slots=True)
class Sealed:
    """A box with all that is needed to open it."""

    name: str
    private: bytes
    info: bytes
    box: bytes


class Boxes:
    """Seals deterministically as long as `known`, the cases of an earlier box.json, has the box."""

    def __init__(self, known: list[dict[str, Any]]) -> None:
        self._known: dict[tuple[bytes, bytes, bytes], bytes] = {}
        self._privates: dict[bytes, tuple[str, bytes]] = {}
        self.made: list[Sealed] = []
        for case in known:
            private, info, box = (bytes.fromhex(case["in"][name]["$hex"]) for name in ("private", "info", "box"))
            plain = box_open(private, info, box)
            if plain is not None:
                self._known[box_keypair(private)[1], info, plain] = box

    def keypair(self, name: str, private: bytes) -> bytes:
        """The public key of `private`, which can then be sealed to."""
        public = box_keypair(private)[1]
        self._privates[public] = (name, private)
        return public

    def private(self, public: bytes) -> bytes:
        return self._privates[public][1]

    def seal(self, public: bytes, info: bytes, plain: bytes) -> bytes:
        """The `Seal` port of the machines."""
        name, private = self._privates[public]
        box = self._known.get((public, info, plain)) or box_seal(public, info, plain)
        self.made.append(Sealed(f"box {len(self.made) + 1}, to {name}", private, info, box))
        return box
