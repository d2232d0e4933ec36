"""What a role can prove against others, as files in its kit that `blindsum verify` reads."""

from __future__ import annotations

from pathlib import Path

from blindsum.backend.service import Reporter
from blindsum.protocol.codec import decode
from blindsum.protocol.evidence import write_evidence
from blindsum.protocol.machines.journal import evidence_key
from blindsum.protocol.machines.step import Event, Store
from blindsum.protocol.trust import Trust

__all__ = ["Witness"]


class Witness:
    """Reports events, and writes each piece of evidence that its role keeps to the folder `evidence` of its kit."""

    def __init__(self, reporter: Reporter, kit: Path, trust: Trust, store: Store) -> None:
        self._reporter, self._kit, self._trust, self._store = reporter, kit, trust, store

    def event(self, event: Event) -> None:
        self._reporter.event(event)
        if event.name == "evidence":
            task, number, code, culprit = (event.data[name] for name in ("task", "round", "code", "culprit"))
            row = self._store.get(evidence_key(str(task), int(str(number)), str(code), str(culprit)))
            if row is not None:
                self._write(f"{task}-{number:06d}-{code}-{str(culprit).replace('/', '-')}.blindsum", row)

    def _write(self, name: str, row: bytes) -> None:
        _, first, second, join = decode(row)
        path = self._kit / "evidence" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(write_evidence(self._trust, first, second, join))
        self._reporter.line("evidence-written", path=str(path))
