"""What the operator hands to a running role by putting a file into its kit: the revocation list, and later keys of parties."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from blindsum.backend.register import REVOKED_FILE
from blindsum.backend.service import Reporter
from blindsum.protocol.errors import BlindsumError
from blindsum.runtime.driver import Driver
from blindsum.runtime.kit import PARTY_KEYS_FILE, read_file

__all__ = ["Notices"]

LOOK_S: Final = 1.0
"""How often the kit is looked at."""
CALL_TIMEOUT_S: Final = 60.0
_FILES: Final = ((REVOKED_FILE, "revoke", "revocations-refused"), (PARTY_KEYS_FILE, "learn", "party-keys-refused"))
"""(file, the machine's command for it, the event where it does not hold)."""


class Notices:
    """Hands each file in `kit` to the machine of `driver` when it is new. One that does not hold is told and changes nothing."""

    def __init__(self, kit: Path, driver: Driver, reporter: Reporter) -> None:
        self._kit, self._driver, self._reporter = kit, driver, reporter
        self._seen: dict[str, tuple[int, int]] = {}
        self._looked = -LOOK_S

    def turn(self) -> None:
        """Look, at most once in `LOOK_S`."""
        if time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        for name, command, refused in _FILES:
            self._look(name, command, refused)

    def _look(self, name: str, command: str, refused: str) -> None:
        try:
            status = (self._kit / name).stat()
        except OSError:
            return  # none yet; what was taken is in the database
        if self._seen.get(name) == (status.st_mtime_ns, status.st_size):
            return
        self._seen[name] = (status.st_mtime_ns, status.st_size)
        try:
            raw = read_file(self._kit / name)
            self._driver.call(lambda machine, _now: getattr(machine, command)(raw)).result(CALL_TIMEOUT_S)
        except BlindsumError as error:
            self._reporter.line(refused, code=error.code, detail=error.detail)
