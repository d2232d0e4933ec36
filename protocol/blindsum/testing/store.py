"""A role's key-value store in memory, for tests and simulations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from blindsum.protocol.machines.step import Write

__all__ = ["DictStore"]


class DictStore:
    """A `Store` over a dict. `DictStore(other.rows)` is a backup of the other."""

    def __init__(self, rows: dict[str, bytes] | None = None) -> None:
        self.rows: dict[str, bytes] = dict(rows or {})

    def get(self, key: str) -> bytes | None:
        return self.rows.get(key)

    def scan(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        return iter(sorted((key, value) for key, value in self.rows.items() if key.startswith(prefix)))

    def keys(self, prefix: str) -> Iterator[str]:
        return (key for key, _ in self.scan(prefix))

    def commit(self, writes: Iterable[Write]) -> None:
        for write in writes:
            if write.value is None:
                self.rows.pop(write.key, None)
            else:
                self.rows[write.key] = write.value

    def holds(self, secret: bytes) -> bool:
        """Whether these bytes lie anywhere in a row."""
        return any(secret in value for value in self.rows.values())
