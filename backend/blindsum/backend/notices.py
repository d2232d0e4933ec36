"""What the operator hands to a running role by putting a file into its kit: the revocation list."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from blindsum.backend.register import REVOKED_FILE
from blindsum.backend.service import Reporter
from blindsum.protocol.errors import BlindsumError
from blindsum.runtime.driver import Driver
from blindsum.runtime.kit import read_file

__all__ = ["Notices"]

LOOK_S: Final = 1.0
"""How often the kit is looked at."""
CALL_TIMEOUT_S: Final = 60.0


class Notices:
    """Hands the list in `kit` to the machine of `driver` when it is new. One that does not hold is reported and changes nothing."""

    def __init__(self, kit: Path, driver: Driver, reporter: Reporter) -> None:
        self._path, self._driver, self._reporter = kit / REVOKED_FILE, driver, reporter
        self._seen = (0, 0)
        self._looked = -LOOK_S

    def turn(self) -> None:
        """Look, at most once in `LOOK_S`."""
        if time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        try:
            status = self._path.stat()
        except OSError:
            return  # none yet; a list that was taken is in the database
        if (status.st_mtime_ns, status.st_size) == self._seen:
            return
        self._seen = (status.st_mtime_ns, status.st_size)
        try:
            raw = read_file(self._path)
            self._driver.call(lambda machine, _now: machine.revoke(raw)).result(CALL_TIMEOUT_S)  # type: ignore[attr-defined]
        except BlindsumError as error:
            self._reporter.line("revocations-refused", code=error.code, detail=error.detail)
